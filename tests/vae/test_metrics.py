import json
import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import binom, norm
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from vae import metrics
from vae.model import PIXELS, VAE, VIB, Output

SMALL = {"network": "mlp", "latent": 3, "width": 8, "depth": 1}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def digits(n, seed=0):
    return (torch.rand(n, PIXELS, generator=rng(seed)) < 0.3).float()


def tiny_vae(**changes):
    torch.manual_seed(0)
    model = VAE(**(SMALL | changes))
    model.start_at(torch.full((PIXELS,), 0.3))
    return model


def deaf_vae():
    """The decoder ignores z and q is the prior: every weight is p(x)."""
    model = tiny_vae()
    for network in (model.encoder, model.decoder):
        nn.init.zeros_(network[-1].weight)
    return model


def test_passes_give_every_digit_k_samples(monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 100)  # four samples at a time
    for n, k in ((7, 1), (30, 3), (60, 10), (1, 9)):
        seen = torch.zeros(n, dtype=torch.int64)
        for rows, out in metrics.passes(tiny_vae(), digits(n), k, seed=0):
            seen[rows] += out.z.shape[0]
            assert out.z.shape[1] == rows.stop - rows.start
            assert out.z.shape[0] * out.z.shape[1] <= 100
        assert seen.tolist() == [k] * n


def test_passes_do_not_repeat_their_noise(monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 100)
    x = digits(1).repeat(60, 1)  # one digit over and over: only the noise differs
    z = torch.cat([out.z.flatten(0, 1) for _, out in metrics.passes(tiny_vae(), x, 10, seed=0)])
    assert len(z[:, 0].unique()) == 600


