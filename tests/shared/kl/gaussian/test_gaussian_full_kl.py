"""The KL of full Gaussians: sixty digits, torch, neighbours, ill conditioning, Cholesky factors."""

import mpmath
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as torch_kl

from shared.kl.gaussian.full import kl_mvn, kl_mvn_from_scale_tril
from tests.shared.kl.gaussian.random_gaussians import F64, covariance, gaussians

mpmath.mp.dps = 60


def exact_kl(mu_p, cov_p, mu_q, cov_q):
    """60 digits, from the textbook formula with an inverse and determinants."""
    p, q = (mpmath.matrix(cov.double().tolist()) for cov in (cov_p, cov_q))
    z = mpmath.matrix(mu_p.double().tolist()) - mpmath.matrix(mu_q.double().tolist())
    inverse = q**-1
    product = inverse * p
    trace = sum(product[i, i] for i in range(p.rows))
    return (trace - p.rows + (z.T * inverse * z)[0] - mpmath.log(mpmath.det(product))) / 2


@pytest.mark.parametrize("seed", range(3))
def test_kl_agrees_with_sixty_digits_and_with_torch(seed):
    given = gaussians(seed)
    value = kl_mvn(*given)
    assert value.item() == pytest.approx(float(exact_kl(*given)), rel=1e-12)
    p, q = MultivariateNormal(*given[:2]), MultivariateNormal(*given[2:])
    torch.testing.assert_close(value, torch_kl(p, q), rtol=1e-10, atol=0)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_kl_of_neighbours_keeps_its_digits(size, dtype):
    """Down to a KL of 1e-12; at 1e-5 it is 1e-10."""
    rng = torch.Generator().manual_seed(7)
    cov_p = covariance(rng, d=4, dtype=dtype)
    shift = covariance(rng, d=4, dtype=dtype)
    mu_p = torch.randn(4, generator=rng, dtype=dtype)
    given = mu_p, cov_p, mu_p + size, cov_p + size * shift
    value = kl_mvn(*given)
    assert value.dtype == dtype
    truth = exact_kl(*given)  # of the rounded matrices
    assert abs(value.item() / truth - 1) < (2e-6 if dtype == torch.float32 else 1e-6)


def test_torch_in_float32_would_fail_the_test_above():
    given = gaussians(7, d=4, dtype=torch.float32)
    mu_p, cov_p = given[:2]
    close = cov_p + 1e-4 * given[3]
    naive = torch_kl(MultivariateNormal(mu_p, cov_p), MultivariateNormal(mu_p, close))
    assert abs(naive.item() / exact_kl(mu_p, cov_p, mu_p, close) - 1) > 0.01


def test_kl_of_ill_conditioned_float32_neighbours():
    rng = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(5, 5, generator=rng, dtype=F64)).Q
    spectrum = torch.logspace(-3, 3, 5, dtype=F64)
    cov = (basis * spectrum) @ basis.mT
    other = (basis * (spectrum * (1 + 1e-3))) @ basis.mT
    mu = torch.zeros(5, dtype=F64)
    value = kl_mvn(mu, cov, mu, other)
    assert value.item() == pytest.approx(float(exact_kl(mu, cov, mu, other)), rel=1e-5)


def test_kl_is_never_negative_and_zero_only_at_equality():
    rng = torch.Generator().manual_seed(1)
    cov = covariance(rng, 500, d=4, dtype=torch.float32)
    noise = covariance(rng, 500, d=4, dtype=torch.float32)
    mu = torch.zeros(4)
    assert (kl_mvn(mu, cov, mu, cov) == 0).all()
    for size in (1e-3, 1e-6, 1e-7):
        assert (kl_mvn(mu, cov, mu, cov + size * noise) >= 0).all()


def test_from_scale_tril_is_the_same_and_exact_for_float32_factors():
    mu_p, cov_p, mu_q, cov_q = gaussians(5, 4)
    trils = [torch.linalg.cholesky(cov) for cov in (cov_p, cov_q)]
    value = kl_mvn_from_scale_tril(mu_p, trils[0], mu_q, trils[1])
    torch.testing.assert_close(value, kl_mvn(mu_p, cov_p, mu_q, cov_q), rtol=1e-12, atol=0)
    tril = trils[0][0].float()
    close = tril.clone()
    close[1, 0] += 1e-4
    close[2, 2] += 1e-4
    mu = torch.zeros(3)
    wide = [t.double() @ t.double().mT for t in (tril, close)]
    truth = exact_kl(mu, wide[0], mu, wide[1])
    assert abs(kl_mvn_from_scale_tril(mu, tril, mu, close).item() / truth - 1) < 1e-6
    junk = tril + 5 * torch.ones(3, 3).triu(1)
    assert kl_mvn_from_scale_tril(mu, junk, mu, close) == kl_mvn_from_scale_tril(
        mu, tril, mu, close
    )
