import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kl.categorical.bounds import (
    bretagnolle_huber,
    js_from_total_variation,
    kl_above_hellinger,
    kl_above_total_variation,
    kl_below_chi2,
    pinsker,
    safe_root,
    total_variation_from_hellinger,
)

LN2 = math.log(2)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def divergences(p, q):
    """By their definitions: KL, JS, TV, squared Hellinger, chi^2."""
    m = (p + q) / 2
    kl = (p * (p / q).log()).sum(-1)
    js = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    tv = (p - q).abs().sum(-1) / 2
    hellinger = (p.sqrt() - q.sqrt()).square().sum(-1) / 2
    return kl, js, tv, hellinger, ((p - q).square() / q).sum(-1)


def test_worked_numbers():
    # KL of (.5, .5) and (.9, .1), and the other way round; their total variation is .4.
    kl = f64([0.510825623765991, 0.368064207168497])
    assert pinsker(kl).tolist() == pytest.approx([0.505384, 0.428990], abs=5e-7)
    assert bretagnolle_huber(kl)[1].item() == pytest.approx(0.554912, abs=5e-7)
    assert bretagnolle_huber(kl)[0].item() == pytest.approx(math.sqrt(0.4))  # exp(-KL) is .6
    assert kl_below_chi2(f64([16 / 9]))[0].item() == pytest.approx(1.021651247531981)
    assert kl_above_hellinger(f64([0.105572809]))[0].item() == pytest.approx(0.22314355, rel=1e-7)
    assert kl_above_total_variation(f64([0.4]))[0].item() == pytest.approx(0.32)
    assert kl_above_total_variation(f64([0.95]))[0].item() == pytest.approx(-math.log(0.0975))


def test_a_kl_in_bits_gives_the_same_bound():
    nats = f64([0.0, 0.1, 0.510825623765991, 3.0])
    for bound in (pinsker, bretagnolle_huber):
        torch.testing.assert_close(bound(nats / LN2, unit="bits"), bound(nats))
        torch.testing.assert_close(bound(nats / math.log(10), unit="hartleys"), bound(nats))
    bits = pinsker(f64([0.736965594166206]), unit="bits").item()
    assert bits == pytest.approx(0.505384, abs=5e-7)


def test_bounds_on_information_come_in_the_unit_asked_for():
    x = f64([0.1, 0.5, 0.9])
    for bound in (kl_above_total_variation, kl_below_chi2, kl_above_hellinger):
        torch.testing.assert_close(bound(x, unit="bits"), bound(x) / LN2)
    for bits, nats in zip(
        js_from_total_variation(x, unit="bits"), js_from_total_variation(x), strict=True
    ):
        torch.testing.assert_close(bits, nats / LN2)


@settings(max_examples=100)
@given(values=st.lists(st.floats(-12, 12), min_size=8, max_size=8))
def test_every_bound_holds(values):
    p, q = f64(values).reshape(2, 4).softmax(-1)
    kl, js, tv, hellinger, chi2 = divergences(p, q)
    up, down = 1 + 1e-9, 1e-13
    for bound in (pinsker, bretagnolle_huber):
        assert tv <= bound(kl) * up + 1e-7  # the root of a rounding error
    assert kl_above_total_variation(tv) <= kl * up + down
    assert kl_above_hellinger(hellinger) <= kl * up + down
    assert kl <= kl_below_chi2(chi2) * up + down
    low, high = total_variation_from_hellinger(hellinger)
    assert low <= tv * up + down
    assert tv <= high * up + down
    low, high = js_from_total_variation(tv)
    assert low <= js * up + down
    assert js <= high * up + down


@pytest.mark.parametrize("gap", [1e-3, 0.2, 0.7, 0.999])
def test_where_bounds_are_attained(gap):
    # Coins (1 + t) / 2 and (1 - t) / 2 attain the lower bound of JS and the upper one of TV.
    p, q = f64([(1 + gap) / 2, (1 - gap) / 2]), f64([(1 - gap) / 2, (1 + gap) / 2])
    kl, js, tv, hellinger, _ = divergences(p, q)
    assert js_from_total_variation(tv)[0].item() == pytest.approx(js.item(), rel=1e-9)
    assert total_variation_from_hellinger(hellinger)[1].item() == pytest.approx(tv.item())
    if gap < 0.01:  # Pinsker's constant is the best one
        assert pinsker(kl).item() == pytest.approx(tv.item(), rel=1e-5)
    # Of p and half of p on a symbol of its own, JS is at most ln 2 TV, with equality.
    p, q = f64([1 - gap, gap, 0.0]), f64([1 - gap, 0.0, gap])
    js = gap * LN2
    assert js_from_total_variation(f64(gap))[1].item() == pytest.approx(js)
    # One outcome out of many: KL = log(1 + chi^2) = -2 log(1 - H^2) where p/q is constant on p.
    point = f64(1 - gap)
    chi2, hellinger = 1 / point - 1, 1 - point.sqrt()
    assert kl_below_chi2(chi2).item() == pytest.approx(-math.log(1 - gap))
    assert kl_above_hellinger(hellinger).item() == pytest.approx(-math.log(1 - gap))


