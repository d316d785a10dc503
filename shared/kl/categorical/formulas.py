"""The formulas of ``discrete``: distributions with categories last -> nats, categories removed.

In torch's own operations, with all digits. The kernels compute the same faster where they can;
these serve derivatives of gradients, transforms, compilers, and rows in which a kernel is not
finite.
"""

import math

import torch
from torch import Tensor

from .pairs import Pair, Single, kl_terms


def entropy(made: Single | Pair) -> Tensor:
    """H(p) = -sum p log p."""
    return -(made.p * made.log_p).sum(-1)


def kl(pair: Pair) -> Tensor:
    """D(p || q)."""
    if pair.kl is None:
        return kl_terms(pair).sum(-1)
    return torch.where(pair.p_only.any(-1), torch.inf, pair.kl)


def cross_entropy(pair: Pair) -> Tensor:
    """H(p, q) = H(p) + D(p || q): neither is negative, so that nothing cancels."""
    return entropy(pair) + kl(pair)


def jeffreys(pair: Pair) -> Tensor:
    """sum (p - q) (log p - log q); no term is negative."""
    p, q, d = pair.p, pair.q, pair.d
    p_larger = d >= 0
    gap = torch.expm1(torch.where(p_larger, -d, d))  # smaller / larger - 1
    terms = gap * torch.where(p_larger, -p, q) * d
    return torch.where(pair.p_only | pair.q_only, torch.inf, terms).sum(-1)


def js(pair: Pair, weight: float) -> Tensor:
    """w D(p || m) + (1 - w) D(q || m) with m = w p + (1 - w) q; never above H(w)."""
    p_m, q_m = _with_mixture(pair, weight)
    return (weight * kl_terms(p_m) + (1 - weight) * kl_terms(q_m)).sum(-1)


def skew_kl(pair: Pair, weight: float) -> Tensor:
    """D(p || m) with m = w p + (1 - w) q; at most -log w."""
    return kl_terms(_with_mixture(pair, weight)[0]).sum(-1)


def _with_mixture(pair: Pair, weight: float) -> tuple[Pair, Pair]:
    """(p, m) and (q, m) with m = w p + (1 - w) q."""
    p, q, d = pair.p, pair.q, pair.d
    p_larger = d >= 0
    minus = torch.where(p_larger, -d, d)  # log smaller - log larger
    share = torch.where(p_larger, p.new_tensor(1 - weight), weight)  # of the smaller in m
    weights = torch.where(p_larger, p.new_tensor(weight), 1 - weight)
    # log m - log larger = log(weights + share exp(minus)), written twice so that neither cancels
    close = minus > -1
    near = torch.log1p(share * torch.expm1(torch.where(close, minus, 0.0)))
    far = torch.log(weights + share * torch.where(close, -torch.inf, minus).exp())
    larger_to_m = torch.where(close, near, far)
    smaller_to_m = larger_to_m - minus
    p_to_m = torch.where(p_larger, larger_to_m, smaller_to_m)
    q_to_m = torch.where(p_larger, smaller_to_m, larger_to_m)
    p_to_m = torch.where(pair.p_only, math.log(weight), p_to_m)  # there m is w p
    q_to_m = torch.where(pair.q_only, math.log1p(-weight), q_to_m)
    m = weight * p + (1 - weight) * q
    never = torch.zeros_like(pair.p_only)  # m is 0 only where both are
    p_m = Pair(p, m, pair.log_p, -p_to_m, p_only=never, q_only=pair.q_only)
    q_m = Pair(q, m, pair.log_p - d, -q_to_m, p_only=never, q_only=pair.p_only)
    return p_m, q_m
