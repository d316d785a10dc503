"""Closed forms within a family of continuous torch.distributions, without cancellation.

Conventions as in ``distributions.discrete``. With E(x) = exp(x) - 1 - x, and B the Bregman
divergence of log Gamma, every term is of one sign near p = q, or a product of small differences.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from ..conventions import lifted, only_plain_operations
from ..gaussian.diagonal import expm1_minus_x
from .discrete import PairTable
from .parameters import narrow, wide

_TERMS = 12  # of a Taylor series whose ratio is at most a tenth


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """log(a / b) of positive numbers, with all digits where they are close."""
    near = (a < 1.5 * b) & (b < 1.5 * a)
    close = torch.log1p((torch.where(near, a, 1.0) - torch.where(near, b, 1.0)) / b)
    return torch.where(near, close, a.log() - b.log())


def _lgamma_bregman(b: Tensor, a: Tensor) -> Tensor:
    """B(b; a) = log Gamma(b) - log Gamma(a) - digamma(a) (b - a), at least 0.

    As log Gamma(x) = log Gamma(1 + x) - log x it is E(log b/a) and the same at 1 + a and 1 + b,
    which is a Taylor series where they are close.
    """
    gap = b - a
    near = gap.abs() < 0.1 * (1 + a)
    step = torch.where(near, gap, 0.0)
    series = torch.zeros_like(gap)
    for n in range(_TERMS, 1, -1):
        series = (_polygamma_over_factorial(n, 1 + a) + series) * step
    series = series * step
    direct = torch.lgamma(1 + b) - torch.lgamma(1 + a) - torch.digamma(1 + a) * gap
    return expm1_minus_x(_log_ratio(b, a)) + torch.where(near, series, direct)


def _polygamma_over_factorial(n: int, x: Tensor) -> Tensor:
    """polygamma(n - 1, x) / n! = (-1)^n zeta(n, x) / n.

    torch's zeta has all digits and no forward derivative, its polygamma(1, x) nine digits.
    """
    if only_plain_operations():
        return torch.polygamma(n - 1, x) / math.factorial(n)
    return (-1) ** n / n * torch.special.zeta(torch.full_like(x, n), x)


def gamma(p: td.Gamma, q: td.Gamma) -> Tensor:
    """B(a_q; a_p) + a_p E(log r) + (a_p - a_q) log r, r the ratio of the rates q to p."""
    a_p, rate_p, a_q, rate_q = wide(p.concentration, p.rate, q.concentration, q.rate)
    log_r = _log_ratio(rate_q, rate_p)
    value = _lgamma_bregman(a_q, a_p) + a_p * expm1_minus_x(log_r) + (a_p - a_q) * log_r
    return narrow(lifted(value), p.rate, q.rate)


def _dirichlet(a: Tensor, b: Tensor) -> Tensor:
    """The sum of B(b_i; a_i), less B of the totals; concentrations [..., categories]."""
    parts = _lgamma_bregman(b, a).sum(-1)
    return lifted(parts - _lgamma_bregman(b.sum(-1), a.sum(-1)))


def dirichlet(p: td.Dirichlet, q: td.Dirichlet) -> Tensor:
    a, b = wide(p.concentration, q.concentration)
    return narrow(_dirichlet(a, b), p.concentration, q.concentration)


def beta(p: td.Beta, q: td.Beta) -> Tensor:
    """A Dirichlet of two categories."""
    of_p, of_q = (torch.stack(wide(d.concentration1, d.concentration0), -1) for d in (p, q))
    return narrow(_dirichlet(*wide(of_p, of_q)), p.concentration1, q.concentration1)


def exponential(p: td.Exponential, q: td.Exponential) -> Tensor:
    rate_p, rate_q = wide(p.rate, q.rate)
    return narrow(expm1_minus_x(_log_ratio(rate_q, rate_p)), p.rate, q.rate)


def laplace(p: td.Laplace, q: td.Laplace) -> Tensor:
    """E(log r) + r E(-x), r = scale_p / scale_q and x = |mu_p - mu_q| / scale_p."""
    mu_p, scale_p, mu_q, scale_q = wide(p.loc, p.scale, q.loc, q.scale)
    x = (mu_p - mu_q).abs() / scale_p
    log_r = _log_ratio(scale_p, scale_q)
    value = expm1_minus_x(log_r) + scale_p / scale_q * expm1_minus_x(-x)
    return narrow(value, p.loc, q.loc)


def gumbel(p: td.Gumbel, q: td.Gumbel) -> Tensor:
    """E(log Gamma(1 + r) - d) + B(r; 1), r = scale_p / scale_q and d = (mu_p - mu_q) / scale_q."""
    mu_p, scale_p, mu_q, scale_q = wide(p.loc, p.scale, q.loc, q.scale)
    r = scale_p / scale_q
    value = expm1_minus_x(torch.lgamma(1 + r) - (mu_p - mu_q) / scale_q)
    return narrow(value + _lgamma_bregman(r, torch.ones_like(r)), p.loc, q.loc)


def weibull(p: td.Weibull, q: td.Weibull) -> Tensor:
    """As of Gumbels, with r = k_q / k_p and k_q log(scale_p / scale_q) for -d (Bauckhage 2013)."""
    scale_p, k_p, scale_q, k_q = wide(p.scale, p.concentration, q.scale, q.concentration)
    r = k_q / k_p
    value = expm1_minus_x(torch.lgamma(1 + r) + k_q * _log_ratio(scale_p, scale_q))
    return narrow(value + _lgamma_bregman(r, torch.ones_like(r)), p.scale, q.scale)


def cauchy(p: td.Cauchy, q: td.Cauchy) -> Tensor:
    """log(1 + ((s_p - s_q)^2 + (x_p - x_q)^2) / (4 s_p s_q)) (Chyzak and Nielsen 2019)."""
    x_p, s_p, x_q, s_q = wide(p.loc, p.scale, q.loc, q.scale)
    apart = ((s_p - s_q) / s_p) * ((s_p - s_q) / s_q) + ((x_p - x_q) / s_p) * ((x_p - x_q) / s_q)
    return narrow(torch.log1p(apart / 4), p.loc, q.loc)


def pareto(p: td.Pareto, q: td.Pareto) -> Tensor:
    """E(log alpha_q/alpha_p) + alpha_q log(scale_p / scale_q); +inf where p begins before q."""
    scale_p, alpha_p, scale_q, alpha_q = wide(p.scale, p.alpha, q.scale, q.alpha)
    value = expm1_minus_x(_log_ratio(alpha_q, alpha_p)) + alpha_q * _log_ratio(scale_p, scale_q)
    return narrow(torch.where(scale_p < scale_q, torch.inf, value), p.scale, q.scale)


def uniform(p: td.Uniform, q: td.Uniform) -> Tensor:
    """The logarithm of the ratio of the lengths; +inf unless q covers p."""
    low_p, high_p, low_q, high_q = wide(p.low, p.high, q.low, q.high)
    covered = (low_q <= low_p) & (high_p <= high_q)
    value = torch.log1p(((high_q - high_p) + (low_p - low_q)) / (high_p - low_p))
    return narrow(torch.where(covered, value, torch.inf), p.low, q.low)


def poisson_bernoulli(p: td.Poisson, q: Any) -> Tensor:
    """+inf, but for a rate of 0: then log 1/q(0), of a Bernoulli or a Binomial."""
    trials = getattr(q, "total_count", torch.ones_like(p.rate))
    rate, log_odds_q, count = wide(p.rate, q.logits, torch.as_tensor(trials))
    nothing = count * torch.nn.functional.softplus(log_odds_q)
    return narrow(torch.where(rate == 0, nothing, torch.inf), p.rate, q.logits)


FAMILIES: PairTable = [
    (td.Beta, td.Beta, beta),
    (td.Cauchy, td.Cauchy, cauchy),
    (td.Dirichlet, td.Dirichlet, dirichlet),
    (td.Exponential, td.Exponential, exponential),
    (td.Gamma, td.Gamma, gamma),
    (td.Gumbel, td.Gumbel, gumbel),
    (td.Laplace, td.Laplace, laplace),
    (td.Pareto, td.Pareto, pareto),
    (td.Poisson, td.Bernoulli, poisson_bernoulli),
    (td.Poisson, td.Binomial, poisson_bernoulli),
    (td.Uniform, td.Uniform, uniform),
    (td.Weibull, td.Weibull, weibull),
]
