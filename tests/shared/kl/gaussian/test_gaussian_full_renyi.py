"""Renyi, Bhattacharyya and Hellinger of full Gaussians: integrals, determinants, limits."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from scipy.stats import multivariate_normal

from shared.kl.gaussian.full import bhattacharyya_mvn, kl_mvn, renyi_mvn, squared_hellinger_mvn
from tests.shared.kl.gaussian.random_gaussians import F64, gaussians


def narrow_p(seed=0):
    """p narrower than q in every direction, so that every order is finite."""
    mu_p, cov_p, mu_q, cov_q = gaussians(seed, d=2)
    return mu_p, cov_p / 20, mu_q, cov_q + torch.eye(2, dtype=F64)


def integral_of_powers(mu_p, cov_p, mu_q, cov_q, order):
    """The integral of p^order q^(1 - order) over the plane."""
    p = multivariate_normal(mu_p.numpy(), cov_p.numpy())
    q = multivariate_normal(mu_q.numpy(), cov_q.numpy())
    (x, y), width = mu_p.tolist(), 9 * cov_p.diagonal().sqrt().max().item()
    value, _ = dblquad(
        lambda v, u: math.exp(order * p.logpdf([u, v]) + (1 - order) * q.logpdf([u, v])),
        x - width,
        x + width,
        y - width,
        y + width,
        epsabs=1e-9,
        epsrel=1e-6,
    )
    return value


@pytest.mark.parametrize("order", [0.3, 0.5, 1.3])
def test_renyi_is_the_integral_of_powers(order):
    given = narrow_p()
    truth = math.log(integral_of_powers(*given, order)) / (order - 1)
    assert renyi_mvn(*given, order).item() == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("order", [0.3, 1.7, 4.0])
def test_renyi_agrees_with_the_determinants_of_the_paper(order):
    for seed in range(3):
        given = narrow_p(seed)
        mu_p, cov_p, mu_q, cov_q = (x.numpy() for x in given)
        mixed = order * cov_q + (1 - order) * cov_p
        logdet = [np.linalg.slogdet(m)[1] for m in (mixed, cov_p, cov_q)]
        z = mu_p - mu_q
        truth = 0.5 * order * z @ np.linalg.solve(mixed, z) - (
            logdet[0] - (1 - order) * logdet[1] - order * logdet[2]
        ) / (2 * (order - 1))
        assert renyi_mvn(*given, order).item() == pytest.approx(truth, rel=1e-10)


def test_renyi_has_its_limit_and_order_and_is_skew_symmetric():
    given = narrow_p(2)
    kl = kl_mvn(*given)
    torch.testing.assert_close(renyi_mvn(*given, 1.0), kl, rtol=1e-13, atol=0)
    for order in (1 - 1e-7, 1 + 1e-7, 1 + 1e-12):
        torch.testing.assert_close(renyi_mvn(*given, order), kl, rtol=1e-5, atol=0)
    values = torch.stack([renyi_mvn(*given, order) for order in (0.1, 0.5, 0.9, 1, 1.4, 3)])
    assert (values.diff() > 0).all()
    mu_p, cov_p, mu_q, cov_q = given
    for order in (0.2, 0.7):  # (1 - a) D_a(p || q) = a D_{1-a}(q || p)
        back = renyi_mvn(mu_q, cov_q, mu_p, cov_p, 1 - order)
        torch.testing.assert_close(
            (1 - order) * renyi_mvn(*given, order), order * back, rtol=1e-10, atol=0
        )


@pytest.mark.parametrize("order", [0.3, 0.5, 1.5, 2.0])
def test_renyi_of_neighbours_keeps_its_digits(order):
    """D_order is order times the KL to second order."""
    mu_p, cov_p, _, shift = gaussians(4)
    close = cov_p + 1e-6 * shift
    ratio = renyi_mvn(mu_p, cov_p, mu_p, close, order) / kl_mvn(mu_p, cov_p, mu_p, close)
    assert ratio.item() == pytest.approx(order, rel=1e-4)


def test_renyi_is_infinite_without_a_mixed_covariance_and_its_gradient_finite():
    mu = torch.zeros(2, 2, dtype=F64)
    cov_p = torch.stack([torch.eye(2, dtype=F64), 3 * torch.eye(2, dtype=F64)]).requires_grad_()
    cov_q = torch.eye(2, dtype=F64)
    value = renyi_mvn(mu, cov_p, mu, cov_q, 2.0)
    assert value.tolist() == [0, math.inf]
    (grad,) = torch.autograd.grad(value[0], cov_p)
    assert torch.isfinite(grad).all()
    assert renyi_mvn(mu, cov_p, mu, cov_q, 1.4)[1].isfinite()  # 1.4 - 0.4 * 3 > 0
    assert renyi_mvn(mu, cov_p, mu, cov_q, 1.51)[1] == math.inf  # 1.51 - 0.51 * 3 < 0


def test_bhattacharyya_and_hellinger_are_the_integral_of_the_root():
    given = narrow_p(1)
    coefficient = integral_of_powers(*given, 0.5)
    assert bhattacharyya_mvn(*given).item() == pytest.approx(-math.log(coefficient), rel=1e-4)
    assert squared_hellinger_mvn(*given).item() == pytest.approx(1 - coefficient, rel=1e-4)
    mu_p, cov_p, mu_q, cov_q = given
    torch.testing.assert_close(
        bhattacharyya_mvn(mu_q, cov_q, mu_p, cov_p), bhattacharyya_mvn(*given), rtol=1e-12, atol=0
    )
    far = mu_p + 1000
    assert squared_hellinger_mvn(far, cov_p, mu_q, cov_q).item() == 1
