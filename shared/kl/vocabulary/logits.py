"""KL and Jensen-Shannon divergence of language-model logits, with the gradient in the same pass.

As ``kl_from_logits`` and ``js_from_logits``, whose kernels these are, for logits of which even one
copy is much: the gradient is kept in the logits' own type, or written over them, and they are not
saved for backward. In exchange only one argument can get a gradient, and there are no second
derivatives (a trust region needs ``kl_from_logits``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..conventions import (
    Reduction,
    Temperature,
    check_floating,
    check_reduction,
    check_weight,
    fit_mask,
    fit_temperature,
    reduction_weight,
)
from ..kernels.rows import (
    Divergence,
    divergence_of_rows,
    js_rows,
    kl_rows,
    row_scales,
    scale_rows,
    skew_rows,
)


def chunked_kl(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
    inplace: bool = False,
) -> Tensor:
    """D(softmax(p_logits / T) || softmax(q_logits / T)), in little time and memory.

    The student is the argument that requires a gradient: ``chunked_kl(teacher, student)`` is the
    forward KL of distillation, ``chunked_kl(student, teacher)`` the reverse. There is no implicit
    factor T^2.

    Args:
        p_logits, q_logits: [..., vocabulary], of the same shape; -inf excludes a category.
        temperature: T, a number or a tensor that broadcasts with [...].
        mask: bool, broadcastable with [...], True for positions that count. The others are
            neither read nor computed. To drop positions, mask them: a slice such as
            ``logits[:, :-1]`` is copied.
        reduction: see ``conventions.reduce``.
        inplace: write the gradient over the student's logits, so that nothing of their size is
            allocated. An operation that kept the logits for its own backward raises RuntimeError
            there (autograd counts a tensor's versions); but code that reads them afterwards finds
            the gradient, and nothing can warn it.

    Returns:
        Nats, [...] or a scalar, in float32 (float64 if an argument is). Never negative; +inf where
        q_logits is -inf and p_logits is not. The upstream gradient, and with it any loss scale,
        multiplies the gradient where that is kept, so that a second backward through the same graph
        raises RuntimeError; float16 loses nothing by it, rows are kept in units of their largest.

    Raises:
        ValueError: both arguments require a gradient; shapes that differ; integers; a temperature
            that is not positive; a bad mask or reduction; ``inplace`` and a student that is a leaf
            or whose rows do not lie at equal distances.
    """
    return _chunked(kl_rows, temperature, p_logits, q_logits, mask, reduction, inplace)


def chunked_js(
    p_logits: Tensor,
    q_logits: Tensor,
    weight: float = 0.5,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
    inplace: bool = False,
) -> Tensor:
    """w D(p || m) + (1 - w) D(q || m), m = w p + (1 - w) q, of softmaxes (Lin 1991, eq. 4.1).

    Everything else as in ``chunked_kl``.

    Raises:
        ValueError: as there; ``weight`` (that of p) is not strictly between 0 and 1.
    """
    check_weight(weight)
    return _chunked(
        partial(js_rows, weight), temperature, p_logits, q_logits, mask, reduction, inplace
    )


def chunked_skew_kl(
    p_logits: Tensor,
    q_logits: Tensor,
    weight: float = 0.1,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
    inplace: bool = False,
) -> Tensor:
    """D(p || w p + (1 - w) q) of softmaxes (Ko et al. 2024, eq. 3); otherwise as ``chunked_js``."""
    check_weight(weight)
    divergence_at = partial(skew_rows, weight)
    return _chunked(divergence_at, temperature, p_logits, q_logits, mask, reduction, inplace)


def student_of(p: tuple[str, bool], q: tuple[str, bool]) -> int | None:
    """The student of two (name, requires a gradient), 0 or 1; None if neither is."""
    if p[1] and q[1]:
        raise ValueError(
            f"{p[0]} and {q[0]} both require a gradient: detach one of them, "
            "or use kl_from_logits or js_from_logits"
        )
    return 0 if p[1] else 1 if q[1] else None


def _chunked(
    divergence_at: Callable[[Temperature], Divergence],
    temperature: Temperature,
    p_logits: Tensor,
    q_logits: Tensor,
    mask: Tensor | None,
    reduction: Reduction,
    inplace: bool,
) -> Tensor:
    check_reduction(reduction)
    check_floating(p_logits=p_logits, q_logits=q_logits)
    if p_logits.shape != q_logits.shape:
        raise ValueError(
            f"p_logits of shape {list(p_logits.shape)} and q_logits of shape "
            f"{list(q_logits.shape)} must have the same shape"
        )
    if p_logits.dim() == 0 or p_logits.shape[-1] == 0:
        raise ValueError(f"p_logits of shape {list(p_logits.shape)} has no categories")
    shape = p_logits.shape[:-1]
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError("temperature requires a gradient: use kl_from_logits or js_from_logits")
    temperature = fit_temperature(temperature, shape)
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(-1, 1)
    divergence = divergence_at(temperature)
    rows = None
    if mask is not None:
        mask = fit_mask(mask, shape, "mask")
        rows = mask.flatten().nonzero().squeeze(-1)
    grad = torch.is_grad_enabled()
    student = student_of(
        ("p_logits", grad and p_logits.requires_grad), ("q_logits", grad and q_logits.requires_grad)
    )
    if inplace and student is not None:
        _check_inplace(("p_logits", "q_logits")[student], (p_logits, q_logits)[student])
    weight = reduction_weight(reduction, shape, None if rows is None else len(rows))
    values: Tensor = _Rows.apply(
        *(logits.reshape(-1, logits.shape[-1]) for logits in (p_logits, q_logits)),
        divergence,
        student,
        rows,
        weight,
        inplace,
    )
    return values.view(shape) if reduction == "none" else values.sum()


def _check_inplace(name: str, logits: Tensor) -> None:
    if logits.is_leaf:
        raise ValueError(f"{name} is a leaf: inplace would replace a parameter by its gradient")
    try:
        logits.view(-1, logits.shape[-1])
    except RuntimeError:
        raise ValueError(
            f"{name} of strides {list(logits.stride())} cannot be viewed as rows: inplace would "
            "write into a copy; mask positions instead of slicing them off"
        ) from None


class _Rows(torch.autograd.Function):
    """Values of rows [n, vocabulary] -> [n]; forward writes the gradient, backward scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        p_logits: Tensor,
        q_logits: Tensor,
        divergence: Divergence,
        student: int | None,
        rows: Tensor | None,
        weight: float,
        inplace: bool,
    ) -> Tensor:
        if student is None:
            return weight * divergence_of_rows(divergence, p_logits, q_logits, rows=rows)
        logits = (p_logits, q_logits)[student]
        # detach() shares the version counter, so that autograd notices who kept these logits.
        gradient = logits.detach() if inplace else torch.empty_like(logits)
        factor, scales = weight / divergence.temperature, row_scales(gradient)
        gradients = (gradient, None) if student == 0 else (None, gradient)
        values = divergence_of_rows(
            divergence, p_logits, q_logits, gradients, rows, factor, scales, exponent=15
        )
        ctx.student, ctx.given = student, False
        ctx.save_for_backward(gradient, *([] if scales is None else [scales]))
        return weight * values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.given:
            raise RuntimeError(
                "the gradient of a chunked divergence exists once: no second backward"
            )
        ctx.given = True
        gradient, *scales = ctx.saved_tensors
        weights = upstream / scales[0] if scales else upstream
        if weights.is_cuda or not bool((weights == 1).all()):
            scale_rows(gradient, weights)
        grads: list[Tensor | None] = [None] * 7
        grads[ctx.student] = gradient.view(gradient.shape)
        return tuple(grads)
