"""Divergences of rows as functions of autograd: gradients to both arguments, twice."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .job import Gradients, is_one, rows_of
from .rows import Divergence, divergence_of_rows

_FEW_ELEMENTS = 2**12

Formula = Callable[..., Tensor]
"""The same divergence of rows [n, categories], and a temperature, in torch's own operations."""


def values_of_rows(
    divergence: Divergence,
    formula: Formula,
    distributions: Sequence[Tensor],
    mask: Tensor | None = None,
    weight: float | None = None,
) -> Tensor:
    """Values [...] of one or two tensors [..., categories] of one shape and type.

    Args:
        formula: takes the place of the kernel in rows that are not finite, and for derivatives of
            the gradient.
        mask: bool [...], True for rows that count; the others are not read.
        weight: returns their sum times this instead; backward then has nothing to multiply.
    """
    shape = distributions[0].shape
    a, *b = [tensor.reshape(-1, shape[-1]) for tensor in distributions]
    rows = None if mask is None else mask.flatten().nonzero().squeeze(-1)
    if isinstance(divergence.temperature, Tensor):
        of_rows = divergence.temperature.reshape(-1, 1).to(a.dtype)
        divergence = divergence._replace(temperature=of_rows)
    values: Tensor = _Rows.apply(divergence, formula, rows, weight, a, *b)
    return values if weight is not None else values.view(shape[:-1])


class _Rows(torch.autograd.Function):
    """Forward computes values and gradients; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        divergence: Divergence,
        formula: Formula,
        rows: Tensor | None,
        weight: float | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.of = divergence, formula, rows, weight
        keep = not _saves_elsewhere()
        values, gradients = _compute(ctx, inputs, ctx.needs_input_grad[4:] if keep else ())
        ctx.gradients = gradients if keep else None
        return values if weight is None else values.sum() * weight

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, None, None, *_differentiable(ctx, inputs, upstream)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # activation checkpointing, or a second backward
            _, gradients = _compute(ctx, inputs, ctx.needs_input_grad[4:])
        if upstream.is_cuda or not bool((upstream == 1).all()):
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream[..., None])
        return None, None, None, None, *gradients


def _saves_elsewhere() -> bool:
    """Whether hooks decide where tensors are saved: those of activation checkpointing save none."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is not None and hooks(False) is not None


def _compute(
    ctx: Any, inputs: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Values, and the gradients to the inputs that need one."""
    divergence, formula, rows, weight = ctx.of
    needed = needed or [False] * len(inputs)
    a, weight = inputs[0], 1.0 if weight is None else weight
    if rows is None and a.dtype == torch.float32 and 0 < a.numel() <= _FEW_ELEMENTS:
        values, targets = _compute_few(divergence, inputs, needed, weight)
        if math.isfinite(values.sum().item()):
            return values, targets[: len(inputs)]
    gradients = [
        torch.empty_like(tensor) if wanted else None
        for tensor, wanted in zip(inputs, needed, strict=True)
    ]
    targets = (gradients[0], gradients[1] if len(inputs) > 1 else None)
    factor = weight / divergence.temperature
    values = divergence_of_rows(divergence, a, inputs[-1], targets, rows, factor)
    if not math.isfinite(values.sum().item()):
        few = (~values.isfinite()).nonzero().squeeze(-1)
        with torch.enable_grad():
            leaves = [tensor.detach()[few].requires_grad_() for tensor in inputs]
            by_formula = formula(*leaves, rows_of(divergence.temperature, few))
            of_few = torch.autograd.grad(by_formula.sum(), leaves)
        values[few] = by_formula.detach()
        for gradient, part in zip(gradients, of_few, strict=True):
            if gradient is not None:
                gradient[few] = part * weight
    return values, gradients


def _compute_few(
    divergence: Divergence, inputs: Sequence[Tensor], needed: Sequence[bool], weight: float
) -> tuple[Tensor, Gradients]:
    temperature = divergence.temperature
    a, b = inputs[0].double(), inputs[-1].double()
    if not is_one(temperature):
        a, b = a.div_(temperature), b.div_(temperature)
    values, gradients = divergence.few(a, b, needed)
    factor = weight / temperature
    to_a, to_b = (
        None
        if gradient is None
        else (gradient if is_one(factor) else gradient.mul_(factor)).float()
        for gradient in gradients
    )
    return values.clamp_(min=0).float(), (to_a, to_b)


def _differentiable(
    ctx: Any, inputs: Sequence[Tensor], upstream: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients by the formula, with a graph of their own."""
    divergence, formula, rows, weight = ctx.of
    wanted = ctx.needs_input_grad[4:]
    leaves = [tensor for tensor, needed in zip(inputs, wanted, strict=True) if needed]
    chosen = slice(None) if rows is None else rows
    values = formula(
        *(tensor[chosen] for tensor in inputs), rows_of(divergence.temperature, chosen)
    )
    if weight is not None:
        values = values.sum() * weight
    elif rows is not None:
        upstream = upstream[rows]
    gradients = iter(torch.autograd.grad(values, leaves, upstream, create_graph=True))
    return tuple(next(gradients) if needed else None for needed in wanted)
