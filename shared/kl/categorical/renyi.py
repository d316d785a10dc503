"""Power sums of two discrete distributions: the Renyi divergence and Amari's alpha-divergence.

Both are monotone functions of M = sum p^a q^(1-a). M is written as 1 + S with a sum S of terms of
one sign, each precise near p = q and near a = 1, so that neither cancels: there is no switch to
the Kullback-Leibler divergence near a = 1. Where M is far from 1 a log-sum-exp takes over.

    quantity            definition                        limits
    Renyi               log(M) / (a - 1)                  a = 1: D(p || q); 0: -log Q(p > 0);
                                                          inf: log max p/q
    alpha (Amari,       (M - 1) / (a (a - 1))             a = 1: D(p || q); 0: D(q || p);
     Cressie-Read)                                        2: chi^2 / 2; 1/2: 4 H^2

The Renyi divergence of order 1/2 is twice the Bhattacharyya distance. Common arguments, shapes,
errors: see ``categorical.discrete``. The distributions must sum to one (``validate=True`` checks):
a power sum of other measures has no agreed meaning here. Gradients are those on the simplex, up to
the constants that point out of it. Infinite values have gradient 0.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from ..conventions import Unit
from ..gaussian.diagonal import expm1_minus_x
from .apply import LogitsOptions, ProbsOptions, apply_formula
from .formulas import kl
from .pairs import Pair, kl_terms, log_normaliser, pair_from_logits, pair_from_probs

_FAR = 1.0  # |log M| from which on log-sum-exp has all digits


def check_nats(unit: Unit) -> None:
    """ValueError unless ``unit`` is nats: for what is not an amount of information."""
    if unit != "nats":
        raise ValueError(f"unit must be nats: this is not an amount of information, got {unit!r}")


def reverse(pair: Pair) -> Pair:
    """The pair (q, p)."""
    return Pair(pair.q, pair.p, pair.log_p - pair.d, -pair.d, pair.q_only, pair.p_only)


def _terms(pair: Pair, e: float) -> Tensor:
    """p^a q^(1-a) - q - a (p - q), a = 1 + e >= 1/2: of the sign of e, without cancellation.

    With h(x) = exp(x) - 1 - x the term is e p h(-d) + p h(e d), p h(-d) being that of
    D(p || q). For a > 1 neither is negative. For a < 1 their signs differ, which loses less than
    three bits except where p is many times q; there it is p (expm1(e d) + e expm1(-d)).
    """
    p, q = pair.p, pair.q
    x = e * pair.d
    large = x > 1  # p exp(x) as the exponential of a sum: p may underflow and exp(x) overflow
    grown = torch.where(large, pair.log_p + x, 0.0).exp() - p * (1 + x)
    h = torch.where(large, grown, p * expm1_minus_x(torch.where(large, 0.0, x)))
    terms = e * kl_terms(pair) + h
    if e < 0:
        apart = pair.d > 1
        d = torch.where(apart, pair.d, 0.0)
        terms = torch.where(apart, p * (torch.expm1(e * d) + e * torch.expm1(-d)), terms)
    terms = torch.where(pair.q_only, e * q, terms)
    return torch.where(pair.p_only, -(1 + e) * p, terms)


def power_sum(pair: Pair, order: float) -> tuple[Tensor, Tensor]:
    """log M and M - 1 [...] for M = sum p^order q^(1 - order), any finite order but 1.

    For order > 1 both are +inf where q = 0 < p, for order < 0 where p = 0 < q; M - 1 also where it
    is too large for its type. On disjoint supports and orders in [0, 1] they are -inf and -1.
    """
    e = order - 1
    if order < 0.5:  # the power sum of (q, p) and order 1 - order
        pair, e = reverse(pair), -order
    # A category of neither has p = 0 and the logarithm 0 that stands for it; one whose p has
    # underflowed has p = 0 and a true logarithm.
    both = ~(pair.p_only | pair.q_only) & ((pair.p > 0) | (pair.log_p != 0))
    disjoint = ~both.any(-1)
    logs = torch.where(both, pair.log_p + e * pair.d, -torch.inf)
    log_sum = log_normaliser(torch.where(disjoint[..., None], 0.0, logs)).squeeze(-1)
    far = disjoint | (log_sum.detach().abs() > _FAR)
    close = pair._replace(d=torch.where(far[..., None], 0.0, pair.d))
    excess = torch.where(far, 0.0, _terms(close, e).sum(-1))
    overflow = log_sum.detach() >= math.log(torch.finfo(log_sum.dtype).max)
    far_excess = torch.where(
        overflow, torch.inf, torch.expm1(torch.where(far & ~overflow, log_sum, 0.0))
    )
    log_sum = torch.where(far, log_sum, excess.log1p())
    excess = torch.where(far, far_excess, excess)
    if e > 0:
        infinite = pair.p_only.any(-1)
        return torch.where(infinite, torch.inf, log_sum), torch.where(infinite, torch.inf, excess)
    return torch.where(disjoint, -torch.inf, log_sum), torch.where(disjoint, -1.0, excess)


def renyi(pair: Pair, order: float) -> Tensor:
    """log(sum p^order q^(1 - order)) / (order - 1)."""
    if order == 1:
        return kl(pair)
    if math.isinf(order):
        largest = pair.d.amax(-1).clamp(min=0)  # d is 0 where p is; the largest is no less
        return torch.where(pair.p_only.any(-1), torch.inf, largest)
    return power_sum(pair, order)[0] / (order - 1) + 0.0  # 0 and not -0


def alpha(pair: Pair, order: float) -> Tensor:
    """(sum p^order q^(1 - order) - 1) / (order (order - 1))."""
    if order in (0, 1):
        return kl(pair if order == 1 else reverse(pair))
    return power_sum(pair, order)[1] / (order * (order - 1)) + 0.0


def _check_renyi_order(order: float) -> None:
    if not order >= 0:
        raise ValueError(f"order must lie in [0, inf], got {order}")


def _check_alpha_order(order: float) -> None:
    if not math.isfinite(order):
        raise ValueError(f"order must be finite, got {order}")


def renyi_from_probs(p: Tensor, q: Tensor, order: float, **options: Unpack[ProbsOptions]) -> Tensor:
    """Renyi divergence log(sum p^a q^(1-a)) / (a - 1) of order a in [0, inf] (Renyi 1961).

    Order 1 is D(p || q), order 0 is -log Q(p > 0), infinity is log max p/q (van Erven and
    Harremoes 2014, Theorems 4 to 6). Never negative, and no smaller at a larger order. +inf where
    q = 0 < p for orders >= 1, and on disjoint supports for all orders.

    Raises:
        ValueError: ``order`` is negative or NaN.
    """
    _check_renyi_order(order)
    return apply_formula(lambda pair: renyi(pair, order), pair_from_probs, (p, q), options)


def renyi_from_logits(
    p_logits: Tensor, q_logits: Tensor, order: float, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The Renyi divergence of two softmaxes, see ``renyi_from_probs``."""
    _check_renyi_order(order)
    make, pair = pair_from_logits, (p_logits, q_logits)
    return apply_formula(lambda made: renyi(made, order), make, pair, options)


def alpha_from_probs(p: Tensor, q: Tensor, order: float, **options: Unpack[ProbsOptions]) -> Tensor:
    """Alpha-divergence (sum p^a q^(1-a) - 1) / (a (a - 1)), any finite a (Cressie and Read 1984).

    Their lambda is a - 1; Amari's alpha is 2 a - 1. Order 1 is D(p || q) and order 0 is D(q || p),
    in nats. +inf where q = 0 < p for orders >= 1, where p = 0 < q for orders <= 0, and beyond the
    largest number of the type.

    Raises:
        ValueError: ``order`` is not finite; a ``unit`` other than nats.
    """
    _check_alpha_order(order)
    check_nats(options.get("unit", "nats"))
    return apply_formula(lambda pair: alpha(pair, order), pair_from_probs, (p, q), options)


def alpha_from_logits(
    p_logits: Tensor, q_logits: Tensor, order: float, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The alpha-divergence of two softmaxes, see ``alpha_from_probs``."""
    _check_alpha_order(order)
    check_nats(options.get("unit", "nats"))
    make, pair = pair_from_logits, (p_logits, q_logits)
    return apply_formula(lambda made: alpha(made, order), make, pair, options)
