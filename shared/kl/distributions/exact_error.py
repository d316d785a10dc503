"""The standard deviation of log p(x) - log q(x) under p, where it can be known without samples.

Samples do not show what they do not contain: of a thousand draws none may be the outcome of
probability 1e-6 to which q gives nothing, and an error made of those draws would exclude the truth.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from .monte_carlo import CATEGORIES, log_prob

_MOST = 10_000_000  # outcomes, of all distributions of a batch together
_TAIL = 50  # standard deviations


def exact_deviation(p: Any, q: Any) -> Tensor | None:
    """[*batch] in float64, +inf where q excludes what p does not; None where p has a density."""
    if not p.support.is_discrete:
        return None
    if isinstance(p, td.Independent):
        if not isinstance(q, td.Independent) or p.event_shape != q.event_shape:
            return None
        base = exact_deviation(p.base_dist, q.base_dist)
        count = p.reinterpreted_batch_ndims
        if base is None or count == 0 or count != q.reinterpreted_batch_ndims:
            return base
        return base.square().flatten(base.dim() - count).sum(-1).sqrt()
    draws = 1
    if isinstance(p, CATEGORIES) and not isinstance(p, td.Categorical):  # sums of such draws
        if isinstance(p, td.Multinomial):
            if not isinstance(q, td.Multinomial) or p.total_count != q.total_count:
                return None
            draws = p.total_count
        p, q = p._categorical, getattr(q, "_categorical", q)
    x = _outcomes(p)
    if x is None or q.event_shape:
        return None
    return math.sqrt(draws) * _deviation(p, q, x)


def _outcomes(p: Any) -> Tensor | None:
    """0, 1, ... [n, *1 per dimension of the batch], as far as p has any mass."""
    if p.has_enumerate_support and isinstance(p, td.Categorical):
        most = p.param_shape[-1] - 1
    elif isinstance(p, td.Bernoulli):
        most = 1
    elif isinstance(p, td.Binomial):
        most = int(p.total_count.max().item())
    else:
        most = math.ceil((p.mean + _TAIL * p.stddev).max().item()) + _TAIL
    shape = torch.Size(p.batch_shape)
    if (most + 1) * shape.numel() > _MOST:
        return None
    return torch.arange(most + 1, dtype=torch.float64).view(-1, *[1] * len(shape))


def _deviation(p: Any, q: Any, x: Tensor) -> Tensor:
    def of(distribution: Any) -> Tensor:
        inside = distribution.support.check(x)
        return torch.where(inside, log_prob(distribution, torch.where(inside, x, 0.0)), -torch.inf)

    log_p, log_q = torch.broadcast_tensors(of(p), of(q))
    probability = log_p.exp()
    possible = probability > 0
    ratio = torch.where(possible, torch.where(possible, log_p, 0.0) - log_q, 0.0)
    excluded = ratio.isinf().any(0)
    ratio = torch.where(ratio.isinf(), 0.0, ratio)
    mean = (probability * ratio).sum(0)
    variance = (probability * (ratio - mean).square()).sum(0)
    return torch.where(excluded, torch.inf, variance.sqrt())


def exceeds(p: Any, q: Any) -> Tensor:
    """bool [*batch]: p has a density on a wider interval than q, where D(p || q) is infinite."""
    if p.support.is_discrete or p.support.event_dim:
        return torch.zeros(p.batch_shape, dtype=torch.bool)
    low_p, high_p = _bounds(p.support)
    low_q, high_q = _bounds(q.support)
    return (low_p < low_q) | (high_p > high_q)


def _bounds(support: Any) -> tuple[Tensor, Tensor]:
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    return torch.as_tensor(low).double(), torch.as_tensor(high).double()
