"""A VAE whose likelihood is known: probabilistic PCA (Tipping and Bishop 1999).

x = W z + b + noise, z ~ N(0, 1). The columns of W are orthogonal, so the exact posterior is a
diagonal Gaussian, like q.
"""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from shared.kl import importance_weighted_bound, kl_normal, kl_standard_normal, normal_log_prob

LOG_NOISE = math.log(0.5)  # log-variance of x given z


@pytest.fixture
def model():
    rng = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(5, 2, generator=rng, dtype=torch.float64))
    w = basis * torch.tensor([1.5, 0.6], dtype=torch.float64)
    b, x = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    noise = math.exp(LOG_NOISE)
    evidence = MultivariateNormal(b, w @ w.T + noise * torch.eye(5).double()).log_prob(x)
    precision = 1 + w.square().sum(0) / noise
    return w, b, x, evidence, (x - b) @ w / noise / precision, -precision.log()


def elbo(w, b, x, mu, logvar):
    """E_q log p(x|z) in closed form, minus the KL."""
    log_noise = torch.tensor(LOG_NOISE, dtype=torch.float64)
    at_mean = normal_log_prob(x, w @ mu + b, log_noise).sum()
    spread = 0.5 * (w.square().sum(0) * logvar.exp()).sum() / math.exp(LOG_NOISE)
    return at_mean - spread - kl_standard_normal(mu, logvar).sum()


def log_weights(w, b, x, mu, logvar, k, n, seed=1):
    rng = torch.Generator().manual_seed(seed)
    z = mu + torch.randn(k, n, 2, generator=rng, dtype=torch.float64) * (0.5 * logvar).exp()
    zero, log_noise = torch.zeros(2, dtype=torch.float64), torch.tensor(LOG_NOISE).double()
    return (
        normal_log_prob(x, z @ w.T + b, log_noise).sum(-1)
        + normal_log_prob(z, zero, zero).sum(-1)
        - normal_log_prob(z, mu, logvar).sum(-1)
    )


def test_the_exact_posterior_makes_the_elbo_the_evidence(model):
    w, b, x, evidence, mu, logvar = model
    torch.testing.assert_close(elbo(w, b, x, mu, logvar), evidence, rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [1, 4])
def test_the_exact_posterior_makes_every_weight_the_evidence(model, k):
    w, b, x, evidence, mu, logvar = model
    bound = importance_weighted_bound(log_weights(w, b, x, mu, logvar, k, 10))
    torch.testing.assert_close(bound, evidence.expand(10), rtol=1e-6, atol=0)


def test_a_wrong_posterior_costs_its_kl_to_the_right_one(model):
    w, b, x, evidence, mu, logvar = model
    wrong_mu, wrong_logvar = mu + 0.3, logvar + 0.4
    gap = kl_normal(wrong_mu, wrong_logvar, mu, logvar).sum()
    assert gap > 0.1
    torch.testing.assert_close(
        elbo(w, b, x, wrong_mu, wrong_logvar), evidence - gap, rtol=1e-12, atol=0
    )


def test_the_posterior_is_where_the_elbo_is_flat(model):
    w, b, x, _, mu, logvar = model
    mu, logvar = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
    for grad in torch.autograd.grad(elbo(w, b, x, mu, logvar), (mu, logvar)):
        assert grad.abs().max() < 1e-12


def test_the_importance_weighted_bound_closes_the_gap_of_a_wrong_posterior(model):
    w, b, x, evidence, mu, logvar = model
    arguments = (w, b, x, mu + 0.3, logvar + 0.4)
    gap = evidence - elbo(*arguments)
    left = []
    for k, n in ((1, 40_000), (10, 4000), (1000, 200)):
        bounds = importance_weighted_bound(log_weights(*arguments, k, n))
        error = bounds.std() / math.sqrt(n)
        left.append((evidence - bounds.mean()).item())
        assert left[-1] > -4 * error
        if k == 1:
            assert abs(left[0] - gap) < 4 * error
    assert left[1] < left[0] / 3
    assert abs(left[2]) < 0.02 * gap
