"""Wasserstein between Gaussians: scipy's matrix roots, POT, by hand, no second derivative."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.linalg import sqrtm

from shared.kl.gaussian.diagonal import squared_wasserstein2_normal
from shared.kl.gaussian.full import squared_wasserstein2_mvn
from tests.shared.kl.gaussian.random_gaussians import F64, gaussians
from tests.shared.kl.weighted_points import randn


@pytest.mark.parametrize("seed", range(4))
def test_wasserstein_agrees_with_matrix_roots_from_scipy(seed):
    given = gaussians(seed, d=4)
    mu_p, cov_p, mu_q, cov_q = (x.numpy() for x in given)
    root = sqrtm(cov_q)
    truth = np.sum((mu_p - mu_q) ** 2) + np.trace(
        cov_p + cov_q - 2 * np.real(sqrtm(root @ cov_p @ root))
    )
    assert squared_wasserstein2_mvn(*given).item() == pytest.approx(truth, rel=1e-10)


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


def test_wasserstein_by_hand_and_of_neighbours():
    mu = torch.zeros(2, dtype=F64)
    cov = torch.diag(torch.tensor([4.0, 9.0], dtype=F64))
    other = torch.diag(torch.tensor([1.0, 25.0], dtype=F64))
    assert squared_wasserstein2_mvn(mu, cov, mu + 2, other).item() == pytest.approx(8 + 1 + 4)
    for size in (1e-5, 1e-8):
        value = squared_wasserstein2_mvn(mu, cov, mu, (1 + size) * cov).item()
        assert value == pytest.approx(13 * (math.expm1(0.5 * math.log1p(size))) ** 2, rel=1e-6)
    assert squared_wasserstein2_mvn(mu, cov, mu, cov).item() < 1e-28


def test_wasserstein_refuses_a_second_derivative():
    given = [x.requires_grad_() for x in gaussians(1)]
    value = squared_wasserstein2_mvn(*given)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(value, given[1], create_graph=True)
