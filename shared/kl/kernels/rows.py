"""Divergences of rows of logits or probabilities, a few rows at a time, in memory used again."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..conventions import Temperature, check_weight
from . import few
from .entropy import entropy
from .job import Gradients, Job, rows_of
from .logits import kl
from .mixture import js, skew_kl
from .probs import kl_of_probs

_CPU_ELEMENTS = 2**18  # of a chunk: its buffers stay in the L3 cache
_GPU_ELEMENTS = 2**22


class Divergence(NamedTuple):
    """A kernel, which returns the values [rows] of a job, and the temperature of the logits."""

    kernel: Callable[[Job], Tensor]
    buffers: int
    """How many the kernel uses."""
    few: Callable[..., few.Result]
    """The same for a few elements."""
    temperature: Temperature = 1.0
    """[n, 1] if a tensor."""


def kl_rows(temperature: Temperature) -> Divergence:
    """D(p || q) of two softmaxes."""
    return Divergence(kl, 5, few.kl, temperature)


def js_rows(weight: float, temperature: Temperature) -> Divergence:
    """w D(p || m) + (1 - w) D(q || m) with m = w p + (1 - w) q, of two softmaxes."""
    check_weight(weight)
    return Divergence(partial(js, weight=weight), 7, partial(few.js, weight=weight), temperature)


def skew_rows(weight: float, temperature: Temperature) -> Divergence:
    """D(p || w p + (1 - w) q) of two softmaxes."""
    check_weight(weight)
    kernels = (partial(skew_kl, weight=weight), 7, partial(few.skew_kl, weight=weight))
    return Divergence(*kernels, temperature)


def entropy_rows(temperature: Temperature) -> Divergence:
    """H(p) of the softmax of the first argument; the second is not looked at."""
    return Divergence(entropy, 3, few.entropy, temperature)


KL_OF_PROBS = Divergence(kl_of_probs, 7, few.kl_of_probs)


def divergence_of_rows(
    divergence: Divergence,
    a: Tensor,
    b: Tensor,
    gradients: Gradients = (None, None),
    rows: Tensor | None = None,
    factor: Temperature = 1.0,
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
    if rows is not None:
        skipped = torch.ones(n, dtype=torch.bool, device=a.device).index_fill_(0, rows, False)
        for gradient in gradients:
            if gradient is not None:
                gradient[skipped] = 0
    count = n if rows is None else len(rows)
    values = torch.zeros(n, dtype=dtype, device=a.device)
    elements = _CPU_ELEMENTS if a.device.type == "cpu" else _GPU_ELEMENTS
    size = max(1, min(count, elements // categories))
    copies = [tensor is not None and tensor.dtype != dtype for tensor in (a, b)]
    outside = [g is not None and (rows is not None or g.dtype != dtype) for g in gradients]
    number = divergence.buffers + sum(copies) + sum(outside)
    memory = iter(_workspace(number, size, categories, dtype, a.device))
    if size == n and rows is None and number == divergence.buffers and scales is None:
        # All rows at once, and nothing to convert: slices would cost more than a small pass.
        return divergence.kernel(Job(a, b, divergence.temperature, gradients, factor, list(memory)))
    a_copy, b_copy, to_p, to_q = (next(memory) if needed else None for needed in copies + outside)
    buffers = list(memory)
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        chunk = part if rows is None else rows[part]
        length = part.stop - start
        targets = [
            gradient if gradient is None else gradient[part] if own is None else own[:length]
            for gradient, own in zip(gradients, (to_p, to_q), strict=True)
        ]
        job = Job(
            a[chunk] if a_copy is None else a_copy[:length].copy_(a[chunk]),
            b[chunk] if b_copy is None else b_copy[:length].copy_(b[chunk]),
            rows_of(divergence.temperature, chunk),
            (targets[0], targets[1]),
            rows_of(factor, chunk),
            [buffer[:length] for buffer in buffers],
        )
        values[chunk] = divergence.kernel(job)
        for gradient, target, own in zip(gradients, targets, (to_p, to_q), strict=True):
            if gradient is None or target is None:
                continue
            if scales is not None:
                scales[chunk] = _scale(target, exponent)
            if own is not None:
                gradient[chunk] = target.to(gradient.dtype)
    return values


_kept = threading.local()


def _workspace(
    number: int, size: int, categories: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[number, size, categories]; on CPUs kept for the next call, since malloc often returns memory
    of this size to the system, and page faults then take as long as the computation."""
    if device.type != "cpu":
        return torch.empty(number, size, categories, dtype=dtype, device=device)
    elements = number * size * categories
    kept: dict[Any, Tensor] = _kept.__dict__
    if dtype not in kept or kept[dtype].numel() < elements:
        kept[dtype] = torch.empty(elements, dtype=dtype)
    return kept[dtype][:elements].view(number, size, categories)


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
