"""Formulas of a few float32 tensors, evaluated in float64 together with their derivatives.

In float64 a difference loses nothing that float32 could tell, so that no case needs a branch; and
the derivatives share their terms with the value.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..conventions import only_plain_operations

Compute = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""Tensors of one shape -> the value, and its derivatives to each."""


def closed_form(compute: Compute, plain: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``plain(*inputs)``, by ``compute`` where that can be.

    Args:
        plain: the same in torch's own operations: for transforms, compilers, derivatives of the
            gradient, float64, and devices without it.
    """
    first = inputs[0]
    if only_plain_operations() or first.dtype != torch.float32 or first.device.type == "mps":
        return plain(*inputs)
    shape = first.shape
    if any(tensor.shape != shape or tensor.dtype != torch.float32 for tensor in inputs):
        inputs = tuple(torch.broadcast_tensors(*inputs))
        if any(tensor.dtype != torch.float32 for tensor in inputs):
            return plain(*inputs)
    value: Tensor = _ClosedForm.apply(compute, plain, *inputs)
    return value


class _ClosedForm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Compute, plain: Callable[..., Tensor], *inputs: Tensor
    ) -> Tensor:
        value, derivatives = compute(*inputs)
        ctx.plain = plain
        ctx.save_for_backward(*inputs, *derivatives)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # once: activation checkpointing unpacks them once
        inputs, derivatives = saved[: len(needed)], saved[len(needed) :]
        if torch.is_grad_enabled():  # to be differentiated again
            leaves = [tensor for tensor, wanted in zip(inputs, needed, strict=True) if wanted]
            value = ctx.plain(*inputs)
            found = iter(torch.autograd.grad(value, leaves, upstream, create_graph=True))
            return None, None, *(next(found) if wanted else None for wanted in needed)
        return (
            None,
            None,
            *(
                upstream * derivative if wanted else None
                for derivative, wanted in zip(derivatives, needed, strict=True)
            ),
        )


def finite(derivative: Tensor) -> Tensor:
    """In float32, and finite: a masked position's gradient of 0 must stay 0."""
    largest = torch.finfo(torch.float32).max
    return derivative.float().clamp_(-largest, largest)
