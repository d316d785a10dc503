"""What the kernels share: a few rows, buffers that stay in the cache, and exp(x) - 1 - x.

A kernel computes a divergence of a few rows and its gradients at once. Passes over fresh memory are
what a KL of many categories costs, so that every step writes into a buffer.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..conventions import Temperature

SERIES_BELOW = 2.0
_NEAR_ONE = 2.0


Gradients = tuple[Tensor | None, Tensor | None]


class Job(NamedTuple):
    """A few rows [rows, categories] of float32 or float64, and where results go."""

    a: Tensor  # what p is made of: logits, or probabilities
    b: Tensor  # what q is made of
    temperature: Temperature  # [rows, 1] if a tensor
    gradients: Gradients
    """To a / T and b / T. One of them may be a or b itself: they are read first."""
    factor: Temperature  # of the gradients
    buffers: list[Tensor]  # [rows, categories] each, content undefined


def in_place(job: Job, side: int, buffer: Tensor) -> Tensor:
    """Where a gradient goes, as memory for what it is made of; the buffer if that is read last."""
    target = job.gradients[side]
    logits = {job.a.data_ptr(), job.b.data_ptr()}
    return buffer if target is None or target.data_ptr() in logits else target


def expectation(p: Tensor, u: Tensor, scratch: Tensor) -> Tensor:
    """E_p u, [rows, 1], by ``sum``: a matrix product would lose three digits over a vocabulary."""
    return torch.mul(p, u, out=scratch).sum(-1, keepdim=True)


def largest(x: Tensor) -> float:
    """The largest |x|."""
    return max(-x.amin().item(), x.amax().item())


def series(x: Tensor, limit: float, out: Tensor) -> Tensor:
    """exp(x) - 1 - x for |x| <= limit: x^2 (1/2! + x/3! + ...), as many terms as are seen."""
    terms, term, rounding = 0, 1.0, torch.finfo(x.dtype).eps / 3
    while term > rounding:  # the next one, of 2 (exp(x) - 1 - x) / x^2
        terms += 1
        term *= limit / (terms + 2)
    out.fill_(1 / math.factorial(terms + 1))
    for n in range(terms, 1, -1):
        out.mul_(x).add_(1 / math.factorial(n))
    return out.mul_(x).mul_(x)


def excess(p: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """E_p[exp(x) - 1 - x], [rows, 1], of any x, without cancellation; three buffers."""
    limit = largest(x)
    if limit < SERIES_BELOW:
        return expectation(p, series(x, limit, out=a), scratch=a)
    near = torch.clamp(x, -SERIES_BELOW, SERIES_BELOW, out=b)
    rest = torch.expm1(near, out=c).sub_(near)
    torch.expm1(x, out=a).sub_(x).sub_(rest)  # exactly 0 where x is near
    return expectation(p, a.add_(series(near, SERIES_BELOW, out=c)), scratch=a)


def fast_expm1(x: Tensor, most: float, out: Tensor) -> float:
    """exp(x) - 1 for x up to ``most``; returns a KL below which it has too few digits.

    Where some x are large it is 2^(x / ln 2) - 1, which torch has four times as fast as expm1.
    """
    if most < _NEAR_ONE:
        torch.expm1(x, out=out)
        return 0.02
    torch.mul(x, 1 / math.log(2), out=out).exp2_().sub_(1)
    return 0.1


def rows_below(limit: float, values: Tensor) -> Tensor | None:
    """Indices of rows of [rows, 1] below ``limit``, if there are any."""
    if values.amin().item() >= limit:
        return None
    few = (values < limit).squeeze(-1).nonzero().squeeze(-1)
    return few if len(few) else None  # NaN is not less


def part_of(job: Job, few: Tensor) -> Job:
    """The same for a few rows, in the same buffers, but with gradients of its own."""
    a, b = job.a[few], job.b[few]
    to_p, to_q = (None if each is None else torch.empty_like(a) for each in job.gradients)
    buffers = [buffer[: len(few)] for buffer in job.buffers]
    return Job(a, b, rows_of(job.temperature, few), (to_p, to_q), rows_of(job.factor, few), buffers)


def is_one(temperature: Temperature) -> bool:
    """Whether nothing has to be divided."""
    return not isinstance(temperature, Tensor) and temperature == 1


def rows_of(value: Temperature, rows: Tensor | slice) -> Temperature:
    """Of a tensor [n, 1]; a number is that of all rows."""
    return value[rows] if isinstance(value, Tensor) else value


def put_back(job: Job, few: Tensor, part: Job) -> None:
    """The gradients of these rows into those of the job."""
    for whole, rows in zip(job.gradients, part.gradients, strict=True):
        if whole is not None and rows is not None:
            whole[few] = rows
