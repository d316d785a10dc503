"""A Monte Carlo estimate of a divergence: its value, its error, and whether to trust it."""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..conventions import widened

HEAVY_SHARE = 0.1  # of the variance in one term; 1000 squares of normal terms have 0.05


class KLEstimate(NamedTuple):
    """A mean of ``n`` independent terms; every tensor has the batch shape.

    Unpacks as ``mean, stderr, n, minimum``.
    """

    mean: Tensor
    stderr: Tensor
    """Standard error of ``mean``: the terms' standard deviation (n - 1 below) over sqrt(n)."""
    n: int
    minimum: Tensor
    """The smallest term. Negative is legal for log-ratios: the estimate may then be below 0."""

    @classmethod
    def from_terms(cls, terms: Tensor, dim: int = 0) -> Self:
        """The estimate from its independent terms, removed along ``dim``.

        ``mean`` keeps the graph; ``stderr`` and ``minimum`` are detached. A term of +inf makes the
        mean inf and the standard error nan: no error is known then.

        Raises:
            ValueError: ``terms`` is not of a floating-point type, has no dimension ``dim``, or has
                fewer than two terms (no standard error exists).
        """
        (terms,) = widened(terms=terms)
        if not -terms.dim() <= dim < terms.dim():
            raise ValueError(f"terms of shape {list(terms.shape)} has no dimension {dim}")
        n = terms.shape[dim]
        if n < 2:
            raise ValueError(f"terms must be at least 2 along dimension {dim}, got {n}")
        fixed = terms.detach()
        return cls(
            mean=terms.mean(dim), stderr=fixed.std(dim) / math.sqrt(n), n=n, minimum=fixed.amin(dim)
        )


class TermSummary(NamedTuple):
    """An estimate and how far its standard error can be trusted; tensors of the batch shape."""

    estimate: KLEstimate
    largest_share: Tensor
    """The largest squared deviation from the mean over the sum of all of them, in [0, 1]."""
    heavy_tailed: Tensor
    """bool: one term makes more than a tenth of the variance, or a term is not finite."""


def summarise_terms(terms: Tensor, dim: int = 0) -> TermSummary:
    """Mean and standard error of independent terms, and whether one term rules the error.

    The share of the largest term in a sum tends to zero exactly if its mean is finite (O'Brien
    1980, "A limit theorem for sample maxima"); among squared deviations, exactly if the variance
    is. Of the sum itself it says little: a million terms of k3 at p = N(0, 1) and q of variance 3,
    whose variance is infinite, sum to 2e5 and the largest is 3e3. Skewed laws of
    finite variance raise the flag too, below some thousand terms above all.

    Args:
        terms: independent terms along ``dim``, one per sequence, not per token: tokens of one
            sequence are not independent, sum them first.

    Raises:
        ValueError: as ``KLEstimate.from_terms``.
    """
    (terms,) = widened(terms=terms)
    estimate = KLEstimate.from_terms(terms, dim)
    fixed = terms.detach()
    squares = (fixed - fixed.mean(dim, keepdim=True)).square()
    total = squares.sum(dim)
    share = torch.where(total == 0, 0.0, squares.amax(dim) / torch.where(total == 0, 1.0, total))
    return TermSummary(estimate, share, ~(share <= HEAVY_SHARE))  # a NaN share is a warning too
