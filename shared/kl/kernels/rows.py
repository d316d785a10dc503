"""Divergences of rows of logits or probabilities, a few rows at a time, in memory used again."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..conventions import check_temperature, check_weight
from .entropy import entropy
from .jensen_shannon import js
from .job import BUFFERS, Job
from .logits import kl, kl_fast
from .probs import kl_of_probs

Gradients = tuple[Tensor | None, Tensor | None]

_CPU_ELEMENTS = 2**16  # of a chunk: its buffers about fill the L2 cache
_GPU_ELEMENTS = 2**22
_FEW_ELEMENTS = 2**12  # for so few, steps cost more than elements: float64 needs the fewest


class Divergence(NamedTuple):
    """A kernel, which returns the values [rows] of a job, and the temperature of the logits."""

    kernel: Callable[[Job], Tensor]
    temperature: float = 1.0


def kl_rows(temperature: float, precise: bool = True) -> Divergence:
    """D(p || q) of two softmaxes."""
    check_temperature(temperature)
    return Divergence(kl if precise else kl_fast, temperature)


def js_rows(weight: float, temperature: float) -> Divergence:
    """w D(p || m) + (1 - w) D(q || m) with m = w p + (1 - w) q, of two softmaxes."""
    check_temperature(temperature)
    check_weight(weight)
    return Divergence(partial(js, weight=weight), temperature)


def entropy_rows(temperature: float) -> Divergence:
    """H(p) of the softmax of the first argument; the second is not looked at."""
    check_temperature(temperature)
    return Divergence(entropy, temperature)


KL_OF_PROBS = Divergence(kl_of_probs)


def divergence_of_rows(
    divergence: Divergence,
    a: Tensor,
    b: Tensor,
    gradients: Gradients = (None, None),
    rows: Tensor | None = None,
    factor: float = 1.0,
    scales: Tensor | None = None,
    exponent: int = 0,
) -> Tensor:
    """Values [n] of logits or probabilities [n, categories]; to be called without grad mode.

    Args:
        gradients: [n, categories] each, None where none is needed: receive the gradients of each
            value to a / T and b / T; one of them may be a or b itself.
        rows: indices of the rows to compute. Of the others nothing is read, and values and
            gradients are 0.
        factor: multiplies the gradients.
        scales: [n] that receives the power of two by which each row of the only gradient is
            multiplied, so that its largest entry lies between half of 2^exponent and 2^exponent:
            what float16 would round to 0 keeps its digits.
    """
    n, categories = a.shape
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    wide = dtype == torch.float32 and a.numel() <= _FEW_ELEMENTS and a.device.type != "mps"
    if rows is not None:
        skipped = torch.ones(n, dtype=torch.bool, device=a.device).index_fill_(0, rows, False)
        for gradient in gradients:
            if gradient is not None:
                gradient[skipped] = 0
    count = n if rows is None else len(rows)
    values = torch.zeros(n, dtype=dtype, device=a.device)
    if wide:
        dtype = torch.float64
    elements = _CPU_ELEMENTS if a.device.type == "cpu" else _GPU_ELEMENTS
    size = max(1, min(count, elements // categories))
    # One piece of memory, which the allocator keeps for the next call.
    a_copy, b_copy, to_p, to_q, *buffers = torch.empty(
        BUFFERS + 4, size, categories, dtype=dtype, device=a.device
    )
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        chunk = part if rows is None else rows[part]
        length = part.stop - start
        targets = [
            None
            if gradient is None
            else gradient[part]
            if rows is None and gradient.dtype == dtype
            else outside[:length]
            for gradient, outside in zip(gradients, (to_p, to_q), strict=True)
        ]
        job = Job(
            _fetch(a, chunk, a_copy[:length]),
            _fetch(b, chunk, b_copy[:length]),
            divergence.temperature,
            (targets[0], targets[1]),
            factor,
            [buffer[:length] for buffer in buffers],
            wide,
        )
        values[chunk] = divergence.kernel(job).to(values.dtype)
        for gradient, target in zip(gradients, targets, strict=True):
            if gradient is None or target is None:
                continue
            if scales is not None:
                scales[chunk] = _scale(target, exponent).to(scales.dtype)
            if rows is not None or target.dtype != gradient.dtype or scales is not None:
                gradient[chunk] = target.to(gradient.dtype)
    return values


def _scale(target: Tensor, exponent: int) -> Tensor:
    """Multiplies each row by the power of two that is returned."""
    _, exponents = torch.frexp(target.abs().amax(-1))
    scales = torch.ldexp(target.new_ones(len(target)), exponent - exponents.clamp(min=-100))
    target.mul_(scales[:, None])
    return scales


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


def _fetch(values: Tensor, chunk: slice | Tensor, copy: Tensor) -> Tensor:
    """The chunk in the precision of ``copy``, which is used if there is anything to convert."""
    rows = values[chunk]
    return rows if rows.dtype == copy.dtype else copy.copy_(rows)
