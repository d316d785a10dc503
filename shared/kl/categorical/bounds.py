"""Inequalities between divergences, as functions of their values.

Every function takes values of any shape and returns bounds of that shape. Amounts of information
(KL, Jensen-Shannon) are in ``unit``, nats unless said; total variation TV, squared Hellinger
distance H^2 = 1/2 sum (sqrt p - sqrt q)^2 and chi^2 have no unit. TV and H^2 lie in [0, 1]. A
bound on TV above 1 is true and says nothing; it is not cut off.

Values out of their range raise ValueError under ``validate=True``, which costs a pass over the
data. Without it they give a number without meaning or NaN.
"""

import math

import torch
from torch import Tensor

from ..conventions import Unit, convert, safe_root, widened


def _checked(name: str, value: Tensor, largest: float, validate: bool) -> Tensor:
    """The value, in float32 at least."""
    (value,) = widened(**{name: value})
    if validate and not bool(((value >= 0) & (value <= largest)).all()):
        raise ValueError(f"{name} has values outside [0, {largest:g}]")
    return value


def pinsker(kl: Tensor, unit: Unit = "nats", *, validate: bool = False) -> Tensor:
    """TV <= sqrt(KL / 2), KL in nats (Pinsker 1964; Csiszar 1967, constant 1/2).

    In bits it is sqrt(KL ln 2 / 2). Below 1 only for KL < 2 nats; ``bretagnolle_huber`` always is.
    Gradient 0 at KL = 0, where the derivative is infinite.

    Args:
        kl: D(p || q) or D(q || p) in ``unit``.
    """
    kl = _checked("kl", kl, math.inf, validate)
    return safe_root(convert(kl, unit, "nats") / 2)


def bretagnolle_huber(kl: Tensor, unit: Unit = "nats", *, validate: bool = False) -> Tensor:
    """TV <= sqrt(1 - exp(-KL)), KL in nats (Bretagnolle and Huber 1979, Lemma 2.1).

    Args:
        kl: D(p || q) or D(q || p) in ``unit``.
    """
    kl = _checked("kl", kl, math.inf, validate)
    return safe_root(-torch.expm1(-convert(kl, unit, "nats")))


def kl_above_total_variation(tv: Tensor, unit: Unit = "nats", *, validate: bool = False) -> Tensor:
    """KL >= max(2 TV^2, -log(1 - TV^2)) nats: Pinsker and Bretagnolle-Huber solved for KL.

    Returns:
        A lower bound on D(p || q) and on D(q || p), in ``unit``; +inf at TV = 1.
    """
    tv = _checked("tv", tv, 1.0, validate)
    square = tv.square()
    return convert(torch.maximum(2 * square, -torch.log1p(-square)), "nats", unit)


def kl_below_chi2(chi2: Tensor, unit: Unit = "nats", *, validate: bool = False) -> Tensor:
    """D(p || q) <= log(1 + chi^2(p || q)) nats, which is the Renyi divergence of order 2.

    Gibbs and Su 2002, Theorem 5.

    Args:
        chi2: Pearson's, sum (p - q)^2 / q.

    Returns:
        An upper bound on D(p || q), in ``unit``.
    """
    chi2 = _checked("chi2", chi2, math.inf, validate)
    return convert(chi2.log1p(), "nats", unit)


def kl_above_hellinger(
    squared_hellinger: Tensor, unit: Unit = "nats", *, validate: bool = False
) -> Tensor:
    """KL >= -2 log(1 - H^2) nats, the Renyi divergence of order 1/2; itself at least 2 H^2.

    Gibbs and Su 2002, eq. 5 has the second.

    Returns:
        A lower bound on D(p || q) and on D(q || p), in ``unit``; +inf at H^2 = 1.
    """
    squared_hellinger = _checked("squared_hellinger", squared_hellinger, 1.0, validate)
    return convert(-2 * torch.log1p(-squared_hellinger), "nats", unit)


def total_variation_from_hellinger(
    squared_hellinger: Tensor, *, validate: bool = False
) -> tuple[Tensor, Tensor]:
    """H^2 <= TV <= H sqrt(2 - H^2) (Le Cam 1969; Tsybakov 2009, Lemma 2.3, with H^2 twice ours).

    Returns:
        The lower and the upper bound on TV.
    """
    squared_hellinger = _checked("squared_hellinger", squared_hellinger, 1.0, validate)
    return squared_hellinger, safe_root(squared_hellinger * (2 - squared_hellinger))


def js_from_total_variation(
    tv: Tensor, unit: Unit = "nats", *, validate: bool = False
) -> tuple[Tensor, Tensor]:
    """ln 2 - h((1 - TV) / 2) <= JS <= ln 2 TV, in nats, h being the entropy of a coin.

    Lin 1991, Theorem 3 (upper bound, in bits) and Theorem 4 with the Bayes error (1 - TV) / 2.

    Returns:
        The lower and the upper bound on the Jensen-Shannon divergence (weight 1/2), in ``unit``.
    """
    tv = _checked("tv", tv, 1.0, validate)
    # ln 2 - h((1 - t) / 2) = ((1 + t) log(1 + t) + (1 - t) log(1 - t)) / 2, which cancels for
    # small t; regrouped as (log(1 - t^2) + 2 t atanh t) / 2 it does not, but has no value at t = 1.
    small = tv < 0.5
    t = torch.where(small, tv, 0.0)
    regrouped = torch.log1p(-t.square()) / 2 + t * torch.atanh(t)
    t = torch.where(small, 0.5, tv)
    lower = (torch.xlogy(1 + t, 1 + t) + torch.xlogy(1 - t, 1 - t)) / 2
    lower = torch.where(small, regrouped, lower)
    return convert(lower, "nats", unit), convert(math.log(2) * tv, "nats", unit)
