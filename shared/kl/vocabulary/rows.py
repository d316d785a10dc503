"""Divergences of rows of logits with their gradient, a few rows at a time, in memory used again.

What ``vocabulary.logits`` and ``vocabulary.hidden_states`` are made of.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..conventions import check_temperature, check_weight
from .kernels import BUFFERS, Job, js, kl, kl_fast


class Divergence(NamedTuple):
    """A divergence of two softmaxes: its values [rows] of a job, and the temperature."""

    kernel: Callable[[Job], Tensor]
    temperature: float


def kl_rows(temperature: float, precise: bool = True) -> Divergence:
    """D(p || q)."""
    check_temperature(temperature)
    return Divergence(kl if precise else kl_fast, temperature)


def js_rows(weight: float, temperature: float) -> Divergence:
    """w D(p || m) + (1 - w) D(q || m) with m = w p + (1 - w) q."""
    check_temperature(temperature)
    check_weight(weight)
    return Divergence(partial(js, weight=weight), temperature)


def divergence_of_rows(
    divergence: Divergence,
    p_logits: Tensor,
    q_logits: Tensor,
    student: int = 1,
    gradient: Tensor | None = None,
    rows: Tensor | None = None,
    factor: float = 1.0,
    scales: Tensor | None = None,
    exponent: int = 0,
) -> Tensor:
    """Values [n] of logits [n, vocabulary]; to be called without grad mode.

    Args:
        student: which argument the gradient belongs to, 0 or 1.
        gradient: [n, vocabulary] that receives the gradient of each value to the student's
            logits / T; it may be the student's logits themselves.
        rows: indices of the rows to compute. Of the others nothing is read, and value and
            gradient are 0.
        factor: multiplies the gradient.
        scales: [n] that receives the power of two by which each row of the gradient is multiplied,
            so that its largest entry lies between half of 2^exponent and 2^exponent: what float16
            would round to 0 keeps its digits.
    """
    n, vocabulary = p_logits.shape
    dtype = torch.promote_types(p_logits.dtype, q_logits.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    values = torch.zeros(n, dtype=dtype, device=p_logits.device)
    if rows is not None and gradient is not None:
        skipped = torch.ones(n, dtype=torch.bool, device=p_logits.device)
        gradient[skipped.index_fill_(0, rows, False)] = 0
    count = n if rows is None else len(rows)
    # Three buffers of a chunk about fill the L2 cache, of a core or of a GPU.
    size = max(1, min(count, (2**22 if p_logits.is_cuda else 2**18) // vocabulary))
    p_copy, q_copy, outside, *buffers = (
        values.new_empty(size, vocabulary) for _ in range(BUFFERS + 3)
    )
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        chunk = part if rows is None else rows[part]
        length = part.stop - start
        p, q = _fetch(p_logits, chunk, p_copy[:length]), _fetch(q_logits, chunk, q_copy[:length])
        direct = gradient is not None and rows is None and gradient.dtype == dtype
        target = None if gradient is None else gradient[part] if direct else outside[:length]
        free = [buffer[:length] for buffer in buffers]
        job = Job(p, q, divergence.temperature, student, target, free)
        values[chunk] = divergence.kernel(job)
        if target is not None and factor != 1:
            target.mul_(factor)
        if target is not None and scales is not None:
            _, exponents = torch.frexp(target.abs().amax(-1))
            scales[chunk] = torch.ldexp(
                torch.ones_like(values[chunk]), exponent - exponents.clamp(min=-100)
            )
            target.mul_(scales[chunk, None])
        if gradient is not None and target is not None and not direct:
            gradient[chunk] = target if rows is None else target.to(gradient.dtype)
    return values


def row_scales(gradient: Tensor) -> Tensor | None:
    """Where ``divergence_of_rows`` puts the scales of a float16 gradient [n, vocabulary]."""
    return (
        torch.ones(len(gradient), device=gradient.device)
        if gradient.dtype == torch.float16
        else None
    )


def scale_rows(gradient: Tensor, weights: Tensor) -> None:
    """Multiply the rows [n, vocabulary] by ``weights`` [n] in float32, a few at a time."""
    if gradient.dtype == weights.dtype:
        gradient.mul_(weights[:, None])
        return
    size = max(1, 2**22 // gradient.shape[1])
    for rows, factors in zip(gradient.split(size), weights.split(size), strict=True):
        rows.copy_(rows.to(weights.dtype) * factors[:, None])


def _fetch(logits: Tensor, chunk: slice | Tensor, copy: Tensor) -> Tensor:
    """The chunk in the precision of ``copy``, which is used if there is anything to convert."""
    rows = logits[chunk]
    return rows if rows.dtype == copy.dtype else copy.copy_(rows)
