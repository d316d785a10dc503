"""Measurements on unseen digits, in nats per digit unless said; no gradients, no files."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from shared.kl import (
    effective_sample_size,
    importance_weighted_bound,
    kl_standard_normal,
    normal_log_prob,
)
from shared.training.seeding import EVALUATION, generator
from vae.model import CLASSES, PIXELS, VAE, VIB, Output
from vae.objective import log_weights

ROWS = 2500  # decoded images at a time: what fits a core's cache
ACTIVE = 0.01  # Burda et al. 2015, section 5.2: a unit is active when Var_x E[z|x] exceeds this
COLLAPSED = 0.01  # nats: a latent with a smaller KL carries nothing
VIB_SAMPLES = 12  # Alemi et al. 2016, section 4.1


def passes(model: VAE | VIB, x: Tensor, k: int, seed: int) -> Iterator[tuple[slice, Output]]:
    """Forward passes over x [n, pixels] with k samples each, in pieces of about ROWS decodings.

    The noise is a function of the seed and the piece; digits and samples are both cut up.
    """
    latent = model.encode(x[:1])[0].shape[1]
    digits = max(1, min(len(x), ROWS // min(k, ROWS // 25)))
    for start in range(0, len(x), digits):
        rng = generator(x.device, seed, EVALUATION, k, start)
        rows = slice(start, min(start + digits, len(x)))
        for done in range(0, k, ROWS // 25):
            eps = torch.randn(
                min(k - done, ROWS // 25), rows.stop - start, latent, generator=rng, device=x.device
            )
            yield rows, model(x[rows], eps)


@torch.no_grad()
def bound(model: VAE, x: Tensor, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Importance-weighted log-likelihood and effective sample size of each digit, both [n].

    Burda et al. 2015, eq. 8, on observed pixels x [n, pixels]; 1 sample gives the ELBO.
    """
    weights: list[list[Tensor]] = []
    last = None
    for rows, out in passes(model, x, samples, seed):
        if rows != last:
            weights.append([])
            last = rows
        weights[-1].append(log_weights(x[rows], out))
    joined = [torch.cat(parts) for parts in weights]
    return (
        torch.cat([importance_weighted_bound(w) for w in joined]),
        torch.cat([effective_sample_size(w) for w in joined]),
    )


@torch.no_grad()
def encode_all(model: VAE | VIB, x: Tensor) -> tuple[Tensor, Tensor]:
    """mu and logvar of all digits, [n, latent] each."""
    parts = [model.encode(rows) for rows in x.split(ROWS)]
    return torch.cat([mu for mu, _ in parts]), torch.cat([logvar for _, logvar in parts])


