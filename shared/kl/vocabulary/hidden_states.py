"""Divergences of two language models' heads, without the logits of more than a few positions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..conventions import (
    Reduction,
    check_floating,
    check_reduction,
    check_temperature,
    fit_mask,
    reduce,
)
from ..kernels.rows import Divergence, divergence_of_rows, js_rows, kl_rows, row_scales
from .logits import student_of

_CHUNK_ELEMENTS = 2**23  # logits in memory at once: 64 rows of 128k, enough for a matrix product


class Head(NamedTuple):
    """logits = hidden @ weight.T + bias, with hidden [n, width], weight [vocabulary, width]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def logits(self, rows: Tensor) -> Tensor:
        """[rows, vocabulary], in the heads' own precision."""
        return F.linear(self.hidden[rows], self.weight, self.bias)


def fused_linear_kl(
    p_hidden: Tensor,
    p_weight: Tensor,
    q_hidden: Tensor,
    q_weight: Tensor,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    """D(p || q) of p = softmax((p_hidden @ p_weight.T + p_bias) / T) and q likewise.

    The student is the side of which any tensor requires a gradient: (teacher, student) is the
    forward KL of distillation, (student, teacher) the reverse. Its gradients are computed in the
    forward pass, while the logits of a chunk of positions exist; the full [..., vocabulary]
    tensors never do.

    Args:
        p_hidden: [..., width of p]; q_hidden: [..., width of q], the same leading shape.
        p_weight: [vocabulary, width of p]; q_weight: [vocabulary, width of q].
        p_bias, q_bias: [vocabulary].
        temperature: T; no implicit factor T^2.
        mask: bool, broadcastable with [...], True for positions that count; the others are neither
            read nor computed.
        reduction: see ``conventions.reduce``. With "none" the gradients are computed in
            the backward pass, which makes the logits a second time: choose another to train.

    Returns:
        Nats, [...] or a scalar, in float32 at least. Differentiable once. The gradient of the
        weights is summed up in float32 at least and then rounded to their type.

    Raises:
        ValueError: both sides require a gradient; shapes that do not fit; integers; a temperature
            that is not positive; a bad mask or reduction.
    """
    check_temperature(temperature)
    p, q = Head(p_hidden, p_weight, p_bias), Head(q_hidden, q_weight, q_bias)
    return _fused(kl_rows(temperature), p, q, mask, reduction)


def fused_linear_js(
    p_hidden: Tensor,
    p_weight: Tensor,
    q_hidden: Tensor,
    q_weight: Tensor,
    weight: float = 0.5,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    """w D(p || m) + (1 - w) D(q || m), m = w p + (1 - w) q; arguments as in ``fused_linear_kl``.

    Raises:
        ValueError: as there; ``weight`` (that of p) is not strictly between 0 and 1.
    """
    check_temperature(temperature)
    p, q = Head(p_hidden, p_weight, p_bias), Head(q_hidden, q_weight, q_bias)
    return _fused(js_rows(weight, temperature), p, q, mask, reduction)


def _fused(
    divergence: Divergence, p: Head, q: Head, mask: Tensor | None, reduction: Reduction
) -> Tensor:
    check_reduction(reduction)
    _check(p, q)
    needs_gradient = (_wants_gradient(p), _wants_gradient(q))
    student = student_of(("a tensor of p", needs_gradient[0]), ("a tensor of q", needs_gradient[1]))
    shape = p.hidden.shape[:-1]
    counts = torch.ones(shape, dtype=torch.bool, device=p.hidden.device)
    if mask is not None:
        counts = fit_mask(mask, shape, "mask")
    rows = counts.flatten().nonzero().squeeze(-1)
    heads = [tensor for head in (p, q) for tensor in (head.hidden.flatten(0, -2), *head[1:])]
    if student is None:
        with torch.no_grad():
            values, _ = _pass(divergence, *_heads(heads), None, rows, [])
        return reduce(values.view(shape), counts, reduction)
    if reduction == "none":
        each: Tensor = _EachPosition.apply(divergence, student, rows, *heads)
        return each.view(shape)
    total: Tensor = _Total.apply(divergence, student, rows, *heads)
    # Every reduction is a multiple of the sum, the same for all values.
    ones = reduce(counts.to(total.dtype), counts, reduction)
    return total * (ones / max(len(rows), 1))


def _wants_gradient(head: Head) -> bool:
    tensors = (tensor for tensor in head if tensor is not None)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check(p: Head, q: Head) -> None:
    for side, head in (("p", p), ("q", q)):
        named = {f"{side}_hidden": head.hidden, f"{side}_weight": head.weight}
        check_floating(**named)
        if head.hidden.dim() < 2 or head.weight.dim() != 2:
            raise ValueError(
                f"{side}_hidden and {side}_weight must have shapes [..., width] and "
                f"[vocabulary, width], got {list(head.hidden.shape)} and {list(head.weight.shape)}"
            )
        if head.hidden.shape[-1] != head.weight.shape[1]:
            raise ValueError(
                f"{side}_hidden of width {head.hidden.shape[-1]} does not fit {side}_weight of "
                f"shape {list(head.weight.shape)}"
            )
        if head.bias is not None and head.bias.shape != head.weight.shape[:1]:
            raise ValueError(
                f"{side}_bias of shape {list(head.bias.shape)} does not fit {side}_weight of "
                f"shape {list(head.weight.shape)}"
            )
    if p.hidden.shape[:-1] != q.hidden.shape[:-1] or len(p.weight) != len(q.weight):
        raise ValueError(
            "p and q differ in positions or vocabulary: p_hidden, p_weight of shape "
            f"{list(p.hidden.shape)}, {list(p.weight.shape)}, q_hidden, q_weight of shape "
            f"{list(q.hidden.shape)}, {list(q.weight.shape)}"
        )


def _heads(tensors: Sequence[Tensor | None]) -> tuple[Head, Head]:
    return Head(*tensors[:3]), Head(*tensors[3:])  # type: ignore[arg-type]


def _dtypes(tensors: Sequence[Tensor | None]) -> list[torch.dtype | None]:
    return [None if tensor is None else tensor.dtype for tensor in tensors]


def _pass(
    divergence: Divergence,
    p: Head,
    q: Head,
    student: int | None,
    rows: Tensor,
    needed: Sequence[bool],
    upstream: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Values [n] (0 off ``rows``), and the gradients of their sum, weighted by ``upstream`` [n].

    Gradients are those to the student's hidden, weight and bias where ``needed``, times T.
    """
    dtype = torch.promote_types(torch.promote_types(p.hidden.dtype, q.hidden.dtype), torch.float32)
    values = torch.zeros(len(p.hidden), dtype=dtype, device=p.hidden.device)
    head = (p, q)[student or 0]
    grads = [
        torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        if tensor is not None and needs_gradient
        else None
        for tensor, needs_gradient in zip(head, needed, strict=False)
    ]
    for chunk in rows.split(max(1, _CHUNK_ELEMENTS // len(p.weight))):
        logits = (p.logits(chunk), q.logits(chunk))
        if student is None:
            values[chunk] = divergence_of_rows(divergence, *logits)
            continue
        gradient = logits[student]  # overwritten
        scales = row_scales(gradient)
        gradients = (gradient, None) if student == 0 else (None, gradient)
        values[chunk] = divergence_of_rows(divergence, *logits, gradients, scales=scales)
        weights = None if upstream is None else upstream[chunk].to(dtype)
        if scales is not None:
            weights = (1 if weights is None else weights) / scales
        _accumulate(grads, head, chunk, gradient, weights)
    return values, grads


class _Total(torch.autograd.Function):
    """The sum of all values; forward computes its gradients while the logits exist."""

    @staticmethod
    def forward(
        ctx: Any, divergence: Divergence, student: int, rows: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        needed = ctx.needs_input_grad[3 + 3 * student : 6 + 3 * student]
        values, grads = _pass(divergence, *_heads(tensors), student, rows, needed)
        ctx.student, ctx.temperature = student, divergence.temperature
        ctx.dtypes = _dtypes(tensors)
        ctx.save_for_backward(*grads)
        return values.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale = upstream / ctx.temperature
        grads = [None if grad is None else grad.mul_(scale) for grad in ctx.saved_tensors]
        return _arguments(ctx.student, grads, ctx.dtypes)


class _EachPosition(torch.autograd.Function):
    """The values [n]; backward makes the logits again, because only it knows each one's weight."""

    @staticmethod
    def forward(
        ctx: Any, divergence: Divergence, student: int, rows: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        ctx.divergence, ctx.student = divergence, student
        ctx.save_for_backward(rows, *tensors)
        return _pass(divergence, *_heads(tensors), None, rows, [])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[3 + 3 * ctx.student : 6 + 3 * ctx.student]
        weights = upstream / ctx.divergence.temperature
        _, grads = _pass(ctx.divergence, *_heads(tensors), ctx.student, rows, needed, weights)
        return _arguments(ctx.student, grads, _dtypes(tensors))


def _arguments(
    student: int, grads: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]
) -> tuple[Tensor | None, ...]:
    """Gradients in the place and type of the arguments of ``apply``."""
    of_both: list[Tensor | None] = [None] * 6
    of_both[3 * student : 3 * student + 3] = grads
    return (
        None,
        None,
        None,
        *(
            None if grad is None else grad.to(dtype)
            for grad, dtype in zip(of_both, dtypes, strict=True)
        ),
    )


def _accumulate(
    grads: list[Tensor | None], head: Head, rows: Tensor, gradient: Tensor, weights: Tensor | None
) -> None:
    """Adds what a chunk's gradient to its logits gives to hidden, weight and bias.

    Rows count with ``weights``, which are applied where they cannot leave the gradient's range.
    """
    hidden, weight, bias = grads
    if hidden is not None:
        product = (gradient @ head.weight.to(gradient.dtype)).to(hidden.dtype)
        hidden[rows] = product if weights is None else product * weights[:, None].to(hidden.dtype)
    if weight is not None:
        states, largest = head.hidden[rows], 1.0
        if weights is not None:
            largest = max(weights.abs().max().item(), torch.finfo(weights.dtype).tiny)
            states = states * (weights[:, None] / largest)
        states = states.to(gradient.dtype)
        if weight.dtype == gradient.dtype:
            weight.addmm_(gradient.T, states, alpha=largest)
        else:
            weight.add_(gradient.T @ states, alpha=largest)
    if bias is not None:
        each = gradient.to(bias.dtype)
        bias.add_(each.sum(0) if weights is None else weights.to(bias.dtype) @ each)
