"""Wasserstein between Gaussians: scipy's matrix roots, POT, by hand, no second derivative."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.linalg import sqrtm

from shared.kl.gaussian.diagonal import squared_wasserstein2_normal
from shared.kl.gaussian.wasserstein import squared_wasserstein2_mvn
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


def singular(seed, rank, d=5, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    root = scale * torch.randn(d, rank, generator=rng, dtype=F64)
    return root @ root.T


@pytest.mark.parametrize("ranks", [(2, 5), (5, 2), (2, 3), (0, 3), (1, 1), (0, 0)])
def test_singular_covariances_are_the_limit_of_regular_ones(ranks):
    cov_p, cov_q = singular(0, ranks[0]), singular(1, ranks[1])
    mu_p, mu_q = randn(5), randn(5, seed=1)
    value = squared_wasserstein2_mvn(mu_p, cov_p, mu_q, cov_q).item()
    values, vectors = np.linalg.eigh(cov_q.numpy())
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ cov_p.numpy() @ root).clip(0)
    truth = (mu_p - mu_q).square().sum().item() + (cov_p.trace() + cov_q.trace()).item()
    assert value == pytest.approx(truth - 2 * np.sqrt(inner).sum(), rel=1e-6, abs=1e-9)


def test_a_distance_to_itself_of_few_samples_is_zero():
    """Covariances of 10 samples in 40 dimensions, as a FID of few pictures has."""
    x = randn(10, 40)
    cov = torch.cov(x.T)
    assert squared_wasserstein2_mvn(x.mean(0), cov, x.mean(0), cov).item() < 1e-12
    half = cov.float()
    assert squared_wasserstein2_mvn(x.mean(0).float(), half, x.mean(0).float(), half).item() < 1e-6


def test_gradients_at_singular_covariances():
    """In directions where both have extent they are those of the parts without the others."""
    inside_p, inside_q = singular(0, 3, d=3), singular(1, 3, d=3)
    mu = torch.zeros(3, dtype=F64)

    def of(p, q):
        whole = torch.nn.functional.pad(p, (0, 2, 0, 2)), torch.nn.functional.pad(q, (0, 2, 0, 2))
        return squared_wasserstein2_mvn(
            torch.zeros(5, dtype=F64), whole[0], mu.new_zeros(5), whole[1]
        )

    leaves = [inside_p.clone().requires_grad_(), inside_q.clone().requires_grad_()]
    found = torch.autograd.grad(of(*leaves), leaves)
    expected = torch.autograd.grad(squared_wasserstein2_mvn(mu, leaves[0], mu, leaves[1]), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one + one.T, other + other.T, rtol=1e-7, atol=1e-9)
    zero = torch.zeros(3, 3, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(squared_wasserstein2_mvn(mu, zero, mu, inside_q), zero)
    assert slope.isfinite().all()


def test_a_matrix_with_a_negative_eigenvalue_is_refused():
    bad = torch.diag(torch.tensor([1.0, -0.01, 1.0], dtype=F64))
    mu, good = torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64)
    with pytest.raises(
        ValueError, match=r"cov_q is not positive semi-definite: an eigenvalue is -0\.01"
    ):
        squared_wasserstein2_mvn(mu, good, mu, bad)