@torch.no_grad()
def surgery(mu: Tensor, logvar: Tensor, seed: int = 0) -> tuple[float, float]:
    """Rate split into (I(n; z), KL(q(z) || p(z))), Hoffman and Johnson 2016.

    q(z) is the average of the n posteriors given, so that I(n; z) is the information z carries
    about which of the n digits it came from and cannot exceed log n. One sample z per digit; the
    n x n densities are computed in float64.
    """
    mu, logvar = mu.double(), logvar.double()
    rng = generator(mu.device, seed, EVALUATION, 1)
    eps = torch.randn(mu.shape, generator=rng, device=mu.device, dtype=mu.dtype)
    z = mu + eps * torch.exp(0.5 * logvar)
    precision = torch.exp(-logvar)
    constant = -0.5 * (mu.square() * precision + logvar + math.log(2 * math.pi)).sum(-1)
    log_q_z = torch.cat(
        [
            torch.logsumexp(
                constant - 0.5 * piece.square() @ precision.T + piece @ (mu * precision).T, 1
            )
            for piece in z.split(ROWS)
        ]
    ) - math.log(len(mu))
    log_q_z_given_x = normal_log_prob(z, mu, logvar).sum(-1)
    rate = kl_standard_normal(mu, logvar).sum(-1).mean()
    information = (log_q_z_given_x - log_q_z).mean()
    return information.item(), (rate - information).item()


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Share of digits a linear classifier gets right from the latent means [n, latent]."""
    scale = train.std(0) + 1e-6
    classifier = LogisticRegression(max_iter=300)
    classifier.fit((train / scale).cpu().numpy(), labels.cpu().numpy())
    return float(classifier.score((test / scale).cpu().numpy(), test_labels.cpu().numpy()))


def diagnose(kl: Tensor, active: int) -> str:
    """Say in words whether the posterior collapsed; kl [latent] mean nats of each latent."""
    dead = int((kl < COLLAPSED).sum())
    if dead == len(kl):
        return f"collapsed: all {len(kl)} latents carry under {COLLAPSED} nats, x does not reach z"
    if dead:
        return (
            f"{dead} of {len(kl)} latents carry under {COLLAPSED} nats and follow the prior, "
            f"{active} are active; pruning of superfluous latents, no collapse"
        )
    return f"no collapse: every one of the {len(kl)} latents carries at least {COLLAPSED} nats"


def evaluate_vae(
    model: VAE, x: Tensor, y: Tensor, train_x: Tensor, train_y: Tensor, samples: int, seed: int = 0
) -> dict[str, Any]:
    """All metrics of a VAE on observed digits x [n, pixels], y [n]; the probe fits train_x."""
    log_likelihood, ess = bound(model, x, samples, seed)
    elbo, _ = bound(model, x, 1, seed)
    mu, logvar = encode_all(model, x)
    kl = kl_standard_normal(mu, logvar)
    rate = kl.sum(-1).mean().item()
    information, marginal = surgery(mu, logvar, seed)
    active = int((mu.var(0) > ACTIVE).sum())
    return {
        "digits": len(x),
        "log_likelihood": log_likelihood.mean().item(),
        "log_likelihood_standard_error": (log_likelihood.std() / math.sqrt(len(x))).item(),
        "importance_samples": samples,
        "effective_samples_median": ess.median().item(),
        "elbo": elbo.mean().item(),
        "distortion": -elbo.mean().item() - rate,
        "rate": rate,
        "bits_per_pixel": -log_likelihood.mean().item() / (math.log(2) * PIXELS),
        "kl_per_latent": kl.mean(0).tolist(),
        "active_units": active,
        "information_about_which_digit": information,
        "information_ceiling_log_n": math.log(len(x)),
        "aggregate_posterior_kl": marginal,
        "probe_accuracy": probe_accuracy(encode_all(model, train_x)[0], train_y, mu, y),
        "diagnosis": diagnose(kl.mean(0), active),
    }


@torch.no_grad()
def evaluate_vib(model: VIB, x: Tensor, y: Tensor, seed: int = 0) -> dict[str, Any]:
    """All metrics of a VIB classifier on digits x [n, pixels] with labels y [n].

    Predictions average the class probabilities of 12 samples z, as the paper does; information
    bounds: I(X; Z) <= rate, I(Z; Y) >= H(Y) - cross-entropy (Alemi et al. 2016, eqs. 11 and 14).
    """
    probabilities = torch.cat(
        [out.logits.softmax(-1).mean(0) for _, out in passes(model, x, VIB_SAMPLES, seed)]
    )
    mu, logvar = encode_all(model, x)
    nll = -probabilities.gather(1, y[:, None]).log().mean().item()
    prior = torch.bincount(y, minlength=CLASSES).double() / len(y)
    kl = kl_standard_normal(mu, logvar)
    mean_prediction = model.decode(mu[None])[0].argmax(-1)
    return {
        "digits": len(x),
        "errors": int((probabilities.argmax(-1) != y).sum()),
        "error_percent": 100 * (probabilities.argmax(-1) != y).double().mean().item(),
        "error_percent_of_mean_latent": 100 * (mean_prediction != y).double().mean().item(),
        "samples": VIB_SAMPLES,
        "cross_entropy": nll,
        "rate": kl.sum(-1).mean().item(),
        "information_about_class_at_least": torch.special.entr(prior).sum().item() - nll,
        "kl_per_latent": kl.mean(0).tolist(),
        "active_units": int((mu.var(0) > ACTIVE).sum()),
    }
