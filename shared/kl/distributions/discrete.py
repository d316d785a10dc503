"""Closed forms for pairs of discrete torch.distributions: torch has none or its own is wrong.

Each function takes p and q of one event shape and returns D(p || q) in nats, of the broadcast batch
shape, float32 at least. Elementwise formulas are computed in float64. ``DISCRETE`` at the end says
which function serves which pair of types.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from ..categorical.bernoulli import kl_bernoulli
from ..categorical.discrete import kl_from_logits, kl_from_probs
from ..conventions import only_plain_operations
from .parameters import Parameters, log_odds, log_probs, narrow, parameters_of, wide

PairTable = list[tuple[type, type, Callable[[Any, Any], Tensor]]]


# Bernoulli, categorical, and what is built from them


def categorical(p: td.Categorical, q: td.Categorical) -> Tensor:
    """From the parameters given: probabilities and logits are compared in their own precision."""
    from_p, from_q = parameters_of(p), parameters_of(q)
    k_p, k_q = from_p.parameter.shape[-1], from_q.parameter.shape[-1]
    if k_p != k_q:
        raise ValueError(f"p and q must have the same categories, got {k_p} and {k_q}")
    if not from_p.is_logits and not from_q.is_logits:
        return kl_from_probs(from_p.parameter, from_q.parameter)
    return kl_from_logits(log_probs(from_p), log_probs(from_q))


def _categorical_of(distribution: Any) -> td.Categorical:
    """The categorical behind a one-hot or multinomial distribution."""
    return getattr(distribution, "_categorical", distribution)


def categorical_or_one_hot(p: Any, q: Any) -> Tensor:
    return categorical(_categorical_of(p), _categorical_of(q))


def multinomial(p: td.Multinomial, q: td.Multinomial) -> Tensor:
    """Counts that sum to different totals are never equal: +inf."""
    value = categorical_or_one_hot(p, q)
    if p.total_count != q.total_count:
        return torch.full_like(value, torch.inf)
    return p.total_count * value if p.total_count else torch.zeros_like(value)


def _bernoulli_trial(p: Any, q: Any) -> Tensor:
    """D between Bernoulli(p.probs) and Bernoulli(q.probs), in float64."""
    from_p, from_q = parameters_of(p), parameters_of(q)
    a, b = wide(from_p.parameter, from_q.parameter)
    if not from_p.is_logits and not from_q.is_logits:
        return kl_from_probs(torch.stack([a, 1 - a], -1), torch.stack([b, 1 - b], -1))
    return kl_bernoulli(
        log_odds(Parameters(from_p.is_logits, a)), log_odds(Parameters(from_q.is_logits, b))
    )


def _outcomes(distribution: Any) -> tuple[Tensor, Tensor]:
    """probs and 1 - probs, in float64."""
    is_logits, parameter = parameters_of(distribution)
    wider = parameter.double()
    if is_logits:
        return torch.sigmoid(wider), torch.sigmoid(-wider)
    return wider, 1 - wider


def bernoulli(p: td.Bernoulli, q: td.Bernoulli) -> Tensor:
    return narrow(_bernoulli_trial(p, q), parameters_of(p).parameter, parameters_of(q).parameter)


def bernoulli_poisson(p: td.Bernoulli, q: td.Poisson) -> Tensor:
    """Against the measure (rate, 1), whose total of 1 + rate the constants make up for."""
    one, zero, rate = torch.broadcast_tensors(*_outcomes(p), q.rate.double())
    measure = torch.stack([rate, torch.ones_like(rate)], -1)
    return narrow(
        kl_from_probs(torch.stack([one, zero], -1), measure), parameters_of(p).parameter, q.rate
    )


def binomial(p: td.Binomial, q: td.Binomial) -> Tensor:
    """n times the Bernoullis' D; +inf where p reaches counts beyond q's.

    Raises:
        NotImplementedError: p has fewer trials than q: no closed form.
    """
    if not only_plain_operations() and bool((p.total_count < q.total_count).any()):
        raise NotImplementedError(
            "no closed form for Binomials where p.total_count < q.total_count; "
            'method="monte_carlo" estimates it'
        )
    trial = _bernoulli_trial(p, q)
    beyond = (p.total_count > q.total_count) & (log_odds(parameters_of(p)) > -torch.inf)
    value = q.total_count * torch.where(q.total_count > 0, trial, 0.0)
    return narrow(
        torch.where(
            p.total_count < q.total_count, torch.nan, torch.where(beyond, torch.inf, value)
        ),
        parameters_of(p).parameter,
        parameters_of(q).parameter,
    )


def geometric(p: td.Geometric, q: td.Geometric) -> Tensor:
    """The number of trials, 1 / probs on average, times the Bernoullis' D."""
    value = _bernoulli_trial(p, q) / _outcomes(p)[0]
    return narrow(value, parameters_of(p).parameter, parameters_of(q).parameter)


def negative_binomial(p: td.NegativeBinomial, q: td.NegativeBinomial) -> Tensor:
    """total_count / (1 - probs) trials on average, times the Bernoullis' D.

    Raises:
        NotImplementedError: different total_count: no closed form.
    """
    if not only_plain_operations() and bool((p.total_count != q.total_count).any()):
        raise NotImplementedError(
            "no closed form for NegativeBinomials of different total_count; "
            'method="monte_carlo" estimates it'
        )
    value = p.total_count * _bernoulli_trial(p, q) / _outcomes(p)[1]
    value = torch.where(
        p.total_count == q.total_count, value, torch.nan
    )  # not checked by compilers
    return narrow(value, parameters_of(p).parameter, parameters_of(q).parameter)


def poisson(p: td.Poisson, q: td.Poisson) -> Tensor:
    """p log(p/q) - p + q of the rates, the generalised divergence of one-cell measures."""
    rate_p, rate_q = wide(p.rate, q.rate)
    return narrow(kl_from_probs(rate_p[..., None], rate_q[..., None]), p.rate, q.rate)


DISCRETE: PairTable = [
    (td.Bernoulli, td.Bernoulli, bernoulli),
    (td.Bernoulli, td.Poisson, bernoulli_poisson),
    (td.Binomial, td.Binomial, binomial),
    (td.Categorical, td.Categorical, categorical),
    (td.Categorical, td.OneHotCategorical, categorical_or_one_hot),
    (td.OneHotCategorical, td.Categorical, categorical_or_one_hot),
    (td.OneHotCategorical, td.OneHotCategorical, categorical_or_one_hot),
    (td.Multinomial, td.Multinomial, multinomial),
    (td.Geometric, td.Geometric, geometric),
    (td.NegativeBinomial, td.NegativeBinomial, negative_binomial),
    (td.Poisson, td.Poisson, poisson),
]
