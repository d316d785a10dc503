"""The derivatives that are written out: autograd's of the KL itself, and many digits."""

import mpmath
import pytest
import torch

from shared.kl import kl_from_logits, kl_from_logits_gradient, kl_normal, kl_normal_gradient

mpmath.mp.dps = 50


def drawn(*shape, seed, spread=1.0):
    rng = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 20.0])
def test_of_logits_is_autograds(spread):
    p = drawn(7, 1, 5, seed=0, spread=spread)
    q = drawn(7, 4, 5, seed=1, spread=spread).requires_grad_()
    (expected,) = torch.autograd.grad(kl_from_logits(p, q).sum(), q)
    found = kl_from_logits_gradient(p, q.detach())
    assert found.shape == (7, 4, 5)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)


def test_of_logits_where_categories_are_excluded():
    p = torch.tensor([0.0, 1.0, -torch.inf])
    q = torch.tensor([-torch.inf, 1.0, -torch.inf])
    share = torch.tensor(1 / (1 + 2.718281828))
    torch.testing.assert_close(
        kl_from_logits_gradient(p, q), torch.stack([-share, share, torch.tensor(0.0)])
    )


@pytest.mark.parametrize("spread", [1e-3, 1.0, 5.0])
def test_of_normals_is_autograds_and_broadcasts(spread):
    inputs = [
        drawn(*shape, seed=seed, spread=spread)
        for seed, shape in enumerate([(6, 3), (3,), (6, 3), (3,)])
    ]
    mu_q, logvar_q = inputs[2].requires_grad_(), inputs[3].requires_grad_()
    expected = torch.autograd.grad(kl_normal(*inputs).sum(), [mu_q, logvar_q])
    mean, logvar = kl_normal_gradient(*(x.detach() for x in inputs))
    assert mean.shape == logvar.shape == (6, 3)
    torch.testing.assert_close(mean, expected[0], rtol=1e-10, atol=0)
    # each row's own part, for one log-variance that all rows share
    torch.testing.assert_close(logvar.sum(0), expected[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gap", [1e-6, -1e-4, 1e-2, 3.0])
def test_of_a_variance_keeps_its_digits_where_the_two_are_close(gap):
    mu, logvar = torch.tensor(0.5), torch.tensor(-1.0)
    other = logvar + gap
    gap = mpmath.mpf(other.item()) - mpmath.mpf(logvar.item())  # as float32 has it
    _, found = kl_normal_gradient(mu, logvar, mu, other)
    truth = (1 - mpmath.exp(-gap)) / 2
    assert abs(found.item() / truth - 1) < 1e-6


@pytest.mark.parametrize("logvar", [-90.0, -170.0])
def test_of_variances_whose_inverse_overflows(logvar):
    mean, variance = kl_normal_gradient(
        torch.tensor(0.5), torch.tensor(logvar + 2), torch.tensor(0.5), torch.tensor(logvar)
    )
    assert mean.item() == 0
    assert variance.item() == pytest.approx(-3.1945, rel=1e-4)
