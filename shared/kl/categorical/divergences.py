"""f-divergences of discrete distributions other than those of ``categorical.discrete``.

D_f(p || q) = sum q f(p/q) with f convex and f(1) = 0, taken up to a multiple of t - 1, which
changes no divergence between distributions (Csiszar 1967; Liese and Vajda 2006, eq. 5). Here f is
always the one with f'(1) = 0, so that no term is negative and nothing cancels near p = q. Where
p = 0 < q a term is q f(0); where q = 0 < p it is p f'(inf), the slope of f at infinity.

Other libraries scale some of these differently. Here:

    divergence         sum                          f(t)                     f(0)  f'(inf)  range
    total variation    1/2 |p - q|                  1/2 |t - 1|              1/2   1/2    [0, 1]
    squared Hellinger  1/2 (sqrt p - sqrt q)^2      1/2 (sqrt t - 1)^2       1/2   1/2    [0, 1]
    Pearson chi^2      (p - q)^2 / q                (t - 1)^2                1     inf    [0, inf]
    Neyman chi^2       (p - q)^2 / p                (t - 1)^2 / t            inf   1      [0, inf]
    alpha, order a     (p^a q^(1-a) - 1)/(a (a-1))  (t^a - 1 - a (t - 1))/(a (a-1))

and in ``categorical.discrete`` D(p || q) (t log t - t + 1), Jeffreys ((t - 1) log t) and
Jensen-Shannon (at most log 2). The alpha-divergence is in ``categorical.renyi``. One minus the
squared Hellinger distance is the Bhattacharyya coefficient sum sqrt(p q).

None of these but the KL divergences is an amount of information: a ``unit`` other than nats raises
ValueError. Other arguments, shapes, errors: see ``categorical.discrete``. Infinite values have
gradient 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from .apply import LogitsOptions, ProbsOptions, apply_formula
from .pairs import Pair, pair_from_logits, pair_from_probs
from .renyi import check_nats, power_sum, reverse


@dataclass(frozen=True)
class FDivergence:
    """A convex f with f(1) = f'(1) = 0, as ``f_divergence`` needs it.

    ``of_log_ratio`` maps d = log t, of any shape, to f(t) / max(1, t): what a category adds per
    unit of the larger of its two probabilities. In this form a bounded divergence cannot overflow;
    write it with expm1 for it to be precise at d = 0.
    """

    name: str
    of_log_ratio: Callable[[Tensor], Tensor]
    at_zero: float
    """f(0), the limit of ``of_log_ratio`` at -inf; may be inf."""
    slope_at_infinity: float
    """lim f(t) / t, the limit of ``of_log_ratio`` at +inf; may be inf."""


def _minus_abs(d: Tensor) -> Tensor:
    """-|d|, with a derivative other than 0 at 0: second derivatives there need it."""
    return torch.where(d > 0, -d, d)


TOTAL_VARIATION = FDivergence(
    "total variation", lambda d: -0.5 * torch.expm1(-d.abs()), 0.5, 0.5
)  # |d| has derivative 0 at 0, the subgradient in the middle
SQUARED_HELLINGER = FDivergence(
    "squared Hellinger", lambda d: 0.5 * torch.expm1(0.5 * _minus_abs(d)).square(), 0.5, 0.5
)


def f_divergence(pair: Pair, divergence: FDivergence) -> Tensor:
    """sum q f(p/q) [...]."""
    p, q, d = pair.p, pair.q, pair.d
    terms = torch.where(d > 0, p, q) * divergence.of_log_ratio(d)
    for alone, mass, factor in (
        (pair.q_only, q, divergence.at_zero),
        (pair.p_only, p, divergence.slope_at_infinity),
    ):
        terms = torch.where(alone, torch.inf if math.isinf(factor) else factor * mass, terms)
    return terms.sum(-1)


def pearson_chi2(pair: Pair) -> Tensor:
    """sum p^2 / q - 1."""
    return power_sum(pair, 2.0)[1]


def neyman_chi2(pair: Pair) -> Tensor:
    """sum q^2 / p - 1."""
    return power_sum(reverse(pair), 2.0)[1]


def _probs(
    formula: Callable[[Pair], Tensor], p: Tensor, q: Tensor, options: ProbsOptions
) -> Tensor:
    check_nats(options.get("unit", "nats"))
    return apply_formula(formula, pair_from_probs, (p, q), options)


def _logits(
    formula: Callable[[Pair], Tensor], p_logits: Tensor, q_logits: Tensor, options: LogitsOptions
) -> Tensor:
    check_nats(options.get("unit", "nats"))
    return apply_formula(formula, pair_from_logits, (p_logits, q_logits), options)


def f_divergence_from_probs(
    p: Tensor, q: Tensor, divergence: FDivergence, **options: Unpack[ProbsOptions]
) -> Tensor:
    """sum q f(p/q) + f(0) Q(p = 0) + f'(inf) P(q = 0)."""
    return _probs(lambda pair: f_divergence(pair, divergence), p, q, options)


def f_divergence_from_logits(
    p_logits: Tensor, q_logits: Tensor, divergence: FDivergence, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The f-divergence of two softmaxes."""
    return _logits(lambda pair: f_divergence(pair, divergence), p_logits, q_logits, options)


def total_variation_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """1/2 sum |p - q|, the largest difference on an event; gradient 0 at p = q."""
    return f_divergence_from_probs(p, q, TOTAL_VARIATION, **options)


def total_variation_from_logits(
    p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The total variation of two softmaxes."""
    return f_divergence_from_logits(p_logits, q_logits, TOTAL_VARIATION, **options)


def squared_hellinger_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """1/2 sum (sqrt p - sqrt q)^2 = 1 - sum sqrt(p q), in [0, 1]; its root is a metric."""
    return f_divergence_from_probs(p, q, SQUARED_HELLINGER, **options)


def squared_hellinger_from_logits(
    p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The squared Hellinger distance of two softmaxes."""
    return f_divergence_from_logits(p_logits, q_logits, SQUARED_HELLINGER, **options)


def pearson_chi2_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """sum (p - q)^2 / q; +inf where q = 0 < p, and beyond the largest number of the type."""
    return _probs(pearson_chi2, p, q, options)


def pearson_chi2_from_logits(
    p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The Pearson chi^2-divergence of two softmaxes."""
    return _logits(pearson_chi2, p_logits, q_logits, options)


def neyman_chi2_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """sum (p - q)^2 / p, the Pearson divergence of (q, p); +inf where p = 0 < q."""
    return _probs(neyman_chi2, p, q, options)


def neyman_chi2_from_logits(
    p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The Neyman chi^2-divergence of two softmaxes."""
    return _logits(neyman_chi2, p_logits, q_logits, options)
