"""Log-ratios of samples whose log-probabilities are those of the parameters, not of clamped ones.

torch takes log-probabilities of discrete distributions from probabilities that it has clamped to
the precision of their type, and moves samples of continuous ones that underflow.
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.nn.functional import logsigmoid

from ..categorical.bernoulli import bernoulli_log_prob
from .parameters import doubled, log_odds, log_probs, parameters_of

_TRIALS = (td.Bernoulli, td.Binomial, td.Geometric, td.NegativeBinomial)
CATEGORIES = (td.Categorical, td.OneHotCategorical, td.Multinomial)


def log_prob(distribution: Any, x: Tensor) -> Tensor:
    """log p(x) in float64, -inf where the parameters exclude x."""
    if isinstance(distribution, td.Independent):
        value = log_prob(distribution.base_dist, x)
        count = distribution.reinterpreted_batch_ndims
        return value.flatten(value.dim() - count).sum(-1) if count else value
    if isinstance(distribution, _TRIALS):
        return _of_trials(distribution, x.double())
    if isinstance(distribution, CATEGORIES):
        return _of_categories(distribution, x)
    value = distribution.log_prob(x)
    return value.double()


def _times(count: Tensor, log: Tensor) -> Tensor:
    """count * log, and 0 for a count of 0."""
    return torch.where(count == 0, 0.0, count * log)


def _of_trials(distribution: Any, x: Tensor) -> Tensor:
    odds = log_odds(parameters_of(distribution)).double()
    if isinstance(distribution, td.Bernoulli):
        return bernoulli_log_prob(x, odds)
    success, failure = logsigmoid(odds), logsigmoid(-odds)
    if isinstance(distribution, td.Geometric):
        return success + _times(x, failure)
    n = distribution.total_count.double()
    if isinstance(distribution, td.Binomial):
        choices = torch.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)
        return choices + _times(x, success) + _times(n - x, failure)
    choices = torch.lgamma(n + x) - torch.lgamma(x + 1) - torch.lgamma(n)
    choices = torch.where(n + x == 0, 0.0, choices)
    return choices + _times(x, success) + _times(n, failure)


def _of_categories(distribution: Any, x: Tensor) -> Tensor:
    categorical = getattr(distribution, "_categorical", distribution)
    logs = log_probs(parameters_of(categorical)).double().log_softmax(-1)
    if isinstance(distribution, td.Categorical):
        logs, index = torch.broadcast_tensors(logs, x.long()[..., None])
        return logs.gather(-1, index[..., :1]).squeeze(-1)
    value = _times(x.double(), logs).sum(-1)
    if isinstance(distribution, td.Multinomial):
        n = torch.as_tensor(float(distribution.total_count), dtype=torch.float64)
        value = value + torch.lgamma(n + 1) - torch.lgamma(x.double() + 1).sum(-1)
    return value


def draw(p: Any, samples: int) -> Tensor:
    """Samples of p [samples, *batch, *event], in float64 where p is continuous and torch's own.

    Raises:
        ValueError: a continuous p so near the edge of its support that draws underflow: torch moves
            them, and no estimate from them is right.
    """
    continuous = not p.support.is_discrete
    if continuous and type(p).__module__.startswith("torch.") and p.arg_constraints:
        p = doubled(p)
    x: Tensor = p.sample((samples,))
    moved = _at_the_edge(p, x) if continuous else None
    if moved is not None and moved.any():
        raise ValueError(
            f"p is so near the edge of its support that {int(moved.sum())} draws of "
            f'{type(p).__name__} underflow; method="exact" draws none'
        )
    return x


def _at_the_edge(p: Any, x: Tensor) -> Tensor | None:
    """Draws at 0, where p has densities of positive numbers, or at the other end of an interval."""
    limits = torch.finfo(x.dtype)
    if isinstance(p, td.Dirichlet):
        return (x <= limits.tiny) | (x >= 1 - limits.eps)
    support = p.support.base_constraint if isinstance(p, td.Independent) else p.support
    low, high = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    if not isinstance(low, int | float) or low != 0:
        return None
    small = x <= 1e3 * limits.tiny
    return small if high is None else small | (x >= high * (1 - limits.eps))
