"""Every divergence beside its definition, summed with 60 digits over probabilities as given."""

import math

import mpmath
import pytest
import torch

from shared.kl.categorical.divergences import (
    neyman_chi2_from_logits,
    neyman_chi2_from_probs,
    pearson_chi2_from_logits,
    pearson_chi2_from_probs,
    squared_hellinger_from_logits,
    squared_hellinger_from_probs,
    total_variation_from_logits,
    total_variation_from_probs,
)
from shared.kl.categorical.renyi import (
    alpha_from_logits,
    alpha_from_probs,
    renyi_from_logits,
    renyi_from_probs,
)

INF = math.inf
FAIR, BIASED = [0.5, 0.5], [0.9, 0.1]
RENYI_ORDERS = [0, 1e-6, 0.2, 0.5, 0.8, 1 - 1e-7, 1, 1 + 1e-3, 2, 30, INF]
ALPHA_ORDERS = [-1.5, -1e-6, 0, 0.3, 1 - 1e-6, 1, 1 + 1e-6, 3]


def power(a, b, order):
    """a^order b^(1 - order) with the conventions at zero."""
    if a == 0:
        return mpmath.inf if b > 0 and order < 0 else 0
    if b == 0:
        return mpmath.inf if order > 1 else 0
    return a**order * b ** (1 - order)


def mp_kl(p, q):
    terms = [(a, b) for a, b in zip(p, q, strict=True) if a > 0]
    if any(b == 0 for _, b in terms):
        return mpmath.inf
    return mpmath.fsum(a * mpmath.log(a / b) for a, b in terms)


def mp_renyi(p, q, order):
    if order == 1:
        return mp_kl(p, q)
    if order == INF:
        ratios = [a / b if b > 0 else mpmath.inf for a, b in zip(p, q, strict=True) if a > 0]
        return mpmath.log(max(ratios))
    order = mpmath.mpf(order)
    total = mpmath.fsum(power(a, b, order) for a, b in zip(p, q, strict=True))
    return mpmath.inf if total in (0, mpmath.inf) else mpmath.log(total) / (order - 1)


def mp_alpha(p, q, order):
    if order in (0, 1):
        return mp_kl(p, q) if order else mp_kl(q, p)
    order = mpmath.mpf(order)
    total = mpmath.fsum(power(a, b, order) for a, b in zip(p, q, strict=True))
    return (total - 1) / (order * (order - 1))


def chi2(a, b):
    if b == 0:
        return mpmath.inf if a > 0 else 0
    return (a - b) ** 2 / b


def over(formula):
    return lambda p, q: mpmath.fsum(formula(a, b) for a, b in zip(p, q, strict=True))


def renyi(order):
    return (
        lambda p, q, **o: renyi_from_probs(p, q, order, **o),
        lambda p, q, **o: renyi_from_logits(p, q, order, **o),
        lambda p, q: mp_renyi(p, q, order),
    )


def alpha(order):
    return (
        lambda p, q, **o: alpha_from_probs(p, q, order, **o),
        lambda p, q, **o: alpha_from_logits(p, q, order, **o),
        lambda p, q: mp_alpha(p, q, order),
    )


# name -> (from probabilities, from logits, definition)
DIVERGENCES = {
    "total variation": (
        total_variation_from_probs,
        total_variation_from_logits,
        over(lambda a, b: abs(a - b) / 2),
    ),
    "squared Hellinger": (
        squared_hellinger_from_probs,
        squared_hellinger_from_logits,
        over(lambda a, b: (mpmath.sqrt(a) - mpmath.sqrt(b)) ** 2 / 2),
    ),
    "Pearson": (pearson_chi2_from_probs, pearson_chi2_from_logits, over(chi2)),
    "Neyman": (neyman_chi2_from_probs, neyman_chi2_from_logits, over(lambda a, b: chi2(b, a))),
    **{f"renyi {order}": renyi(order) for order in RENYI_ORDERS},
    **{f"alpha {order}": alpha(order) for order in ALPHA_ORDERS},
}
SMOOTH = [name for name in DIVERGENCES if name not in ("total variation", "renyi inf", "renyi 0")]
every = pytest.mark.parametrize("name", DIVERGENCES)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def mp_softmax(logits):
    powers = [mpmath.exp(mpmath.mpf(v)) for v in logits.tolist()]
    return [power / mpmath.fsum(powers) for power in powers]


def random_logits(*shape, scale=2.0, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)
