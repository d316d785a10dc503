"""Wasserstein on the line: scipy, linear programming, POT, a metric, derivatives, refusals."""

import itertools
import math

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, wasserstein_distance

from shared.kl.transport import wasserstein_1d
from tests.shared.kl.weighted_points import cheapest, f64, randn, weights


def test_by_hand():
    x, y = f64([0.0, 1.0]), f64([3.0, 2.0])
    for order in (1, 2, 7.5):
        assert wasserstein_1d(x, y, order).item() == pytest.approx(2)
    # A quarter of the mass goes from 0 to 4.
    x, w, v = f64([0.0, 4.0]), f64([0.75, 0.25]), f64([0.5, 0.5])
    assert wasserstein_1d(x, x, x_weights=w, y_weights=v).item() == pytest.approx(1)
    assert wasserstein_1d(x, x, 2, x_weights=w, y_weights=v).item() == pytest.approx(2)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (7, 7), (30, 41)])
def test_order_one_against_scipy(n, m):
    x, y, a, b = randn(n), randn(m, seed=1) + 0.5, weights(n), weights(m, seed=1)
    assert wasserstein_1d(x, y).item() == pytest.approx(wasserstein_distance(x, y), rel=1e-12)
    value = wasserstein_1d(x, y, x_weights=a, y_weights=b).item()
    assert value == pytest.approx(wasserstein_distance(x, y, a, b), rel=1e-12)


@pytest.mark.parametrize("order", [1, 1.5, 2, 4])
def test_every_order_against_linear_programming(order):
    x, y, a, b = randn(6), randn(9, seed=1) + 0.5, weights(6), weights(9, seed=1)
    truth = cheapest((x[:, None] - y).abs() ** order, a, b) ** (1 / order)
    value = wasserstein_1d(x, y, order, x_weights=a, y_weights=b).item()
    assert value == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_line_against_pot(order):
    x, y, a, b = randn(30), randn(41, seed=1) + 0.5, weights(30), weights(41, seed=1)
    value = wasserstein_1d(x, y, order, x_weights=a, y_weights=b).item()
    cost = ot.wasserstein_1d(x.numpy(), y.numpy(), a.numpy(), b.numpy(), p=order)
    assert value**order == pytest.approx(cost, rel=1e-12)


def test_large_samples_approach_the_distance_of_normals():
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    z = torch.from_numpy(norm.ppf(levels.numpy()))
    # W2 of N(0, 1) and N(1, 2^2): sqrt(1 + (2 - 1)^2).
    assert wasserstein_1d(z, 1 + 2 * z, 2).item() == pytest.approx(math.sqrt(2), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeating_every_point_changes_nothing(dtype):
    # A difference by rounding between levels of thirds and sixths would be multiplied by 1000^2.
    for n, times in itertools.product(range(2, 12), (2, 3, 5)):
        x = 1000 * torch.arange(n, dtype=dtype)
        assert wasserstein_1d(x, x.repeat(times), 2).item() == 0
    y = randn(5).to(dtype)
    for order in (1, 2, 9):
        value = wasserstein_1d(x, y, order)
        assert value.dtype == dtype
        torch.testing.assert_close(wasserstein_1d(x.repeat(7), y.repeat(3), order), value)


def test_the_last_point_takes_what_the_weights_lack_by_rounding():
    x = f64([0.0, 1e6])
    short = f64([0.5, 0.5 - 2.0**-40])
    assert wasserstein_1d(x, x, 2, x_weights=short).item() == 0


def test_large_orders_neither_underflow_nor_overflow():
    x = torch.tensor([0.0, 1e-3])
    assert wasserstein_1d(x, x + 1e-2, 400).item() == pytest.approx(1e-2, rel=1e-5)
    assert wasserstein_1d(1e4 * x, 1e4 * x + 100, 400).item() == pytest.approx(100, rel=1e-5)


@settings(max_examples=60)
@given(values=st.lists(st.floats(-50, 50), min_size=12, max_size=12), shift=st.floats(-9, 9))
def test_it_is_a_metric_that_shifts_and_scales(values, shift):
    x, y, z = f64(values).reshape(3, 4)
    for order in (1, 2, 3.5):
        xy, yz, xz = (wasserstein_1d(*pair, order) for pair in ((x, y), (y, z), (x, z)))
        assert xz <= xy + yz + 1e-9
        assert xy >= 0
        assert wasserstein_1d(x, x, order).item() == 0
        close = {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(wasserstein_1d(y, x, order), xy, **close)
        torch.testing.assert_close(wasserstein_1d(x.flip(0), y, order), xy, **close)
        torch.testing.assert_close(wasserstein_1d(x + shift, y + shift, order), xy, **close)
        torch.testing.assert_close(wasserstein_1d(shift * x, shift * y, order), abs(shift) * xy)
        away = wasserstein_1d(x, x + shift, order)
        torch.testing.assert_close(away, f64(abs(shift)), **close)
    assert wasserstein_1d(x, y, 1) <= wasserstein_1d(x, y, 2) * (1 + 1e-9) + 1e-12


def test_points_without_weight_and_batches():
    x, y, a = randn(3, 1, 5), randn(4, 6, seed=1), weights(5)
    value = wasserstein_1d(x, y, 2, x_weights=a)
    assert value.shape == (3, 4)
    for i, j in ((0, 0), (2, 3)):
        torch.testing.assert_close(value[i, j], wasserstein_1d(x[i, 0], y[j], 2, x_weights=a))
    a = f64([0.5, 0.0, 0.5])
    given, deleted = f64([1.0, 99.0, 3.0]), f64([1.0, 3.0])
    torch.testing.assert_close(
        wasserstein_1d(given, y[0], 2, x_weights=a), wasserstein_1d(deleted, y[0], 2)
    )
    assert wasserstein_1d(torch.empty(0, 3), torch.empty(0, 3)).shape == (0,)
    assert wasserstein_1d(randn(3).half(), randn(3).half()).dtype == torch.float32


@pytest.mark.parametrize("order", [1, 2, 3])
def test_first_and_second_derivatives_on_the_line(order):
    x, y = randn(2, 4).requires_grad_(), (randn(2, 5, seed=1) + 1).requires_grad_()
    a = randn(4, seed=2).requires_grad_()

    def distance(x, y, a):
        return wasserstein_1d(x, y, order, x_weights=a.softmax(-1))

    assert torch.autograd.gradcheck(distance, (x, y, a))
    assert torch.autograd.gradgradcheck(distance, (x, y, a))


def test_gradient_between_equal_samples_is_zero():
    for order in (1, 2, 5):
        x = f64([1.0, 2.0]).requires_grad_()
        wasserstein_1d(x, x.detach(), order).backward()
        assert (x.grad == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 0.9}, "order must be at least 1"),
        ({"order": math.inf}, "order must be at least 1"),
        ({"order": math.nan}, "order must be at least 1"),
        ({"x": torch.tensor([1, 2])}, "x must be a floating-point"),
        ({"y": torch.empty(2, 0)}, r"y of shape \[2, 0\] has no points"),
        ({"x_weights": torch.ones(3) / 3}, r"x_weights of shape \[3\] is not for 2 points"),
        ({"x": torch.ones(2, 2), "y": torch.ones(3, 2)}, "do not broadcast"),
        ({"y_weights": f64([1.5, -0.5]), "validate": True}, "y_weights has values"),
        ({"y_weights": f64([0.5, 0.6]), "validate": True}, "y_weights do not sum to one"),
    ],
)
def test_wasserstein_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        wasserstein_1d(**{"x": torch.ones(2), "y": torch.ones(2)} | arguments)
