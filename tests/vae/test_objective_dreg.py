"""The doubly reparameterised gradient (Tucker et al. 2019) against the plain one of IWAE."""

import pytest
import torch

from vae import objective
from vae.model import Output

K, DRAWS, LATENT, PIXELS = 4, 60_000, 3, 5


def encoder_gradients(dreg, decoder, mu, logvar, beta=1.0, seed=0):
    """[DRAWS, 2 * LATENT]: the gradient in mu and logvar of every noise draw on one image."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.tensor([1.0, 0, 1, 1, 0], dtype=torch.float64).expand(DRAWS, PIXELS)
    mu, logvar = (v.expand(DRAWS, LATENT).clone().requires_grad_() for v in (mu, logvar))
    eps = torch.randn(K, DRAWS, LATENT, generator=rng, dtype=torch.float64)
    z = mu + eps * torch.exp(0.5 * logvar)
    terms = objective.iwae(
        x, Output(mu, logvar, z, z @ decoder), lambda rows: rows.mean(0), beta=beta, dreg=dreg
    )
    return DRAWS * torch.cat(torch.autograd.grad(terms.total, (mu, logvar)), 1)


@pytest.fixture
def decoder():
    return torch.randn(
        LATENT, PIXELS, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )


MU = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
LOGVAR = torch.tensor([-0.5, 0.2, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("beta", [1.0, 0.5, 1.5])
def test_the_encoder_gradient_has_the_same_expectation(decoder, beta):
    plain = encoder_gradients(False, decoder, MU, LOGVAR, beta, seed=1)
    dreg = encoder_gradients(True, decoder, MU, LOGVAR, beta, seed=2)
    error = ((plain.var(0) + dreg.var(0)) / DRAWS).sqrt()
    assert error.max() < 0.01
    assert (plain.mean(0).abs() > 10 * error).any()  # there is a gradient to get wrong
    assert ((plain.mean(0) - dreg.mean(0)).abs() < 4 * error).all()


def test_the_encoder_gradient_is_less_noisy(decoder):
    plain = encoder_gradients(False, 0.3 * decoder, 0.1 * MU, 0.1 * LOGVAR)
    dreg = encoder_gradients(True, 0.3 * decoder, 0.1 * MU, 0.1 * LOGVAR)
    assert (dreg.var(0) < 0.5 * plain.var(0)).all()


def test_at_the_exact_posterior_nothing_is_left_of_the_noise(decoder):
    # A decoder that ignores z has the prior for its posterior: all weights are equal.
    zero = torch.zeros(LATENT, dtype=torch.float64)
    plain = encoder_gradients(False, 0 * decoder, zero, zero)
    dreg = encoder_gradients(True, 0 * decoder, zero, zero)
    assert dreg.abs().max() < 1e-12
    assert plain.std(0).min() > 0.1


def test_the_decoder_gradient_is_that_of_iwae(decoder):
    rng = torch.Generator().manual_seed(3)
    x = (torch.rand(6, PIXELS, generator=rng) < 0.5).double()
    eps = torch.randn(K, 6, LATENT, generator=rng, dtype=torch.float64)
    gradients = []
    for dreg in (False, True):
        weights = decoder.clone().requires_grad_()
        mu, logvar = (v.expand(6, LATENT).clone().requires_grad_() for v in (MU, LOGVAR))
        z = mu + eps * torch.exp(0.5 * logvar)
        out = Output(mu, logvar, z, z @ weights)
        loss = objective.iwae(x, out, lambda rows: rows.mean(0), beta=1.0, dreg=dreg).total
        gradients += torch.autograd.grad(loss, weights)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_one_sample_is_the_path_derivative(decoder):
    # With K = 1 every weight is 1: what is left is the gradient through z alone.
    mu = MU[None].clone().requires_grad_()
    logvar = LOGVAR[None].clone().requires_grad_()
    eps = torch.randn(1, 1, LATENT, generator=torch.Generator().manual_seed(4)).double()
    x = torch.ones(1, PIXELS, dtype=torch.float64)
    z = mu + eps * torch.exp(0.5 * logvar)
    out = Output(mu, logvar, z, z @ decoder)
    loss = objective.iwae(x, out, lambda rows: rows.mean(0), beta=1.0, dreg=True).total
    got = torch.autograd.grad(loss, (mu, logvar), retain_graph=False)
    with torch.no_grad():
        sd = (0.5 * logvar).exp()
        zz = (mu + eps * sd)[0]
        slope = (x - (zz @ decoder).sigmoid()) @ decoder.T - zz + eps[0] / sd
        expected = (-slope, -slope * eps[0] * sd / 2)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
