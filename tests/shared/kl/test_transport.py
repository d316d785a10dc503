import itertools
import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import norm, wasserstein_distance

from shared.kl.gaussian import squared_wasserstein2_normal
from shared.kl.gaussian_full import squared_wasserstein2_mvn
from shared.kl.transport import sinkhorn_divergence, wasserstein_1d


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(*shape, seed=0):
    return randn(*shape, seed=seed + 100).softmax(-1)


def cheapest(cost, a, b):
    """min <P, cost> over plans P with marginals a and b, by linear programming."""
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    result = linprog(
        cost.flatten().numpy(),
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([a.numpy(), b.numpy()]),
    )
    assert result.status == 0
    return result.fun


def squares(x, y):
    return (x[:, None] - y[None]).square().sum(-1)


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


def entropic(cost, a, b, epsilon):
    """min <P, cost> + epsilon KL(P || a b^T), by plain iterations on the kernel itself."""
    kernel = (-cost / epsilon).exp() * a[:, None] * b[None]
    u = torch.ones_like(a)
    for _ in range(20_000):
        v = b / (kernel.T @ u)
        u = a / (kernel @ v)
    plan = u[:, None] * kernel * v
    return ((plan * cost).sum() + epsilon * (plan * (plan / (a[:, None] * b)).log()).sum()).item()


@pytest.mark.parametrize("epsilon", [0.6, 20.0])
@pytest.mark.parametrize("order", [1, 2])
def test_sinkhorn_against_its_definition(epsilon, order):
    x, y, a, b = randn(7, 2), randn(5, 2, seed=1) + 0.7, weights(7), weights(5, seed=1)
    truth = sum(
        factor * entropic(squares(u, v) ** (order / 2), w, z, epsilon)
        for factor, u, v, w, z in ((1, x, y, a, b), (-0.5, x, x, a, a), (-0.5, y, y, b, b))
    )
    options = {"x_weights": a, "y_weights": b, "tolerance": 1e-10}
    value = sinkhorn_divergence(x, y, epsilon, order, **options)
    assert value.item() == pytest.approx(truth, rel=1e-5)


def test_sinkhorn_tends_to_the_exact_cost_without_a_half():
    x, y, a, b = randn(8, 2), 0.5 * randn(6, 2, seed=1) + 1, weights(8), weights(6, seed=1)
    truth = cheapest(squares(x, y), a, b)
    options = {"x_weights": a, "y_weights": b, "max_iterations": 20_000}
    errors = [abs(sinkhorn_divergence(x, y, e, **options).item() / truth - 1) for e in (0.3, 0.03)]
    assert errors[1] < 0.005
    assert errors[1] < errors[0]
    mean = ((a @ x - b @ y) ** 2).sum().item()
    assert sinkhorn_divergence(x, y, 1e5, **options).item() == pytest.approx(mean, rel=1e-3)


def test_sinkhorn_of_single_points_is_their_cost():
    x, y = f64([[0.0, 0.0]]), f64([[3.0, 4.0]])
    assert sinkhorn_divergence(x, y, 0.01).item() == pytest.approx(25)
    assert sinkhorn_divergence(x, y, 0.01, order=1).item() == pytest.approx(5)


@settings(max_examples=15)
@given(values=st.lists(st.floats(-3, 3), min_size=14, max_size=14))
def test_sinkhorn_is_not_negative_symmetric_and_zero_between_equals(values):
    points = f64(values).reshape(7, 2)
    x, y = points[:4], points[4:]
    value = sinkhorn_divergence(x, y, 1.0, tolerance=1e-9)
    assert value >= -1e-7
    torch.testing.assert_close(
        sinkhorn_divergence(y, x, 1.0, tolerance=1e-9), value, rtol=1e-6, atol=1e-7
    )
    assert sinkhorn_divergence(x, x, 1.0).item() == 0
    torch.testing.assert_close(
        sinkhorn_divergence(x + 5, y + 5, 1.0, tolerance=1e-9), value, rtol=1e-6, atol=1e-7
    )


def test_sinkhorn_where_the_kernel_underflows():
    # Costs of 1e6 at epsilon 1: exp(-cost / epsilon) is 0, and supports are disjoint.
    x, y = randn(5, 1), randn(5, 1, seed=1) + 1000
    exact = wasserstein_1d(x[:, 0], y[:, 0], 2).item() ** 2
    assert sinkhorn_divergence(x, y, 1.0).item() == pytest.approx(exact, rel=1e-5)
    value = sinkhorn_divergence(x.float(), y.float(), 1.0)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact, rel=1e-5)


def test_no_silent_answer_without_convergence():
    x, y = randn(20, 2), randn(20, 2, seed=1)
    with pytest.raises(RuntimeError, match=r"have not converged: after 3 .* raise max_iterations"):
        sinkhorn_divergence(x, y, 1e-3, max_iterations=3)
    x[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="have not converged"):
        sinkhorn_divergence(x, y, 1.0, max_iterations=50)


