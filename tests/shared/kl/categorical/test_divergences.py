"""Every divergence against its definition: worked numbers, digits, vocabularies, zeros."""

import math

import mpmath
import pytest
import torch
from scipy.stats import chisquare

from shared.kl.categorical.divergences import (
    neyman_chi2_from_probs,
    pearson_chi2_from_probs,
    squared_hellinger_from_probs,
    total_variation_from_probs,
)
from shared.kl.categorical.renyi import alpha_from_probs, renyi_from_logits, renyi_from_probs
from tests.shared.kl.categorical.divergence_definitions import (
    BIASED,
    DIVERGENCES,
    FAIR,
    INF,
    every,
    f64,
    mp_renyi,
    mp_softmax,
    random_logits,
)


@pytest.mark.parametrize(
    ("function", "p", "q", "value"),
    [
        (total_variation_from_probs, FAIR, BIASED, 0.4),
        (squared_hellinger_from_probs, FAIR, BIASED, 0.105572809),
        (pearson_chi2_from_probs, FAIR, BIASED, 16 / 9),
        (pearson_chi2_from_probs, BIASED, FAIR, 0.64),
        (neyman_chi2_from_probs, FAIR, BIASED, 0.64),
        (lambda p, q: renyi_from_probs(p, q, 2), FAIR, BIASED, 1.021651247531981),
        (lambda p, q: renyi_from_probs(p, q, 0.5), FAIR, BIASED, 0.223143551314210),
        (lambda p, q: renyi_from_probs(p, q, 1), FAIR, BIASED, 0.510825623765991),
        (lambda p, q: renyi_from_probs(p, q, 1), BIASED, FAIR, 0.368064207168497),
        (lambda p, q: renyi_from_probs(p, q, INF), FAIR, BIASED, math.log(5)),
        (lambda p, q: renyi_from_probs(p, q, 0), [0.5, 0.5, 0], [0.2, 0.2, 0.6], -math.log(0.4)),
        (lambda p, q: alpha_from_probs(p, q, 2), FAIR, BIASED, 8 / 9),
        (lambda p, q: alpha_from_probs(p, q, 0.5), FAIR, BIASED, 4 * 0.105572809),
    ],
)
def test_worked_numbers(function, p, q, value):
    assert function(f64(p), f64(q)).item() == pytest.approx(value, rel=3e-9)


def test_pearson_is_the_goodness_of_fit_statistic():
    observed, expected = f64([16, 18, 16, 14, 12, 24]), f64([20, 10, 16, 14, 30, 10])
    statistic = chisquare(observed, expected).statistic
    value = pearson_chi2_from_probs(observed / 100, expected / 100)
    assert 100 * value.item() == pytest.approx(statistic, rel=1e-12)


@every
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 20.0])
def test_many_digits_from_logits_and_from_probs(name, scale):
    from_probs, from_logits, definition = DIVERGENCES[name]
    a, b = random_logits(2, 7, scale=scale)
    with mpmath.workdps(60):
        p, q = mp_softmax(a), mp_softmax(b)
        truth = float(definition(p, q))
    assert from_logits(a, b).item() == pytest.approx(truth, rel=2e-12, abs=1e-15)
    if scale <= 5:  # float64 probabilities sum to one only to rounding
        value = from_probs(a.softmax(0), b.softmax(0))
        assert value.item() == pytest.approx(truth, rel=1e-11, abs=1e-15)


