import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Normal

from shared.kl import decompose_kl, kl_standard_normal


def batch(n, d, seed=0):
    rng = torch.Generator().manual_seed(seed)
    mu = torch.randn(n, d, generator=rng, dtype=torch.float64)
    logvar = torch.randn(n, d, generator=rng, dtype=torch.float64) - 1
    eps = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return mu + eps * (logvar / 2).exp(), mu, logvar


def pdf(z, mu, logvar):
    return norm(mu, math.exp(logvar / 2)).pdf(z)


@pytest.mark.parametrize(("n", "d", "size"), [(1, 1, 1), (6, 3, 6), (6, 3, 60_000), (4, 1, 9)])
def test_the_sum_of_the_three_is_exact_for_every_sample(n, d, size):
    z, mu, logvar = batch(n, d)
    parts = decompose_kl(z, mu, logvar, mu, logvar, size)
    q, p = Normal(mu, (logvar / 2).exp()), Normal(torch.zeros((), dtype=z.dtype), 1.0)
    torch.testing.assert_close(
        sum(parts), (q.log_prob(z) - p.log_prob(z)).sum(1), rtol=1e-12, atol=1e-12
    )


def test_each_term_against_loops_over_scipy_densities():
    z, mu, logvar = batch(5, 2)
    own, m, size = slice(1, 4), 5, 40  # three rows of a batch of five, as on one of two processes
    parts = decompose_kl(z[own], mu[own], logvar[own], mu, logvar, size)
    for row, i in enumerate(range(1, 4)):
        joint = [
            math.prod(pdf(z[i, a].item(), mu[j, a].item(), logvar[j, a].item()) for a in range(2))
            for j in range(m)
        ]
        q_z = sum(joint) / (size * m)
        product = math.prod(
            sum(pdf(z[i, a].item(), mu[j, a].item(), logvar[j, a].item()) for j in range(m))
            / (size * m)
            for a in range(2)
        )
        prior = math.prod(norm.pdf(z[i, a].item()) for a in range(2))
        truth = (math.log(joint[i] / q_z), math.log(q_z / product), math.log(product / prior))
        for term, expected in zip(parts, truth, strict=True):
            assert term[row].item() == pytest.approx(expected, rel=1e-9)


def test_a_full_pass_over_a_small_mixture_agrees_with_quadrature():
    # With the whole data set as the batch, 1/(N M) sum_j q(z|x_j) is q(z)/N: the estimated mutual
    # information is I + log N, and the total correlation of a single latent is zero.
    centres, logvars = [-1.5, 0.3, 1.2], [-1.0, -2.0, 0.1]
    n, draws = 3, 20_000

    def mixture(z):
        return sum(pdf(z, m, v) for m, v in zip(centres, logvars, strict=True)) / n

    entropy_z, _ = quad(lambda z: -mixture(z) * math.log(mixture(z)), -9, 9, limit=200)
    entropy_given_x = (
        sum(norm(m, math.exp(v / 2)).entropy() for m, v in zip(centres, logvars, strict=True)) / n
    )
    marginal, _ = quad(
        lambda z: mixture(z) * (math.log(mixture(z)) - norm.logpdf(z)), -9, 9, limit=200
    )
    mu, logvar = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (centres, logvars))
    eps = torch.randn(n * draws, 1, generator=torch.Generator().manual_seed(0)).double()
    all_mu, all_logvar = mu.repeat(draws, 1), logvar.repeat(draws, 1)
    parts = decompose_kl(
        all_mu + eps * (all_logvar / 2).exp(), all_mu, all_logvar, mu, logvar, dataset_size=n
    )
    expected = (entropy_z - entropy_given_x + math.log(n), 0.0, marginal - math.log(n))
    for term, truth in zip(parts, expected, strict=True):
        error = term.std().item() / math.sqrt(len(term))
        assert error < 0.01
        assert abs(term.mean().item() - truth) <= 4 * error + 1e-12
    assert entropy_z - entropy_given_x + marginal == pytest.approx(
        kl_standard_normal(mu, logvar).mean().item(), rel=1e-8
    )


def test_total_correlation_sees_dependent_latents():
    # q(z) on the diagonal of the plane, against the same marginals made independent.
    line = torch.linspace(-2, 2, 60, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    shuffled = torch.stack([line, line[torch.randperm(60, generator=rng)]], 1)
    values = []
    for mu in (torch.stack([line, line], 1), shuffled):
        logvar = torch.full_like(mu, -4.0)
        parts = decompose_kl(mu, mu, logvar, mu, logvar, dataset_size=60)
        values.append(parts.total_correlation.mean().item())
    assert values[0] > values[1] + 0.5


def test_gradients():
    z, mu, logvar = (value.requires_grad_() for value in batch(3, 2))
    assert torch.autograd.gradcheck(
        lambda z, mu, logvar: tuple(decompose_kl(z, mu, logvar, mu, logvar, 10)), (z, mu, logvar)
    )


def test_a_data_set_smaller_than_the_batch_is_refused():
    z, mu, logvar = batch(4, 2)
    with pytest.raises(ValueError, match="smaller than the batch of 4"):
        decompose_kl(z, mu, logvar, mu, logvar, 3)