def test_sinkhorn_batches_and_points_without_weight():
    x, y, a = randn(3, 1, 4, 2), randn(2, 5, 2, seed=1), weights(3, 1, 4)
    value = sinkhorn_divergence(x, y, 0.5, x_weights=a, tolerance=1e-9)
    assert value.shape == (3, 2)
    for i, j in ((0, 0), (2, 1)):
        one = sinkhorn_divergence(x[i, 0], y[j], 0.5, x_weights=a[i, 0], tolerance=1e-9)
        torch.testing.assert_close(value[i, j], one, rtol=1e-6, atol=1e-8)
    w = f64([0.3, 0.7])
    ghost = torch.cat([y[0, :2], f64([[50.0, 50.0]])])
    torch.testing.assert_close(
        sinkhorn_divergence(ghost, y[1], 0.5, x_weights=torch.cat([w, f64([0.0])])),
        sinkhorn_divergence(y[0, :2], y[1], 0.5, x_weights=w),
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize("order", [1, 2])
def test_first_derivatives_of_sinkhorn_and_no_wrong_second(order):
    x, y = randn(4, 2).requires_grad_(), (randn(3, 2, seed=1) + 1).requires_grad_()
    a = randn(4, seed=2).requires_grad_()

    def divergence(x, y, a):
        return sinkhorn_divergence(
            x, y, 0.7, order, x_weights=a.softmax(-1), tolerance=1e-12, max_iterations=20_000
        )

    assert torch.autograd.gradcheck(divergence, (x, y, a))
    (grad,) = torch.autograd.grad(divergence(x, y, a), x, create_graph=True)
    for leaf in (x, y, a):
        with pytest.raises(RuntimeError, match="differentiated only once"):
            torch.autograd.grad(grad.sum(), leaf, retain_graph=True)


def test_descent_on_sinkhorn_moves_a_cloud_onto_another():
    y = randn(6, 2, seed=1)
    x = (randn(6, 2) + 3).requires_grad_()
    start = sinkhorn_divergence(x, y, 0.5).item()
    for _ in range(20):
        (grad,) = torch.autograd.grad(sinkhorn_divergence(x, y, 0.5), x)
        x = (x - 1.5 * grad).detach().requires_grad_()
    assert sinkhorn_divergence(x, y, 0.5).item() < 0.02 * start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be positive"),
        ({"tolerance": -1.0}, "tolerance must be positive"),
        ({"order": 3}, "order must be 1 or 2"),
        ({"x": torch.ones(2)}, r"x of shape \[2\] is not"),
        ({"y": torch.ones(0, 2)}, r"y of shape \[0, 2\] is not"),
        ({"y": torch.ones(4, 3)}, "x has 2 coordinates and y has 3"),
        ({"x_weights": torch.ones(2) / 2}, "x_weights of shape"),
        ({"y_weights": f64([0.5, 0.2]), "validate": True}, "y_weights do not sum to one"),
    ],
)
def test_sinkhorn_refuses(arguments, message):
    given = {"x": torch.ones(3, 2), "y": torch.ones(2, 2), "epsilon": 1.0} | arguments
    with pytest.raises(ValueError, match=message):
        sinkhorn_divergence(**given)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_line_against_pot(order):
    x, y, a, b = randn(30), randn(41, seed=1) + 0.5, weights(30), weights(41, seed=1)
    value = wasserstein_1d(x, y, order, x_weights=a, y_weights=b).item()
    cost = ot.wasserstein_1d(x.numpy(), y.numpy(), a.numpy(), b.numpy(), p=order)
    assert value**order == pytest.approx(cost, rel=1e-12)


@pytest.mark.parametrize("epsilon", [10.0, 1.0])
def test_sinkhorn_against_plans_of_pot(epsilon):
    """POT's plans, with the entropy of Feydy et al. (relative to the product) put around them."""
    x, y, a, b = randn(12, 2), randn(9, 2, seed=1) + 0.5, weights(12), weights(9, seed=1)

    def cost(x, y, a, b):
        c, product = squares(x, y).numpy(), a.outer(b).numpy()
        plan = ot.sinkhorn(
            a.numpy(), b.numpy(), c, epsilon, method="sinkhorn_log", numItermax=10**4, stopThr=1e-7
        )
        return (plan * c).sum() + epsilon * (plan * np.log(plan / product)).sum()

    truth = cost(x, y, a, b) - (cost(x, x, a, a) + cost(y, y, b, b)) / 2
    value = sinkhorn_divergence(x, y, epsilon, x_weights=a, y_weights=b, tolerance=1e-9)
    assert value.item() == pytest.approx(truth, rel=1e-5)


def test_wasserstein_2_of_gaussians_against_pot():
    """Both the diagonal and the full form."""
    a, b = randn(3, 3), randn(3, 3, seed=1)
    mu_p, mu_q, cov_p, cov_q = a[0], b[0], a @ a.T + torch.eye(3), b @ b.T + torch.eye(3)
    distance = ot.gaussian.bures_wasserstein_distance(
        mu_p.numpy(), mu_q.numpy(), cov_p.numpy(), cov_q.numpy()
    )
    value = squared_wasserstein2_mvn(mu_p, cov_p, mu_q, cov_q).sqrt().item()
    assert value == pytest.approx(distance, rel=1e-9)
    var_p, var_q = cov_p.diagonal(), cov_q.diagonal()
    distance = ot.gaussian.bures_wasserstein_distance(
        mu_p.numpy(), mu_q.numpy(), np.diag(var_p), np.diag(var_q)
    )
    diagonal = squared_wasserstein2_normal(mu_p, var_p.log(), mu_q, var_q.log()).sum().sqrt()
    assert diagonal.item() == pytest.approx(distance, rel=1e-9)