@every
@pytest.mark.parametrize("gap", [1e-5, 1e-3, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearly_equal_distributions_keep_their_digits(name, gap, dtype):
    from_probs, from_logits, definition = DIVERGENCES[name]
    if name == "renyi 0":
        pytest.skip("zero between all distributions of one support")
    a = random_logits(6, dtype=dtype)
    b = a + gap * random_logits(6, seed=1, dtype=dtype)
    # Sixteenths of a power of two: sums of one without rounding, so that there is one truth.
    step = 2.0 ** round(math.log2(gap / 16))
    p = torch.tensor([4, 2, 1, 1, 8], dtype=dtype) / 16
    q = p + torch.tensor([1, -1, 0.5, 0, -0.5], dtype=dtype) * step
    with mpmath.workdps(60):
        logits_truth = float(definition(mp_softmax(a), mp_softmax(b)))
        probs_truth = float(definition(*([mpmath.mpf(v) for v in t.tolist()] for t in (p, q))))
    tolerance = (2e-6 if dtype == torch.float32 else 1e-14) * (1 + 1e-5 / gap * 20)
    if name in ("total variation", "renyi inf"):  # of first order in the gap
        tolerance *= 10
    assert from_logits(a, b).item() == pytest.approx(logits_truth, rel=10 * tolerance)
    assert from_probs(p, q).item() == pytest.approx(probs_truth, rel=tolerance)


@pytest.mark.parametrize("order", [1 - s * e for e in (1e-3, 1e-5, 1e-7) for s in (1, -1)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0, 60.0])
def test_float32_orders_near_one(order, scale):
    a, b = random_logits(2, 9, scale=scale, dtype=torch.float32)
    with mpmath.workdps(60):
        truth = float(mp_renyi(mp_softmax(a), mp_softmax(b), order))
    assert renyi_from_logits(a, b, order).item() == pytest.approx(truth, rel=5e-6)


@pytest.mark.parametrize("order", [0.5, 0.7, 0.9])
def test_a_rare_outcome_of_huge_log_ratio_costs_no_digits(order):
    # Most of the two thousand nats of D(p || q) cancels in a power sum that is nearly 1.
    p, q = torch.tensor([0.0, -5.0]), torch.tensor([0.0, -3e5])
    truth = order / (1 - order) * math.log1p(math.exp(-5))  # q has one outcome, to rounding
    assert renyi_from_logits(p, q, order).item() == pytest.approx(truth, rel=3e-6)


def vocabulary(scale, v=49152):
    a = random_logits(v, scale=3.0, dtype=torch.float32)
    return a, a + random_logits(v, scale=scale, seed=1, dtype=torch.float32) + 0.7


def wide(a, b):
    """p, q, d in float64, d with a mean that is right to its last digits."""
    d = a.double() - b.double()
    p = a.double().softmax(0)
    w = d - (p * d).sum()
    d = w + (p * torch.expm1(-w)).sum().log1p()
    return p, p * (-d).exp(), d


@pytest.mark.parametrize("order", [1e-3, 0.5, 0.9, 2, 20])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
def test_renyi_in_float32_over_a_vocabulary(order, scale):
    a, b = vocabulary(scale)
    p, _, d = wide(a, b)
    kl = (p * (torch.expm1(-d) + d)).sum()
    x = (order - 1) * (d - kl)
    truth = kl + (p * (torch.expm1(x) - x)).sum().log1p() / (order - 1)
    assert renyi_from_logits(a, b, order).item() == pytest.approx(truth.item(), rel=3e-5)
    probs = (a.softmax(0), b.softmax(0))  # float32: another, rounded pair of distributions
    tolerance = 1e-5 if scale == 1 else (0.02 if scale > 1e-4 else 0.1)
    assert renyi_from_probs(*probs, order).item() == pytest.approx(truth.item(), rel=tolerance)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-7, -1e-3, -1e-5, -1e-7])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
def test_renyi_near_one_over_a_vocabulary_is_kl_and_half_the_variance(epsilon, scale):
    # d/da D_a at a = 1 is Var_p(log p/q) / 2 (van Erven and Harremoes 2014, Theorem 6's proof).
    a, b = vocabulary(scale)
    p, _, d = wide(a, b)
    kl = (p * (torch.expm1(-d) + d)).sum()
    truth = kl + epsilon / 2 * (p * (d - kl).square()).sum()
    value = renyi_from_logits(a, b, 1 + epsilon).item()
    assert value == pytest.approx(truth.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("total variation", 5e-6), ("squared Hellinger", 5e-6), ("Pearson", 5e-6), ("Neyman", 5e-6)],
)
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-3, 1e-4])
def test_others_in_float32_over_a_vocabulary(name, tolerance, scale):
    a, b = vocabulary(scale)
    p, q, d = wide(a, b)
    truth = {
        "total variation": (p * torch.expm1(-d)).abs().sum() / 2,
        "squared Hellinger": (p * torch.expm1(-d / 2).square()).sum() / 2,
        "Pearson": (q * torch.expm1(d).square()).sum(),
        "Neyman": (p * torch.expm1(-d).square()).sum(),
    }[name]
    assert DIVERGENCES[name][1](a, b).item() == pytest.approx(truth.item(), rel=tolerance)


