import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from torch.distributions import Bernoulli, Normal, kl_divergence

from vae import objective
from vae.model import Output

K, BATCH, LATENT, PIXELS = 3, 4, 2, 6


def mean(rows):
    return rows.mean(0)


def parameters(seed=0, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    encoder = scale * torch.randn(PIXELS, 2 * LATENT, generator=rng, dtype=torch.float64)
    decoder = scale * torch.randn(LATENT, PIXELS, generator=rng, dtype=torch.float64)
    return encoder.requires_grad_(), decoder.requires_grad_()


def images(n=BATCH, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return (torch.rand(n, PIXELS, generator=rng) < 0.4).double()


def noise(k=K, n=BATCH, d=LATENT, seed=2):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(k, n, d, generator=rng, dtype=torch.float64)


def forward(x, encoder, decoder, eps):
    """A VAE of two matrices."""
    mu, logvar = (x @ encoder).chunk(2, -1)
    z = mu + eps * torch.exp(0.5 * logvar)
    return Output(mu, logvar, z, z @ decoder)


def by_hand(x, out):
    """log p(x|z), log p(z), log q(z|x), each [k, batch], and the KL of each latent [latent]."""
    q = Normal(out.mu, (0.5 * out.logvar).exp())
    p = Normal(torch.zeros_like(out.mu), 1.0)
    likelihood = Bernoulli(logits=out.logits).log_prob(x.expand_as(out.logits)).sum(-1)
    kl = kl_divergence(q, p).mean(0)
    return likelihood, p.log_prob(out.z).sum(-1), q.log_prob(out.z).sum(-1), kl


@pytest.fixture
def example():
    x = images()
    out = forward(x, *parameters(), noise())
    return x, out, by_hand(x, out)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_elbo_is_distortion_plus_beta_rate(example, beta):
    x, out, (likelihood, _, _, kl) = example
    terms = objective.elbo(x, out, mean, beta=beta, minimum=0.0)
    close(terms.total, -likelihood.mean() + beta * kl.sum())
    close(terms.distortion, -likelihood.mean())
    close(terms.rate, kl)
    assert terms.total.requires_grad
    assert not terms.distortion.requires_grad
    assert not terms.rate.requires_grad


def test_free_bits_replace_the_small_latents_by_the_minimum(example):
    x, out, (likelihood, _, _, kl) = example
    minimum = kl.mean().item()  # between the two latents
    terms = objective.elbo(x, out, mean, beta=2.0, minimum=minimum)
    close(terms.total, -likelihood.mean() + 2 * (minimum + kl.max()))
    close(terms.rate, kl)


@pytest.mark.parametrize("nats", [0.0, 1e3])
def test_capacity_is_a_distance_from_either_side(example, nats):
    x, out, (likelihood, _, _, kl) = example
    terms = objective.capacity(x, out, mean, nats=nats, gamma=5.0)
    close(terms.total, -likelihood.mean() + 5 * abs(kl.sum() - nats))
    close(terms.distortion, -likelihood.mean())


def test_total_correlation_with_beta_one_is_the_monte_carlo_elbo(example):
    x, out, (likelihood, prior, q, _) = example
    one = out._replace(z=out.z[:1], logits=out.logits[:1])
    for dataset_size in (BATCH, 60_000):
        terms = objective.total_correlation(
            x, one, mean, beta=1.0, gather=lambda rows: rows, dataset_size=dataset_size
        )
        close(terms.total, -(likelihood + prior - q)[0].mean())


def test_total_correlation_weighs_the_total_correlation_alone(example):
    x, out, _ = example
    one = out._replace(z=out.z[:1], logits=out.logits[:1])
    low, high = (
        objective.total_correlation(
            x, one, mean, beta=beta, gather=lambda rows: rows, dataset_size=BATCH
        ).total
        for beta in (1.0, 3.0)
    )
    q = Normal(out.mu, (0.5 * out.logvar).exp())
    pairs = q.log_prob(out.z[0][:, None]).exp() / BATCH**2
    correlation = pairs.prod(-1).mul(BATCH**2).sum(1).log() - pairs.sum(1).log().sum(-1)
    close(high - low, 2 * correlation.mean())


@pytest.mark.parametrize("dreg", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_iwae_is_minus_the_log_of_the_mean_weight(k, dreg, beta):
    x = images()
    out = forward(x, *parameters(), noise(k))
    likelihood, prior, q, kl = by_hand(x, out)
    weights = (likelihood + beta * (prior - q)).exp()
    terms = objective.iwae(x, out, mean, beta=beta, dreg=dreg)
    close(terms.total, -weights.mean(0).log().mean())
    close(terms.distortion, -likelihood.mean())
    close(terms.rate, kl)


def test_log_weights_average_to_the_evidence_by_quadrature():
    rng = torch.Generator().manual_seed(5)
    decoder = torch.randn(1, PIXELS, generator=rng, dtype=torch.float64)
    x = images(1)

    def joint(z):
        logits = torch.tensor([[z]], dtype=torch.float64) @ decoder
        likelihood = Bernoulli(logits=logits).log_prob(x).sum().item()
        return math.exp(likelihood - z * z / 2) / math.sqrt(2 * math.pi)

    evidence, _ = quad(joint, -9, 9)
    mu, logvar = torch.tensor([[0.3]]).double(), torch.tensor([[0.2]]).double()
    z = mu + noise(100_000, 1, 1) * (0.5 * logvar).exp()
    weights = objective.log_weights(x, Output(mu, logvar, z, z @ decoder)).exp()
    error = weights.std().item() / math.sqrt(len(weights))
    assert error < 0.01 * evidence
    assert abs(weights.mean().item() - evidence) < 4 * error


@pytest.mark.parametrize("k", [1, 5])
def test_vib_is_cross_entropy_plus_beta_rate(k):
    rng = torch.Generator().manual_seed(3)
    out = forward(images(), *parameters(), noise(k))
    out = out._replace(logits=torch.randn(k, BATCH, 10, generator=rng, dtype=torch.float64))
    labels = torch.tensor([3, 0, 9, 3])
    kl = by_hand(images(), out._replace(logits=torch.zeros(k, BATCH, PIXELS)))[3]
    nll = sum(F.cross_entropy(out.logits[s], labels) for s in range(k)) / k
    terms = objective.vib(labels, out, mean, beta=0.25)
    close(terms.total, nll + 0.25 * kl.sum())
    close(terms.distortion, nll)
    close(terms.rate, kl)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, out: objective.elbo(x, out, mean, beta=4.0, minimum=0.0),
        lambda x, out: objective.elbo(x, out, mean, beta=1.0, minimum=1.0),
        lambda x, out: objective.capacity(x, out, mean, nats=3.0, gamma=2.0),
        lambda x, out: objective.iwae(x, out, mean, beta=1.0, dreg=False),
        lambda x, out: objective.total_correlation(
            x, out, mean, beta=6.0, gather=lambda rows: rows, dataset_size=100
        ),
        lambda _, out: objective.vib(torch.tensor([1, 0, 5, 2]), out, mean, beta=0.1),
    ],
    ids=["elbo", "free bits", "capacity", "iwae", "tc", "vib"],
)
def test_gradients_by_finite_differences(loss):
    x, eps = images(), noise()
    assert torch.autograd.gradcheck(
        lambda encoder, decoder: loss(x, forward(x, encoder, decoder, eps)).total,
        parameters(scale=0.7),
    )


def test_every_objective_averages_the_rows_of_the_batch():
    # The batch twice over is the same mean; a sum, or a mean over the wrong axis, is not.
    x, eps = images(), noise()
    for beta, dreg in itertools.product((1.0, 0.5), (True, False)):
        once = objective.iwae(x, forward(x, *parameters(), eps), mean, beta=beta, dreg=dreg)
        twice = objective.iwae(
            x.repeat(2, 1),
            forward(x.repeat(2, 1), *parameters(), eps.repeat(1, 2, 1)),
            mean,
            beta=beta,
            dreg=dreg,
        )
        for a, b in zip(once, twice, strict=True):
            close(a, b)
