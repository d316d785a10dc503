"""What holds of every divergence: a user's own f, inequalities, derivatives, units, refusals."""

import itertools
import math

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.kl.categorical.discrete import kl_from_logits, kl_from_probs
from shared.kl.categorical.divergences import (
    SQUARED_HELLINGER,
    TOTAL_VARIATION,
    FDivergence,
    f_divergence_from_logits,
    f_divergence_from_probs,
    pearson_chi2_from_probs,
    squared_hellinger_from_probs,
    total_variation_from_logits,
)
from shared.kl.categorical.renyi import (
    alpha_from_logits,
    alpha_from_probs,
    renyi_from_logits,
    renyi_from_probs,
)
from tests.shared.kl.categorical.divergence_definitions import (
    BIASED,
    DIVERGENCES,
    FAIR,
    INF,
    RENYI_ORDERS,
    SMOOTH,
    every,
    f64,
    random_logits,
)

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
    "triangular", lambda d: torch.expm1(-d.abs()).square() / (1 + (-d.abs()).exp()), 1.0, 1.0
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