@every
def test_extreme_logits_neither_overflow_nor_turn_into_nan(name):
    _, from_logits, definition = DIVERGENCES[name]
    rows = [
        ([0.0, 0.0], [0.0, -200.0]),
        ([0.0, -200.0], [0.0, 0.0]),
        ([0.0, -60.0], [0.0, -150.0]),  # p^2 / q is finite, p / q is not
        ([0.0, -150.0, -200.0], [0.0, -1000.0, -160.0]),  # p and q both underflow
        ([300.0, 0.0, -300.0], [-300.0, 0.0, 300.0]),
    ]
    for p, q in rows:
        a, b = (torch.tensor(row, requires_grad=True) for row in (p, q))
        value = from_logits(a, b)
        value.backward()
        with mpmath.workdps(400):
            truth = float(definition(mp_softmax(a), mp_softmax(b)))
        largest = torch.finfo(torch.float32).max
        expected = INF if truth > largest else pytest.approx(truth, rel=3e-5, abs=1e-37)
        assert value.item() == expected, (p, q)
        assert all(t.grad is None or t.grad.isfinite().all() for t in (a, b)), (p, q)


@every
@pytest.mark.parametrize("kind", ["probs", "logits"])
@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.5, 0.5, 0.0], [0.75, 0.25, 0.0]),
        ([0.25, 0.25, 0.5], [0.75, 0.25, 0.0]),
        ([0.75, 0.25, 0.0], [0.25, 0.25, 0.5]),
        ([0.5, 0.5, 0.0], [0.5, 0.0, 0.5]),
        ([1.0, 0.0, 0.0], [0.0, 0.25, 0.75]),
    ],
)
def test_zeros_and_disjoint_supports_in_value_and_gradient(name, kind, p, q):
    from_probs, from_logits, definition = DIVERGENCES[name]
    function = from_probs if kind == "probs" else from_logits
    given = [f64(row) if kind == "probs" else f64(row).log() for row in (p, q)]
    given = [t.requires_grad_() for t in given]
    value = function(*given)
    with mpmath.workdps(60):
        truth = definition(*([mpmath.mpf(v) for v in row] for row in (p, q)))
    assert value.item() == pytest.approx(float(truth), rel=1e-13)
    value.backward()
    assert all(t.grad.isfinite().all() for t in given)


def test_one_sided_zeros_by_hand():
    p, q = f64([0.25, 0.25, 0.5]), f64([0.75, 0.25, 0.0])
    assert pearson_chi2_from_probs(p, q).item() == INF
    assert neyman_chi2_from_probs(p, q).item() == pytest.approx(0.25 / 0.25 + 0.5)
    assert total_variation_from_probs(p, q).item() == pytest.approx(0.5)
    bhattacharyya = math.sqrt(0.25 * 0.75) + 0.25
    assert squared_hellinger_from_probs(p, q).item() == pytest.approx(1 - bhattacharyya)
    assert renyi_from_probs(p, q, 0.5).item() == pytest.approx(-2 * math.log(bhattacharyya))
    assert renyi_from_probs(p, q, 0).item() == 0
    assert renyi_from_probs(q, p, 0).item() == pytest.approx(math.log(2))
    assert renyi_from_probs(q, p, INF).item() == pytest.approx(math.log(3))
    assert [renyi_from_probs(p, q, order).item() for order in (1, 1 + 1e-7, 2, INF)] == [INF] * 4
    assert alpha_from_probs(p, q, -1).item() == pytest.approx(0.75)
    assert alpha_from_probs(q, p, 2).item() == pytest.approx(0.75)
    # sum p^.9 q^.1 over the two common categories.
    m = 0.25**0.9 * 0.75**0.1 + 0.25
    assert alpha_from_probs(p, q, 0.9).item() == pytest.approx((m - 1) / (0.9 * -0.1))
    assert alpha_from_probs(q, p, 0.1).item() == pytest.approx((m - 1) / (0.9 * -0.1))
