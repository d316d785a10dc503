import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Normal

from shared.kl import kl_normal
from shared.kl.gaussian.diagonal import (
    bhattacharyya_normal,
    renyi_normal,
    squared_hellinger_normal,
    squared_wasserstein2_normal,
)
from tests.shared.kl.gaussian.normals import TINY, exact_kl, f64, finite


def powers(mu_p, logvar_p, mu_q, logvar_q, order):
    """The integral of p^order q^(1 - order)."""
    p, q = norm(mu_p, math.exp(logvar_p / 2)), norm(mu_q, math.exp(logvar_q / 2))
    value, _ = quad(
        lambda x: math.exp(order * p.logpdf(x) + (1 - order) * q.logpdf(x)),
        -60,
        60,
        epsabs=1e-13,
        epsrel=1e-12,
        limit=800,
        points=(mu_p, mu_q),
    )
    return value


@pytest.mark.parametrize("order", [0.1, 0.5, 0.9, 1.1, 2.0, 5.0])
@pytest.mark.parametrize(
    "arguments", [(0.3, 0.0, 0.0, 0.1), (1.5, -2.0, -0.5, 0.7), (0.0, -1.0, 0.0, 1.2)]
)
def test_renyi_is_the_logarithm_of_an_integral(arguments, order):
    truth = math.log(powers(*arguments, order)) / (order - 1)
    assert renyi_normal(*f64(*arguments), order).item() == pytest.approx(truth, rel=1e-7)


@pytest.mark.parametrize("arguments", [(0.3, 0.0, 0.0, 0.1), (1.5, -2.0, -0.5, 0.7)])
def test_bhattacharyya_and_hellinger_are_the_integral_of_the_root(arguments):
    given, truth = f64(*arguments), powers(*arguments, 0.5)
    assert bhattacharyya_normal(*given).item() == pytest.approx(-math.log(truth), rel=1e-8)
    hellinger = squared_hellinger_normal(*(v[None] for v in given))
    assert hellinger.item() == pytest.approx(1 - truth, rel=1e-8)
    twice = squared_hellinger_normal(*(v.expand(2) for v in given))
    assert twice.item() == pytest.approx(1 - truth**2, rel=1e-8)


def exact_renyi(ratio, order):
    ratio, order = mpmath.mpf(ratio), mpmath.mpf(order)
    if order == 1:
        return exact_kl(0, ratio, 0, 0)
    mixed = order + (1 - order) * mpmath.exp(ratio)
    return (mpmath.log(mixed) / (1 - order) - ratio) / 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("order", [0.25, 0.5, 0.75, 1.0, 1.25, 2.0])
def test_renyi_of_widths_keeps_its_digits_near_and_far(order, dtype, tolerance):
    ratios = [-300.0, -40.0, -17.0, -1.01, -0.99, *TINY, 0.2]
    ratios += [0.99, 1.01, 29.0, 31.0, 80.0, 300.0] if order < 1 else []
    zero = torch.zeros((), dtype=dtype)
    for ratio in torch.tensor(ratios, dtype=dtype):
        value = renyi_normal(zero, ratio, zero, zero, order)
        assert abs(value.item() / exact_renyi(ratio.item(), order) - 1) < tolerance


def test_renyi_of_an_order_near_one_is_near_the_kl():
    given = [torch.tensor(v) for v in (0.3, -0.7, -0.2, 0.4)]
    for order in (1 - 1e-6, 1 + 1e-6, 1 + 1e-9):
        torch.testing.assert_close(
            renyi_normal(*given, order), kl_normal(*given), rtol=1e-5, atol=0
        )


def test_renyi_is_infinite_where_the_mixed_variance_is_not_positive():
    mu, logvar = torch.zeros(3), torch.tensor([0.0, 0.5, 0.8], requires_grad=True)
    value = renyi_normal(mu, logvar, mu, torch.zeros(3), 2.0)  # 2 - exp(logvar) > 0 below ln 2
    assert value.isinf().tolist() == [False, False, True]
    (grad,) = torch.autograd.grad(value[:2].sum(), logvar)
    assert torch.isfinite(grad).all()


def test_squared_wasserstein_distance_of_two_normals():
    given = f64(1.0, math.log(4.0), -2.0, math.log(25.0))
    assert squared_wasserstein2_normal(*given).item() == pytest.approx(9 + 9, rel=1e-14)
    levels = torch.linspace(1e-7, 1 - 1e-7, 2_000_001, dtype=torch.float64)  # quantiles
    p, q = Normal(given[0], 2.0), Normal(given[2], 5.0)
    quantiles = (p.icdf(levels) - q.icdf(levels)).square().mean()
    assert quantiles.item() == pytest.approx(18, rel=1e-4)
    near = torch.tensor(1e-6)
    value = squared_wasserstein2_normal(torch.zeros(()), near, torch.zeros(()), torch.zeros(()))
    assert value.item() == pytest.approx(math.expm1(0.5 * near.item()) ** 2, rel=1e-6)


def test_curvature_of_the_squared_wasserstein_distance_at_equality():
    v = torch.tensor(0.6, dtype=torch.float64)
    zero = torch.zeros_like(v)
    hessian = torch.autograd.functional.hessian(
        lambda w: squared_wasserstein2_normal(zero, w, zero, v), v
    )
    assert hessian.item() == pytest.approx(math.exp(0.6) / 2, rel=1e-12)


@given(logvar=finite, other=finite, order=st.floats(0.02, 3))
def test_renyi_is_not_negative_beyond_rounding(logvar, other, order):
    zero, v, w = torch.zeros(()), torch.tensor(logvar), torch.tensor(other)
    value = renyi_normal(zero, v, zero, w, order).item()
    assert value >= -1e-6
    if abs(logvar - other) > 0.1:
        assert value > 0


def test_derivatives_of_the_other_divergences():
    rng = torch.Generator().manual_seed(8)
    inputs = [torch.randn(3, generator=rng, dtype=torch.float64) for _ in range(4)]
    inputs[1] = inputs[1] - 2
    inputs = [value.requires_grad_() for value in inputs]
    for function in (
        lambda *given: renyi_normal(*given, 0.3),
        lambda *given: renyi_normal(*given, 1.3),
        squared_hellinger_normal,
        squared_wasserstein2_normal,
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
