"""Closed forms for pairs of continuous torch.distributions: torch has none or its own is wrong.

Conventions as in ``distributions.discrete``.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from ..conventions import lifted
from ..gaussian.diagonal import kl_normal_of_scales
from ..gaussian.full import kl_mvn, kl_mvn_from_scale_tril
from .continuous_bernoulli import log_normaliser, mean, variance
from .discrete import PairTable
from .parameters import Parameters, log_odds, narrow, parameters_of, wide

# Continuous Bernoulli and uniform


def _natural(p: td.ContinuousBernoulli) -> Tensor:
    return log_odds(Parameters(parameters_of(p).is_logits, p._param.double()))


def continuous_bernoulli(p: td.ContinuousBernoulli, q: td.ContinuousBernoulli) -> Tensor:
    """The Bregman divergence of the log-normaliser."""
    a, b = _natural(p), _natural(q)
    value = log_normaliser(b) - log_normaliser(a) - mean(a) * (b - a)
    return narrow(lifted(value), p._param, q._param)


def _negative_entropy(logits: Tensor) -> Tensor:
    return mean(logits) * logits - log_normaliser(logits)


def continuous_bernoulli_exponential(p: td.ContinuousBernoulli, q: td.Exponential) -> Tensor:
    a, rate = wide(_natural(p), q.rate)
    return narrow(_negative_entropy(a) - rate.log() + rate * mean(a), p._param, q.rate)


def continuous_bernoulli_normal(p: td.ContinuousBernoulli, q: td.Normal) -> Tensor:
    a, mu, scale = wide(_natural(p), q.loc, q.scale)
    spread = (variance(a) + (mean(a) - mu).square()) / (2 * scale.square())
    constant = 0.5 * math.log(2 * math.pi) + scale.log()
    return narrow(_negative_entropy(a) + constant + spread, p._param, q.loc)


def beta_continuous_bernoulli(p: td.Beta, q: td.ContinuousBernoulli) -> Tensor:
    one, zero, b = wide(p.concentration1, p.concentration0, _natural(q))
    entropy = td.Beta(one, zero, validate_args=False).entropy()
    value = log_normaliser(b) - entropy - b * one / (one + zero)
    return narrow(value, p.concentration1, q._param)


def continuous_bernoulli_uniform(p: td.ContinuousBernoulli, q: td.Uniform) -> Tensor:
    """+inf unless q covers [0, 1]."""
    a, low, high = wide(_natural(p), q.low, q.high)
    value = _negative_entropy(a) + (high - low).log()
    covered = (low <= 0) & (high >= 1)
    return narrow(torch.where(covered, value, torch.inf), p._param, q.low)


def uniform_continuous_bernoulli(p: td.Uniform, q: td.ContinuousBernoulli) -> Tensor:
    """+inf unless p lies within [0, 1]."""
    low, high, b = wide(p.low, p.high, _natural(q))
    value = log_normaliser(b) - 0.5 * (low + high) * b - (high - low).log()
    covered = (low >= 0) & (high <= 1)
    return narrow(torch.where(covered, value, torch.inf), p.low, q._param)


# Normals


def normal(p: td.Normal, q: td.Normal) -> Tensor:
    parameters = p.loc, p.scale, q.loc, q.scale
    return narrow(kl_normal_of_scales(*parameters), *parameters)


def half_normal(p: td.HalfNormal, q: td.HalfNormal) -> Tensor:
    """Folding at the centre of symmetry loses nothing."""
    return normal(p.base_dist, q.base_dist)


def multivariate_normal(p: td.MultivariateNormal, q: td.MultivariateNormal) -> Tensor:
    """In float64; from the covariances where both were specified, else from their factors."""
    both = (vars(p), vars(q))
    if all("covariance_matrix" in v and "scale_tril" not in v for v in both):
        return kl_mvn(p.loc, p.covariance_matrix, q.loc, q.covariance_matrix)
    tril = (p._unbroadcasted_scale_tril, q._unbroadcasted_scale_tril)
    return kl_mvn_from_scale_tril(p.loc, tril[0], q.loc, tril[1])


def _as_multivariate(distribution: Any) -> td.MultivariateNormal:
    """Independent(Normal, 1) as a multivariate normal.

    Raises:
        NotImplementedError: an Independent of anything else.
    """
    if not isinstance(distribution, td.Independent):
        return distribution
    base = distribution.base_dist
    if not isinstance(base, td.Normal) or distribution.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            f"no closed form for Independent({type(base).__name__}, "
            f"{distribution.reinterpreted_batch_ndims}) with MultivariateNormal; "
            'method="monte_carlo" estimates it'
        )
    scale_tril = torch.diag_embed(base.scale)
    return td.MultivariateNormal(base.loc, scale_tril=scale_tril, validate_args=False)


def independent_multivariate_normal(p: Any, q: Any) -> Tensor:
    return multivariate_normal(_as_multivariate(p), _as_multivariate(q))


# Others


def von_mises(p: td.VonMises, q: td.VonMises) -> Tensor:
    """log I0(k_q)/I0(k_p) + (k_p - k_q cos(mu_p - mu_q)) I1(k_p)/I0(k_p)."""
    mu_p, k_p, mu_q, k_q = wide(p.loc, p.concentration, q.loc, q.concentration)
    scaled_p, scaled_q = torch.special.i0e(k_p), torch.special.i0e(k_q)  # exp(-k) I0(k)
    resultant = torch.special.i1e(k_p) / scaled_p
    half = torch.sin(0.5 * (mu_p - mu_q)).square()  # (1 - cos) / 2
    value = (scaled_q / scaled_p).log() + (k_q - k_p) * (1 - resultant) + 2 * k_q * resultant * half
    return narrow(lifted(value), p.loc, q.loc)


def wishart(p: td.Wishart, q: td.Wishart) -> Tensor:
    """From the closed form; torch's sums the degrees of freedom over the batch."""
    d = p.event_shape[-1]
    n_p, n_q = wide(p.df, q.df)
    tril_p = p._unbroadcasted_scale_tril.double()
    tril_q = q._unbroadcasted_scale_tril.double()
    zero = torch.zeros(d, dtype=torch.float64, device=tril_p.device)
    # n_p times the normals' D of the scales, and the difference of the degrees of freedom
    scales = n_p * kl_mvn_from_scale_tril(zero, tril_p, zero, tril_q)
    diagonals = (tril.diagonal(dim1=-2, dim2=-1) for tril in (tril_p, tril_q))
    log_det_p, log_det_q = (diagonal.log().sum(-1) for diagonal in diagonals)
    half_p, half_q = n_p / 2, n_q / 2
    steps = torch.arange(d, dtype=torch.float64, device=tril_p.device) / 2
    digammas = torch.digamma(half_p[..., None] - steps).sum(-1)
    degrees = torch.mvlgamma(half_q, d) - torch.mvlgamma(half_p, d) + (half_p - half_q) * digammas
    value = scales + (n_q - n_p) * (log_det_q - log_det_p) + degrees
    return narrow(lifted(value), p.df, q.df)


CONTINUOUS: PairTable = [
    (td.ContinuousBernoulli, td.ContinuousBernoulli, continuous_bernoulli),
    (td.ContinuousBernoulli, td.Exponential, continuous_bernoulli_exponential),
    (td.ContinuousBernoulli, td.Normal, continuous_bernoulli_normal),
    (td.Beta, td.ContinuousBernoulli, beta_continuous_bernoulli),
    (td.ContinuousBernoulli, td.Uniform, continuous_bernoulli_uniform),
    (td.Uniform, td.ContinuousBernoulli, uniform_continuous_bernoulli),
    (td.Normal, td.Normal, normal),
    (td.HalfNormal, td.HalfNormal, half_normal),
    (td.MultivariateNormal, td.MultivariateNormal, multivariate_normal),
    (td.Independent, td.MultivariateNormal, independent_multivariate_normal),
    (td.MultivariateNormal, td.Independent, independent_multivariate_normal),
    (td.VonMises, td.VonMises, von_mises),
    (td.Wishart, td.Wishart, wishart),
]
