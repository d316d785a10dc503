"""Divergences of two language models' heads, without the logits of more than a few positions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..conventions import Reduction, check_reduction, check_temperature, fit_mask, reduce
from ..kernels.rows import Divergence, divergence_of_rows, js_rows, kl_rows, row_scales, skew_rows
from .heads import Head, check_heads, wants_gradient
from .logits import student_of

Caps = tuple[float | None, float | None]

_CHUNK_ELEMENTS = 2**23  # logits in memory at once: 64 rows of 128k, enough for a matrix product


def fused_linear_kl(
    p_hidden: Tensor,
    p_weight: Tensor,
    q_hidden: Tensor,
    q_weight: Tensor,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    p_soft_cap: float | None = None,
    q_soft_cap: float | None = None,
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
        p_soft_cap, q_soft_cap: c of logits c tanh(logits / c), as those of Gemma 2.
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
    p = Head(p_hidden, p_weight, p_bias, p_soft_cap)
    q = Head(q_hidden, q_weight, q_bias, q_soft_cap)
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
    p_soft_cap: float | None = None,
    q_soft_cap: float | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    """w D(p || m) + (1 - w) D(q || m), m = w p + (1 - w) q; arguments as in ``fused_linear_kl``.

    Raises:
        ValueError: as there; ``weight`` (that of p) is not strictly between 0 and 1.
    """
    check_temperature(temperature)
    p = Head(p_hidden, p_weight, p_bias, p_soft_cap)
    q = Head(q_hidden, q_weight, q_bias, q_soft_cap)
    return _fused(js_rows(weight, temperature), p, q, mask, reduction)


def fused_linear_skew_kl(
    p_hidden: Tensor,
    p_weight: Tensor,
    q_hidden: Tensor,
    q_weight: Tensor,
    weight: float = 0.1,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    p_soft_cap: float | None = None,
    q_soft_cap: float | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    """D(p || w p + (1 - w) q) (Ko et al. 2024, eq. 3); otherwise as ``fused_linear_js``."""
    check_temperature(temperature)
    p = Head(p_hidden, p_weight, p_bias, p_soft_cap)
    q = Head(q_hidden, q_weight, q_bias, q_soft_cap)
    return _fused(skew_rows(weight, temperature), p, q, mask, reduction)


def _fused(
    divergence: Divergence, p: Head, q: Head, mask: Tensor | None, reduction: Reduction
) -> Tensor:
    check_reduction(reduction)
    check_heads(p, q)
    needs_gradient = (wants_gradient(p), wants_gradient(q))
    student = student_of(("a tensor of p", needs_gradient[0]), ("a tensor of q", needs_gradient[1]))
    shape = p.hidden.shape[:-1]
    counts = torch.ones(shape, dtype=torch.bool, device=p.hidden.device)
    if mask is not None:
        counts = fit_mask(mask, shape, "mask")
    rows = counts.flatten().nonzero().squeeze(-1)
    heads = [tensor for head in (p, q) for tensor in (head.hidden.flatten(0, -2), *head[1:3])]
    caps = p.soft_cap, q.soft_cap
    if student is None:
        with torch.no_grad():
            values, _ = _pass(divergence, *_heads(heads, caps), None, rows, [])
        return reduce(values.view(shape), counts, reduction)
    if reduction == "none":
        each: Tensor = _EachPosition.apply(divergence, student, rows, caps, *heads)
        return each.view(shape)
    total: Tensor = _Total.apply(divergence, student, rows, caps, *heads)
    # Every reduction is a multiple of the sum, the same for all values.
    ones = reduce(counts.to(total.dtype), counts, reduction)
    return total * (ones / max(len(rows), 1))


def _heads(tensors: Sequence[Tensor | None], caps: Caps) -> tuple[Head, Head]:
    heads = (Head(*tensors[3 * i : 3 * i + 3]) for i in (0, 1))  # type: ignore[arg-type]
    p, q = (head._replace(soft_cap=cap) for head, cap in zip(heads, caps, strict=True))
    return p, q


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
        for tensor, needs_gradient in zip(head[:3], needed, strict=False)
    ]
    for chunk in rows.split(max(1, _CHUNK_ELEMENTS // len(p.weight))):
        logits = (p.logits(chunk), q.logits(chunk))
        if student is None:
            values[chunk] = divergence_of_rows(divergence, *logits)
            continue
        gradient = logits[student]  # overwritten
        slope = head.slope_of_cap(gradient)
        scales = row_scales(gradient)
        gradients = (gradient, None) if student == 0 else (None, gradient)
        values[chunk] = divergence_of_rows(divergence, *logits, gradients, scales=scales)
        if slope is not None:
            gradient.mul_(slope)
        weights = None if upstream is None else upstream[chunk].to(dtype)
        if scales is not None:
            weights = (1 if weights is None else weights) / scales
        _accumulate(grads, head, chunk, gradient, weights)
    return values, grads


class _Total(torch.autograd.Function):
    """The sum of all values; forward computes its gradients while the logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        divergence: Divergence,
        student: int,
        rows: Tensor,
        caps: Caps,
        *tensors: Tensor | None,
    ) -> Tensor:
        needed = ctx.needs_input_grad[4 + 3 * student : 7 + 3 * student]
        values, grads = _pass(divergence, *_heads(tensors, caps), student, rows, needed)
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
        ctx: Any,
        divergence: Divergence,
        student: int,
        rows: Tensor,
        caps: Caps,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.divergence, ctx.student, ctx.caps = divergence, student, caps
        ctx.save_for_backward(rows, *tensors)
        return _pass(divergence, *_heads(tensors, caps), None, rows, [])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[4 + 3 * ctx.student : 7 + 3 * ctx.student]
        weights = upstream / ctx.divergence.temperature
        heads = _heads(tensors, ctx.caps)
        _, grads = _pass(ctx.divergence, *heads, ctx.student, rows, needed, weights)
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
