"""Every divergence against its definition, summed with 60 digits over probabilities as given."""

import itertools
import math

import hypothesis
import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from shared.kl.discrete import kl_from_logits, kl_from_probs
from shared.kl.divergences import (
    SQUARED_HELLINGER,
    TOTAL_VARIATION,
    FDivergence,
    f_divergence_from_logits,
    f_divergence_from_probs,
    neyman_chi2_from_logits,
    neyman_chi2_from_probs,
    pearson_chi2_from_logits,
    pearson_chi2_from_probs,
    squared_hellinger_from_logits,
    squared_hellinger_from_probs,
    total_variation_from_logits,
    total_variation_from_probs,
)
from shared.kl.renyi import (
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
    "Pearson": (
        pearson_chi2_from_probs,
        pearson_chi2_from_logits,
        over(chi2),
    ),
    "Neyman": (
        neyman_chi2_from_probs,
        neyman_chi2_from_logits,
        over(lambda a, b: chi2(b, a)),
    ),
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


# A description of D(p || q) and of D(q || p) as a user would write them: f(t) / max(1, t).
FORWARD = FDivergence(
    "KL",
    lambda d: torch.where(d > 0, d + torch.expm1(-d), 1 + (d - 1) * d.clamp(max=0).exp()),
    1.0,
    INF,
)
BACKWARD = FDivergence(
    "reverse KL",
    lambda d: torch.where(d < 0, -d + torch.expm1(d), 1 - (d + 1) * (-d.clamp(min=0)).exp()),
    INF,
    1.0,
)
LE_CAM = FDivergence(  # sum (p - q)^2 / (p + q), at most 2
    "triangular",
    lambda d: torch.expm1(-d.abs()).square() / (1 + (-d.abs()).exp()),
    1.0,
    1.0,
)


def test_a_users_own_f():
    p, q = f64([0.5, 0.3, 0.2, 0.0]), f64([0.2, 0.2, 0.3, 0.3])
    forward, backward = (f_divergence_from_probs(p, q, f).item() for f in (FORWARD, BACKWARD))
    assert forward == pytest.approx(kl_from_probs(p, q).item(), rel=1e-12)
    assert backward == INF
    assert f_divergence_from_probs(q, p, FORWARD).item() == INF
    assert f_divergence_from_probs(q, p, BACKWARD).item() == pytest.approx(forward, rel=1e-12)
    by_hand = 0.09 / 0.7 + 0.01 / 0.5 + 0.01 / 0.5 + 0.3
    assert f_divergence_from_probs(p, q, LE_CAM).item() == pytest.approx(by_hand, rel=1e-12)
    a, b = random_logits(2, 5, 8)
    torch.testing.assert_close(f_divergence_from_logits(a, b, FORWARD), kl_from_logits(a, b))


def test_infinite_order_is_not_negative_where_probabilities_sum_to_less_by_rounding():
    q = torch.tensor([0.5, 0.5])
    assert renyi_from_probs(q * (1 - 2**-22), q, INF).item() == 0


@pytest.mark.parametrize("f", [TOTAL_VARIATION, SQUARED_HELLINGER, FORWARD, BACKWARD, LE_CAM])
def test_descriptions_state_their_limits(f):
    assert f.of_log_ratio(f64([0.0])).item() == 0
    far = f.of_log_ratio(f64([-600.0, 600.0])).tolist()
    for value, limit in zip(far, (f.at_zero, f.slope_at_infinity), strict=True):
        assert value > 500 if limit == INF else value == pytest.approx(limit)


# What the properties are checked of: hypothesis runs each many times.
SOME = ["total variation", "squared Hellinger", "Pearson", "Neyman", "renyi 0.2", "renyi 1"]
SOME += ["renyi 0.9999999", "renyi 2", "renyi 30", "renyi inf", "alpha -1.5", "alpha 0.3"]
few = hypothesis.settings(max_examples=40)


@few
@given(values=st.lists(st.floats(-30, 30, width=32), min_size=9, max_size=9))
def test_nothing_is_ever_negative_and_equals_are_at_zero(values):
    a, b, c = torch.tensor(values).reshape(3, 3)
    left, right = torch.stack([a, a, a, a]), torch.stack([b, a + c * 2**-13, a + 3, a])
    p, q = left.softmax(-1), right.softmax(-1)
    for name in SOME:
        from_probs, from_logits, _ = DIVERGENCES[name]
        for value in (from_logits(left, right), from_probs(p, q)):
            assert (value >= 0).all(), name
            assert value[-1] == 0, name


def test_nothing_is_negative_between_neighbours_of_many_sizes():
    a = random_logits(2000, 16, scale=5.0, dtype=torch.float32)
    gaps = 10 ** torch.linspace(-8, 0, 2000)[:, None]
    b = a + gaps * random_logits(2000, 16, seed=1, dtype=torch.float32)
    for name, (from_probs, from_logits, _) in DIVERGENCES.items():
        assert (from_logits(a, b) >= 0).all(), name
        assert (from_probs(a.softmax(-1), b.softmax(-1)) >= 0).all(), name


CONVEX = [name for name in SOME if name not in ("renyi 2", "renyi 30", "renyi inf")]


@few
@given(values=st.lists(st.floats(-6, 6), min_size=16, max_size=16), weight=st.floats(0, 1))
def test_joint_convexity(values, weight):
    p, r, q, s = f64(values).reshape(4, 4).softmax(-1)
    mixed = (weight * p + (1 - weight) * r, weight * q + (1 - weight) * s)
    for name in CONVEX:
        function = DIVERGENCES[name][0]
        bound = weight * function(p, q) + (1 - weight) * function(r, s)
        assert function(*mixed) <= bound * (1 + 1e-9) + 1e-12, name


def test_renyi_above_one_is_not_jointly_convex():
    p, q, r, s = f64([[0.5, 0.5], [0.999, 0.001], [0.999, 0.001], [0.999, 0.001]])
    mean = (renyi_from_probs(p, q, 2) + renyi_from_probs(r, s, 2)) / 2
    assert renyi_from_probs((p + r) / 2, (q + s) / 2, 2) > mean + 1


@few
@given(
    values=st.lists(st.floats(-10, 10), min_size=8, max_size=8),
    channel=st.lists(st.floats(-4, 4), min_size=12, max_size=12),
)
def test_data_processing(values, channel):
    p, q = f64(values).reshape(2, 4).softmax(-1)
    through = f64(channel).reshape(4, 3).softmax(-1)
    merging = f64([[1, 0], [1, 0], [0, 1], [0, 1]])
    for name, matrix in itertools.product(SOME, (through, merging)):
        function = DIVERGENCES[name][0]
        assert function(p @ matrix, q @ matrix) <= function(p, q) * (1 + 1e-9) + 1e-12, name


@few
@given(values=st.lists(st.floats(-8, 8), min_size=10, max_size=10))
def test_chains_of_inequalities(values):
    p, q = f64(values).reshape(2, 5).softmax(-1)
    hellinger, chi2 = squared_hellinger_from_probs(p, q), pearson_chi2_from_probs(p, q)
    half, kl, two = (renyi_from_probs(p, q, order) for order in (0.5, 1, 2))
    chain = [2 * hellinger, half, kl, two, chi2]
    for low, high in itertools.pairwise(chain):
        assert low <= high * (1 + 1e-9) + 1e-13
    torch.testing.assert_close(two, chi2.log1p(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(half, -2 * torch.log1p(-hellinger), rtol=1e-12, atol=1e-15)
    by_order = [renyi_from_probs(p, q, order) for order in RENYI_ORDERS]
    for low, high in itertools.pairwise(by_order):
        assert low <= high * (1 + 1e-9) + 1e-13
    for a in (0.2, 0.5, 0.9):  # skew symmetry
        left, right = a * renyi_from_probs(q, p, 1 - a), (1 - a) * renyi_from_probs(p, q, a)
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-15)


@every
def test_relabelling_batches_dimensions_masks_and_supports(name):
    from_probs, from_logits, _ = DIVERGENCES[name]
    a, b = random_logits(2, 4, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    close = {"rtol": 1e-12, "atol": 1e-14}
    value = from_logits(a, b)
    assert value.shape == (4,)
    torch.testing.assert_close(from_logits(a[:, order], b[:, order]), value, **close)
    torch.testing.assert_close(from_logits(a.T, b.T, dim=0), value, **close)
    torch.testing.assert_close(from_logits(3 * a, 3 * b, temperature=3.0), value, **close)
    torch.testing.assert_close(from_logits(a + 100, b - 50), value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(from_probs(a.softmax(1), b.softmax(1)), value, **close)
    torch.testing.assert_close(from_logits(a[0], b)[0], value[0], **close)
    # A category that is not allowed, masked or -inf, is as if it were deleted.
    allowed = torch.tensor([True, True, False, True, False, True])
    deleted = from_logits(a[:, allowed], b[:, allowed])
    masked = (t.masked_fill(~allowed, -INF) for t in (a, b))
    torch.testing.assert_close(from_logits(*masked), deleted, **close)
    torch.testing.assert_close(from_logits(a, b, support=allowed), deleted, **close)
    # What stands where nothing counts is never read.
    counted = torch.tensor([True, False, True, True])
    spoilt = a.clone()
    spoilt[1] = math.nan
    spoilt.requires_grad_()
    total = from_logits(spoilt, b, mask=counted, reduction="positionmean")
    torch.testing.assert_close(total, value[counted].mean(), **close)
    total.backward()
    assert spoilt.grad is None or (spoilt.grad[1] == 0).all()


@every
@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_half_precision_comes_back_in_float32(name, kind):
    function = DIVERGENCES[name][kind == "logits"]
    p, q = f64([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    p, q = (t.bfloat16() if kind == "probs" else t.log().bfloat16() for t in (p, q))
    assert function(p, q).dtype == torch.float32
    torch.testing.assert_close(function(p, q), function(p.float(), q.float()))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_first_and_second_derivatives(name, scale):
    from_probs, from_logits, _ = DIVERGENCES[name]
    a, b = random_logits(2, 3, scale=scale)
    a, b = a.requires_grad_(), b.requires_grad_()
    tolerance = {"rtol": 1e-3, "atol": 1e-4 if scale < 1 else 1e-3}
    assert torch.autograd.gradcheck(from_logits, (a, b), **tolerance)
    if scale < 1:
        assert torch.autograd.gradgradcheck(from_logits, (a, b))
        p, q = (t.detach().softmax(-1).requires_grad_() for t in (a, b))
        assert torch.autograd.gradcheck(from_probs, (p, q))
        assert torch.autograd.gradgradcheck(from_probs, (p, q))


@pytest.mark.parametrize("name", ["total variation", "renyi inf", "renyi 0"])
def test_first_derivatives_of_what_has_no_second(name):
    function = DIVERGENCES[name][1]
    a, b = random_logits(2, 2, 4)
    a[:, 3] = -INF
    keep = torch.tensor([True, True, True, False])

    def with_a_zero(x, y):
        return function(torch.where(keep, x, -INF), y)

    a[:, 3] = 0
    assert torch.autograd.gradcheck(with_a_zero, (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("name", SMOOTH)
def test_the_hessian_at_equality_is_the_fisher_matrix_times_the_curvature_of_f(name):
    # D_f = f''(1) / 2 chi^2 + o(chi^2): 1/4, 2, 2, order, 1 for the families (Liese and Vajda).
    kind, _, order = name.partition(" ")
    curvature = {"squared": 0.25, "Pearson": 2.0, "Neyman": 2.0, "alpha": 1.0}.get(kind)
    curvature = float(order) if curvature is None else curvature
    a = random_logits(5)
    p = a.softmax(0)
    fisher = torch.diag(p) - torch.outer(p, p)
    hessian = torch.autograd.functional.hessian(lambda b: DIVERGENCES[name][1](a, b), a)
    torch.testing.assert_close(hessian, curvature * fisher, rtol=1e-9, atol=1e-12)


def test_total_variation_has_gradient_zero_at_equality():
    a = random_logits(5).requires_grad_()
    total_variation_from_logits(a, a.detach()).backward()
    assert (a.grad == 0).all()


def test_only_amounts_of_information_have_units():
    p, q = f64(FAIR), f64(BIASED)
    for order in (0.5, 1, 2, INF):
        nats = renyi_from_probs(p, q, order).item()
        bits = renyi_from_probs(p, q, order, unit="bits").item()
        assert bits == pytest.approx(nats / math.log(2), rel=1e-12)
    for name, (from_probs, from_logits, _) in DIVERGENCES.items():
        if name.startswith("renyi"):
            continue
        for function in (from_probs, from_logits):
            assert function(p, q, unit="nats").isfinite()
            with pytest.raises(ValueError, match="unit must be nats"):
                function(p, q, unit="bits")


@pytest.mark.parametrize("order", [-0.1, -INF, math.nan])
def test_renyi_refuses_orders(order):
    for function in (renyi_from_probs, renyi_from_logits):
        with pytest.raises(ValueError, match=r"order must lie in \[0, inf\]"):
            function(f64(FAIR), f64(BIASED), order)


@pytest.mark.parametrize("order", [INF, -INF, math.nan])
def test_alpha_refuses_orders(order):
    for function in (alpha_from_probs, alpha_from_logits):
        with pytest.raises(ValueError, match="order must be finite"):
            function(f64(FAIR), f64(BIASED), order)


@every
def test_validate_names_the_argument(name):
    from_probs, from_logits, _ = DIVERGENCES[name]
    with pytest.raises(ValueError, match="q is not normalised"):
        from_probs(f64(FAIR), f64([0.9, 0.9]), validate=True)
    with pytest.raises(ValueError, match="p_logits"):
        from_logits(f64([math.nan, 0]), f64(FAIR), validate=True)