def test_ends_of_the_ranges():
    zero, one, infinite = f64(0.0), f64(1.0), f64(math.inf)
    for bound in (pinsker, bretagnolle_huber, kl_above_total_variation, kl_below_chi2):
        assert bound(zero).item() == 0
    assert pinsker(infinite).item() == math.inf
    assert bretagnolle_huber(infinite).item() == 1
    assert kl_below_chi2(infinite).item() == math.inf
    assert kl_above_total_variation(one).item() == math.inf
    assert kl_above_hellinger(one).item() == math.inf
    assert [v.item() for v in total_variation_from_hellinger(one)] == [1, 1]
    assert [v.item() for v in total_variation_from_hellinger(zero)] == [0, 0]
    assert [v.item() for v in js_from_total_variation(one)] == pytest.approx([LN2, LN2])
    assert [v.item() for v in js_from_total_variation(zero)] == [0, 0]


def test_small_values_keep_their_digits_in_float32():
    tiny = torch.tensor(1e-6)
    assert bretagnolle_huber(tiny).item() == pytest.approx(1e-3, rel=1e-6)
    assert kl_below_chi2(tiny).item() == pytest.approx(1e-6, rel=1e-6)
    assert kl_above_total_variation(torch.tensor(1e-4)).item() == pytest.approx(2e-8, rel=1e-6)
    # (1 + t) log(1 + t) / 2 + (1 - t) log(1 - t) / 2 = t^2 / 2 + t^4 / 12 + ...
    low = js_from_total_variation(torch.tensor(1e-3))[0].item()
    assert low == pytest.approx(5e-7, rel=1e-5)


def test_gradients_are_finite_at_zero_and_right_inside():
    for bound in (pinsker, bretagnolle_huber, kl_below_chi2, kl_above_total_variation):
        x = f64([0.0]).requires_grad_()
        bound(x).sum().backward()
        assert x.grad.isfinite().all()
        inside = f64([0.2, 0.8]).requires_grad_()
        assert torch.autograd.gradcheck(bound, inside)
        assert torch.autograd.gradgradcheck(bound, inside)
    for bound in (js_from_total_variation, total_variation_from_hellinger):
        x = f64([0.0]).requires_grad_()
        sum(bound(x)).sum().backward()
        assert x.grad.isfinite().all()
        inside = f64([0.2, 0.8]).requires_grad_()
        assert torch.autograd.gradgradcheck(lambda x, b=bound: b(x)[0] + b(x)[1], inside)
        assert torch.autograd.gradcheck(lambda x, b=bound: b(x)[0] + b(x)[1], inside)


def test_values_out_of_range_raise_where_asked_to():
    for bound in (pinsker, bretagnolle_huber):
        with pytest.raises(ValueError, match="kl has values outside"):
            bound(f64([0.1, -1e-9]), validate=True)
        with pytest.raises(ValueError, match="kl has values outside"):
            bound(f64([math.nan]), validate=True)
        assert bound(f64([-1.0])).isnan().all()
    with pytest.raises(ValueError, match="chi2 has values outside"):
        kl_below_chi2(f64([-0.1]), validate=True)
    for bound in (kl_above_total_variation, js_from_total_variation):
        with pytest.raises(ValueError, match="tv has values outside"):
            bound(f64([1.1]), validate=True)
    for bound in (kl_above_hellinger, total_variation_from_hellinger):
        with pytest.raises(ValueError, match="squared_hellinger has values outside"):
            bound(f64([1.1]), validate=True)
    assert pinsker(f64([0.5]), validate=True).item() == pytest.approx(0.5)


def test_integers_and_unknown_units_are_refused():
    with pytest.raises(ValueError, match="kl must be a floating-point tensor"):
        pinsker(torch.tensor([1]))
    with pytest.raises(ValueError, match="unit must be one of"):
        pinsker(f64([1.0]), unit="bans")


def test_safe_root_keeps_nan():
    value = safe_root(f64([math.nan, -1.0, 0.0, 8.0]), 3)
    assert value[:2].isnan().all()
    assert value[2:].tolist() == pytest.approx([0, 2])
