"""Divergences of rows as functions of autograd: gradients to both arguments, twice."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .rows import Divergence, divergence_of_rows, scale_rows

Formula = Callable[..., Tensor]
"""The same divergence of rows [n, categories] in torch's own operations."""


def values_of_rows(
    divergence: Divergence,
    formula: Formula,
    distributions: Sequence[Tensor],
    mask: Tensor | None = None,
) -> Tensor:
    """Values [...] of one or two tensors [..., categories] of one shape and type.

    Args:
        formula: takes the place of the kernel in rows that are not finite, and for derivatives of
            the gradient.
        mask: bool [...], True for rows that count; the others are not read.
    """
    shape = distributions[0].shape
    a, *b = [tensor.reshape(-1, shape[-1]) for tensor in distributions]
    rows = None if mask is None else mask.flatten().nonzero().squeeze(-1)
    values: Tensor = _Rows.apply(divergence, formula, rows, a, *b)
    return values.view(shape[:-1])


class _Rows(torch.autograd.Function):
    """Forward computes values and gradients; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, divergence: Divergence, formula: Formula, rows: Tensor | None, *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.of = divergence, formula, rows
        values, ctx.gradients = _compute(ctx, inputs)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, None, *_differentiable(ctx, inputs, upstream)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second backward through the same graph
            _, gradients = _compute(ctx, inputs)
        if upstream.is_cuda or not bool((upstream == 1).all()):
            for gradient in gradients:
                if gradient is not None:
                    scale_rows(gradient, upstream)
        return None, None, None, *gradients


def _compute(ctx: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    divergence, formula, rows = ctx.of
    gradients = [
        torch.empty_like(tensor) if needed else None
        for tensor, needed in zip(inputs, ctx.needs_input_grad[3:], strict=True)
    ]
    targets = (gradients[0], gradients[1] if len(inputs) > 1 else None)
    factor = 1 / divergence.temperature
    values = divergence_of_rows(divergence, inputs[0], inputs[-1], targets, rows, factor)
    if not math.isfinite(values.sum().item()):
        few = (~values.isfinite()).nonzero().squeeze(-1)
        with torch.enable_grad():
            leaves = [tensor.detach()[few].requires_grad_() for tensor in inputs]
            by_formula = formula(*leaves)
            of_few = torch.autograd.grad(by_formula.sum(), leaves)
        values[few] = by_formula.detach()
        for gradient, part in zip(gradients, of_few, strict=True):
            if gradient is not None:
                gradient[few] = part
    return values, gradients


def _differentiable(
    ctx: Any, inputs: Sequence[Tensor], upstream: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients by the formula, with a graph of their own."""
    _, formula, rows = ctx.of
    needed = [
        tensor for tensor, needed in zip(inputs, ctx.needs_input_grad[3:], strict=True) if needed
    ]
    parts = inputs if rows is None else [tensor[rows] for tensor in inputs]
    weights = upstream if rows is None else upstream[rows]
    gradients = iter(torch.autograd.grad(formula(*parts), needed, weights, create_graph=True))
    return tuple(next(gradients) if needed else None for needed in ctx.needs_input_grad[3:])
