"""GAE against the double sum of its definition, for every mixture of ends."""

import itertools

import pytest
import torch

from shared.training.advantages import gae, standardise


def brute_force(r, v, successor, terminated, truncated, gamma, lam):
    """sum_l (gamma lam)^l delta_{t+l}, up to the first end; Schulman 2016, eq. 16."""
    advantages = torch.zeros_like(r)
    for t in range(len(r)):
        for s in range(t, len(r)):
            bootstrap = 0.0 if terminated[s] else gamma * successor[s]
            advantages[t] += (gamma * lam) ** (s - t) * (r[s] + bootstrap - v[s])
            if terminated[s] or truncated[s]:
                break
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.9)])
def test_every_mixture_of_ends(gamma, lam):
    torch.manual_seed(0)
    for ends in itertools.product((0, 1, 2, 3), repeat=4):  # none, terminated, truncated, both
        terminated = torch.tensor([e in (1, 3) for e in ends])
        truncated = torch.tensor([e in (2, 3) for e in ends])
        r, v, last = torch.randn(3, 4, dtype=torch.float64)
        following = torch.cat([v[1:], torch.randn(1, dtype=torch.float64)])
        successor = torch.where(truncated, last, following)
        expected = brute_force(r, v, successor, terminated, truncated, gamma, lam)
        next_values = torch.where(terminated, 0.0, successor)
        ours = gae(r, v, next_values, terminated | truncated, gamma, lam)
        assert torch.allclose(ours, expected, atol=1e-12), ends


def test_columns_are_independent_and_the_inputs_stay():
    torch.manual_seed(1)
    r, v, n = torch.randn(3, 6, 5)
    ended = torch.rand(6, 5) < 0.3
    copies = [x.clone() for x in (r, v, n, ended)]
    whole = gae(r, v, n, ended, 0.9, 0.95)
    for i in range(5):
        assert torch.equal(whole[:, i], gae(r[:, i], v[:, i], n[:, i], ended[:, i], 0.9, 0.95))
    assert all(torch.equal(a, b) for a, b in zip(copies, (r, v, n, ended), strict=True))


def test_lambda_one_is_monte_carlo_and_lambda_zero_one_step():
    r, v = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 0.125])
    ended, following = torch.tensor([False, False, True]), torch.tensor([0.25, 0.125, 0.0])
    assert torch.allclose(gae(r, v, following, ended, 1.0, 1.0) + v, torch.tensor([6.0, 5.0, 3.0]))
    assert torch.allclose(gae(r, v, following, ended, 0.5, 0.0), r + 0.5 * following - v)


def test_shapes_are_checked():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"next_values must have shape \[3, 2\]"):
        gae(x, x, torch.zeros(3), x.bool(), 0.9, 0.9)


def test_standardise():
    x = 1e6 + torch.randn(1000, generator=torch.Generator().manual_seed(0))
    z = standardise(x, 1000).double()
    wide = x.double()
    assert torch.allclose(z, (wide - wide.mean()) / wide.std(correction=0), atol=1e-6)
    assert torch.equal(standardise(torch.full((5,), 3.0), 5), torch.zeros(5))
    assert torch.isfinite(standardise(torch.tensor([1e30, -1e30, 0.0]), 3)).all()