@pytest.mark.parametrize("rows", [50, 125, 2500])
@pytest.mark.parametrize("samples", [1, 7, 230])
def test_bound_is_the_evidence_however_it_is_cut(monkeypatch, rows, samples):
    monkeypatch.setattr(metrics, "ROWS", rows)
    x = digits(60)
    log_likelihood, ess = metrics.bound(deaf_vae(), x, samples)
    truth = Bernoulli(probs=torch.tensor(0.3)).log_prob(x).sum(-1)
    torch.testing.assert_close(log_likelihood, truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(ess, torch.full((60,), float(samples)), rtol=1e-3, atol=0)


def test_bound_against_quadrature():
    model = tiny_vae(latent=1)
    with torch.no_grad():
        model.decoder[-1].weight.mul_(0.5)
    x = digits(4)
    z = torch.linspace(-8, 8, 4001)
    with torch.no_grad():
        logits = model.decode(z[:, None, None])[:, 0].double()
    prior = Normal(0.0, 1.0).log_prob(z).double()
    weights = torch.full((4001,), 16 / 4000, dtype=torch.float64).log()
    likelihood = torch.stack([Bernoulli(logits=logits).log_prob(row).sum(-1) for row in x.double()])
    truth = torch.logsumexp(likelihood + prior + weights, 1)
    value, ess = metrics.bound(model, x, 20_000)
    assert ess.min() > 500
    # The relative variance of the mean weight is 1/ess - 1/K.
    assert ((value - truth).abs() < 4 / ess.sqrt() + 1e-3).all()
    elbo, one = metrics.bound(model, x.repeat(500, 1), 1)
    assert elbo.unflatten(0, (500, 4)).mean(0).lt(truth).all()
    torch.testing.assert_close(one, torch.ones(2000))


def test_encode_all_is_encode(monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 16)
    model, x = tiny_vae(), digits(50)
    torch.testing.assert_close(metrics.encode_all(model, x), model.encode(x), rtol=1e-4, atol=1e-5)


def test_surgery_splits_the_rate_and_information_stays_below_log_n():
    for spread in (0.1, 1.0, 5.0):
        mu = spread * torch.randn(50, 3, generator=rng(1))
        logvar = torch.randn(50, 3, generator=rng(2)) - 1
        information, marginal = metrics.surgery(mu, logvar)
        q = Normal(mu.double(), (0.5 * logvar.double()).exp())
        rate = kl_divergence(q, Normal(torch.zeros(()).double(), 1.0)).sum(-1).mean().item()
        assert information + marginal == pytest.approx(rate, rel=1e-9)
        assert information <= math.log(50) + 1e-12


def test_surgery_at_its_two_ends():
    apart = 100 * torch.arange(8.0)[:, None] * torch.ones(2)
    assert metrics.surgery(apart, torch.zeros(8, 2))[0] == pytest.approx(math.log(8), abs=1e-9)
    equal = torch.full((8, 2), 0.7)
    assert metrics.surgery(equal, equal) == pytest.approx(
        (0, 0.7**2 + math.exp(0.7) - 1.7), abs=1e-6
    )


def test_surgery_against_quadrature(monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 700)  # the last piece is a short one
    centres, logvars, copies = [-1.5, 0.3, 1.2], [-1.0, -2.0, 0.1], 1000
    parts = [norm(m, math.exp(v / 2)) for m, v in zip(centres, logvars, strict=True)]

    def mixture(z):
        return sum(part.pdf(z) for part in parts) / 3

    def moment(power):
        values = [
            quad(lambda z, q=q: q.pdf(z) * math.log(q.pdf(z) / mixture(z)) ** power, -6, 6)[0]
            for q in parts
        ]
        return sum(values) / 3

    mu, logvar = (torch.tensor(v).repeat(copies)[:, None] for v in (centres, logvars))
    information, _ = metrics.surgery(mu, logvar)
    error = math.sqrt((moment(2) - moment(1) ** 2) / (3 * copies))
    assert error < 0.02
    assert abs(information - moment(1)) < 4 * error


def test_probe_finds_separable_classes_and_nothing_in_noise():
    labels = torch.arange(200) % 4
    noise = torch.randn(400, 6, generator=rng(3))
    signal = noise[:200].clone()
    signal[torch.arange(200), labels] += 20
    signal[:, 5] *= 1e4  # the scale of a latent does not matter
    assert metrics.probe_accuracy(signal[:100], labels[:100], signal[100:], labels[100:]) == 1
    chance = metrics.probe_accuracy(noise[:200], labels, noise[200:], labels)
    assert abs(chance - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 200)


@pytest.mark.parametrize(
    ("kl", "starts", "says"),
    [
        ([0.0, 0.009], "collapsed: all 2", "x does not reach z"),
        ([0.0, 1.0, 2.0], "1 of 3 latents", "2 are active"),
        ([0.011, 1.0], "no collapse: every one of the 2", "at least 0.01 nats"),
    ],
)
def test_diagnosis_in_words(kl, starts, says):
    words = metrics.diagnose(torch.tensor(kl), active=sum(value > 0.5 for value in kl))
    assert words.startswith(starts)
    assert says in words


def test_evaluate_vae_adds_up_and_is_json():
    x, y = digits(80), torch.arange(80) % 10
    result = metrics.evaluate_vae(deaf_vae(), x, y, x, y, samples=5)
    truth = Bernoulli(probs=torch.tensor(0.3)).log_prob(x).sum(-1)
    assert result["log_likelihood"] == pytest.approx(truth.mean().item(), rel=1e-5)
    assert result["log_likelihood_standard_error"] == pytest.approx(
        (truth.std() / 80**0.5).item(), rel=1e-4
    )
    assert result["rate"] == 0
    assert result["active_units"] == 0
    assert result["diagnosis"].startswith("collapsed")
    assert result["distortion"] + result["rate"] == pytest.approx(-result["elbo"])
    assert result["bits_per_pixel"] == pytest.approx(-truth.mean().item() / math.log(2) / 784)
    json.dumps(result, allow_nan=False)


class Reader(nn.Module):
    """A VIB that reads the class from the first ten pixels, sure of itself."""

    def encode(self, x):
        return 30 * x[:, :10], torch.full((len(x), 10), -8.0)

    def decode(self, z):
        return z

    def forward(self, x, eps):
        mu, logvar = self.encode(x)
        z = mu + eps * torch.exp(0.5 * logvar)
        return Output(mu, logvar, z, self.decode(z))


def test_evaluate_vib_counts_errors_and_bounds_the_information():
    y = torch.arange(60) % 10
    x = torch.zeros(60, PIXELS)
    x[torch.arange(60), y] = 1
    right = metrics.evaluate_vib(Reader(), x, y)
    assert right["errors"] == 0
    assert right["information_about_class_at_least"] == pytest.approx(math.log(10), abs=1e-4)
    wrong = y.clone()
    wrong[:3] = (wrong[:3] + 1) % 10
    result = metrics.evaluate_vib(Reader(), x, wrong)
    assert result["errors"] == 3
    assert result["error_percent"] == result["error_percent_of_mean_latent"] == pytest.approx(5)
    assert result["cross_entropy"] == pytest.approx(3 * 30 / 60, rel=0.01)


def test_vib_predictions_average_probabilities_and_not_logits():
    # Two classes are a coin toss for each sample: the probability is a share of twelve votes.
    model, x = Reader(), torch.zeros(100, PIXELS)
    x[:, :2] = 1
    model.decode = lambda z: 1e4 * z
    votes = range(1, metrics.VIB_SAMPLES + 1)
    share = [binom.pmf(v, metrics.VIB_SAMPLES, 0.5) for v in votes]
    expected = sum(
        -p * math.log(v / metrics.VIB_SAMPLES) for v, p in zip(votes, share, strict=True)
    )
    result = metrics.evaluate_vib(model, x, torch.zeros(100, dtype=torch.int64))
    assert result["cross_entropy"] == pytest.approx(expected, abs=0.15)


def test_a_vib_that_knows_nothing_has_the_entropy_of_the_classes():
    torch.manual_seed(0)
    model = VIB(**SMALL)
    nn.init.zeros_(model.classifier.weight)
    result = metrics.evaluate_vib(model, digits(50), torch.arange(50) % 10)
    assert result["cross_entropy"] == pytest.approx(math.log(10), rel=1e-5)
    assert result["information_about_class_at_least"] == pytest.approx(0, abs=1e-5)
