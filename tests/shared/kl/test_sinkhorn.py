"""Sinkhorn divergences against their definition, exact costs and POT; derivatives, refusals."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kl.sinkhorn import sinkhorn_divergence
from shared.kl.transport import wasserstein_1d
from tests.shared.kl.weighted_points import cheapest, f64, randn, weights


def squares(x, y):
    return (x[:, None] - y[None]).square().sum(-1)


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


def clouds(kind, n, seed=0):
    x, y = randn(n, 2, seed=seed), randn(n, 2, seed=seed + 1)
    match kind:
        case "near":
            return x, y + 1
        case "ten dimensions":
            return randn(n, 10, seed=seed), 1.5 * randn(n, 10, seed=seed + 1)
        case "clusters":
            place = torch.arange(n)[:, None] % 3
            return 0.05 * x + place, 0.05 * y + 1.1 * place.flip(0)
        case "an outlier":
            x[0] = 30
            return x, y
        case _:
            return x[:, :1], 2 * y[:, :1]


def squared_diameter(x, y):
    points = torch.cat([x, y])
    return squares(points, points).max().item()


@pytest.mark.parametrize("share", [0.05, 0.0025, 0.0005])
@pytest.mark.parametrize("kind", ["near", "ten dimensions", "clusters", "an outlier", "a line"])
def test_small_blurs_converge_in_few_iterations(kind, share):
    x, y = clouds(kind, 100)
    epsilon = share * squared_diameter(x, y)
    value = sinkhorn_divergence(x, y, epsilon, max_iterations=300)
    finer = sinkhorn_divergence(x, y, epsilon, tolerance=1e-10)
    assert value.item() == pytest.approx(finer.item(), rel=1e-4, abs=1e-6 * squared_diameter(x, y))


def test_small_blurs_against_pot():
    x, y = clouds("near", 60)
    epsilon, weight = 0.01 * squared_diameter(x, y), np.full(60, 1 / 60)

    def cost(x, y):
        c = squares(x, y).numpy()
        plan = ot.sinkhorn(
            weight, weight, c, epsilon, method="sinkhorn_log", numItermax=10**5, stopThr=1e-7
        )
        return (plan * c).sum() + epsilon * (plan * np.log(plan.clip(1e-300) * 60**2)).sum()

    truth = cost(x, y) - (cost(x, x) + cost(y, y)) / 2
    assert sinkhorn_divergence(x, y, epsilon, tolerance=1e-9).item() == pytest.approx(
        truth, rel=1e-5
    )


def test_a_thousand_points():
    """At a four-hundredth of the squared diameter: near the exact cost, in few iterations."""
    x, y = clouds("near", 1000)
    epsilon = 0.0025 * squared_diameter(x, y)
    value = sinkhorn_divergence(x, y, epsilon, max_iterations=150).item()
    weight = np.full(1000, 1e-3)
    assert value == pytest.approx(ot.emd2(weight, weight, squares(x, y).numpy()), rel=0.02)
