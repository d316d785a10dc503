"""The model behind most tests: z ~ N(0, 1), x | z ~ N(A z, S), so p(x) and p(z | x) are known."""

import itertools
import math

import mpmath
import pytest
import torch
from torch.distributions import Normal

from shared.kl import effective_sample_size, importance_weighted_bound, log_mean_exp

A, S, X = 1.5, 0.8, 1.1  # S is a standard deviation


def normal(mean, sd):
    return Normal(torch.as_tensor(mean, dtype=torch.float64), sd)


EVIDENCE = normal(0.0, math.hypot(A, S)).log_prob(torch.tensor(X, dtype=torch.float64))
POSTERIOR = normal(A * X / (A**2 + S**2), S / math.hypot(A, S))
WRONG = normal(0.2, 0.9)


def log_weights(q, k, n, seed=0):
    """log p(x, z) - log q(z), [k, n], by torch.distributions."""
    rng = torch.Generator().manual_seed(seed)
    z = q.mean + q.stddev * torch.randn(k, n, generator=rng, dtype=torch.float64)
    joint = normal(0.0, 1.0).log_prob(z) + normal(X, S).log_prob(A * z)
    return joint - q.log_prob(z)


def estimate(values):
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_mean_exp_against_many_digits(shift, dim):
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double() * 3 + shift
    value = log_mean_exp(x, dim)
    rows = x.movedim(dim, -1)
    assert value.shape == rows.shape[:-1]
    for row, got in zip(rows.flatten(0, -2).tolist(), value.flatten().tolist(), strict=True):
        truth = mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(v)) for v in row) / len(row))
        assert got == pytest.approx(float(truth), rel=1e-13, abs=1e-13)


def test_log_mean_exp_of_a_constant_and_of_no_mass():
    torch.testing.assert_close(log_mean_exp(torch.full((7, 2), 3.5), 0), torch.tensor([3.5, 3.5]))
    assert log_mean_exp(torch.full((3,), -math.inf), 0).item() == -math.inf
    half = log_mean_exp(torch.tensor([0.0, -math.inf]), 0).item()
    assert half == pytest.approx(-math.log(2), abs=1e-7)


@pytest.mark.parametrize("k", [1, 2, 50])
def test_the_exact_posterior_gives_the_evidence_whatever_the_noise(k):
    bound = importance_weighted_bound(log_weights(POSTERIOR, k, 20))
    torch.testing.assert_close(bound, EVIDENCE.expand(20), rtol=0, atol=1e-12)


def test_one_sample_is_the_elbo_with_its_closed_form():
    mean, error = estimate(importance_weighted_bound(log_weights(WRONG, 1, 200_000)))
    gap = torch.distributions.kl_divergence(WRONG, POSTERIOR).item()
    assert error < 0.02 * gap
    assert abs(mean - (EVIDENCE.item() - gap)) < 4 * error


def test_the_bound_grows_with_k_and_stays_below_the_evidence():
    results = [
        estimate(importance_weighted_bound(log_weights(WRONG, k, 20_000, seed=k)))
        for k in (1, 3, 10, 50)
    ]
    for (low, low_error), (high, high_error) in itertools.pairwise(results):
        assert high - low > 4 * math.hypot(low_error, high_error)
    assert all(mean < EVIDENCE + 4 * error for mean, error in results)
    # The gap is about half the relative variance of one weight, over K.
    assert EVIDENCE.item() - results[-1][0] < (EVIDENCE.item() - results[0][0]) / 20


def test_the_mean_weight_is_unbiased():
    weights = log_weights(WRONG, 10, 20_000).exp().mean(0)
    mean, error = estimate(weights)
    assert abs(mean - EVIDENCE.exp().item()) < 4 * error


def test_bound_takes_a_dimension():
    weights = log_weights(WRONG, 4, 6)
    torch.testing.assert_close(
        importance_weighted_bound(weights.T, dim=1), importance_weighted_bound(weights)
    )


def test_effective_sample_size_of_equal_weights_is_k():
    value = effective_sample_size(torch.full((8, 3), -700.0, dtype=torch.float64))
    torch.testing.assert_close(value, torch.full((3,), 8.0, dtype=torch.float64))


def test_effective_sample_size_of_one_dominant_weight_is_one():
    assert effective_sample_size(torch.tensor([0.0, -200.0, -300.0])).item() == pytest.approx(1)


def test_effective_sample_size_by_hand():
    # Weights 1, 2, 3: 6**2 / (1 + 4 + 9); the same after scaling by e**500.
    weights = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64).log() + 500
    torch.testing.assert_close(
        effective_sample_size(weights, dim=1), torch.tensor([36 / 14], dtype=torch.float64)
    )


def test_gradient_is_the_normalised_weight():
    weights = log_weights(WRONG, 5, 3).requires_grad_()
    (grad,) = torch.autograd.grad(importance_weighted_bound(weights).sum(), weights)
    by_hand = weights.detach().exp() / weights.detach().exp().sum(0)
    torch.testing.assert_close(grad, by_hand)
    assert torch.autograd.gradcheck(effective_sample_size, weights)
