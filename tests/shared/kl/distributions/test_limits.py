"""Pairs of different families near the parameters at which they are equal; expanded Geometrics."""

import mpmath
import pytest
import torch
from torch import distributions as td
from torch import tensor as t

from shared.kl import kl_divergence

GAPS = [1e-2, 1e-3, 1e-4]


def exact(x: torch.Tensor) -> mpmath.mpf:
    return mpmath.mpf(x.item())


def close(found: torch.Tensor, truth: mpmath.mpf) -> None:
    assert found.dtype == torch.float32
    assert abs(found.item() / truth - 1) < 1e-6


def of_gammas(a: mpmath.mpf, b: mpmath.mpf, c: mpmath.mpf, d: mpmath.mpf) -> mpmath.mpf:
    with mpmath.workdps(40):
        shapes = (a - c) * mpmath.psi(0, a) - mpmath.loggamma(a) + mpmath.loggamma(c)
        return shapes + c * (mpmath.log(b) - mpmath.log(d)) + a * (d - b) / b


def of_betas(a: mpmath.mpf, b: mpmath.mpf, c: mpmath.mpf, d: mpmath.mpf) -> mpmath.mpf:
    def log_beta(x: mpmath.mpf, y: mpmath.mpf) -> mpmath.mpf:
        return mpmath.loggamma(x) + mpmath.loggamma(y) - mpmath.loggamma(x + y)

    with mpmath.workdps(40):
        slopes = (a - c) * mpmath.psi(0, a) + (b - d) * mpmath.psi(0, b)
        total = (c - a + d - b) * mpmath.psi(0, a + b)
        return log_beta(c, d) - log_beta(a, b) + slopes + total


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("rate", [1e-4, 1.0, 1e5])
def test_exponential_and_gamma(gap: float, rate: float) -> None:
    rate_p, shape, rate_q = t(rate), t(1 + gap), t(rate * (1 + gap))
    exponential, gamma = td.Exponential(rate_p), td.Gamma(shape, rate_q)
    one, p, a, q = mpmath.mpf(1), exact(rate_p), exact(shape), exact(rate_q)
    close(kl_divergence(exponential, gamma), of_gammas(one, p, a, q))
    close(kl_divergence(gamma, exponential), of_gammas(a, q, one, p))


@pytest.mark.parametrize("gap", GAPS)
def test_beta_and_uniform(gap: float) -> None:
    a, b, one = t(1 + gap), t(1 - gap / 3), mpmath.mpf(1)
    beta, uniform = td.Beta(a, b), td.Uniform(t(0.0), t(1.0))
    close(kl_divergence(beta, uniform), of_betas(exact(a), exact(b), one, one))
    close(kl_divergence(uniform, beta), of_betas(one, one, exact(a), exact(b)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("gap", GAPS)
def test_low_rank_normals(gap: float, scale: float) -> None:
    rng = torch.Generator().manual_seed(0)
    mean, factor = torch.zeros(4), scale * torch.randn(4, 2, generator=rng)
    diagonal = scale**2 * (torch.rand(4, generator=rng) + 0.5)
    pair = [
        td.LowRankMultivariateNormal(mean, f, diagonal, validate_args=False)
        for f in (factor, factor * (1 + gap))
    ]
    with mpmath.workdps(40):
        p, q = (
            mpmath.matrix((f.double() @ f.double().T + diagonal.double().diag()).tolist())
            for f in (factor, factor * (1 + gap))
        )
        ratio = q**-1 * p
        trace = sum(ratio[i, i] for i in range(4))
        truth = (trace - 4 - mpmath.log(mpmath.det(ratio))) / 2
    close(kl_divergence(*pair), truth)


@pytest.mark.parametrize("logit", [-20.0, 1.5, 20.0, 40.0])
@pytest.mark.parametrize("looked_at", [False, True])
def test_expanded_geometrics_keep_the_logits_they_were_made_of(
    logit: float, looked_at: bool
) -> None:
    pair, wide = [], []
    for value in (logit, logit + 1):
        made = td.Geometric(logits=t(value))
        if looked_at:
            assert made.probs.isfinite()
        pair.append(made.expand([2]))
        wide.append(td.Geometric(logits=t(value, dtype=torch.float64)))
    truth = kl_divergence(*wide).item()
    assert kl_divergence(*pair).tolist() == pytest.approx([truth] * 2, rel=1e-6)


@pytest.mark.parametrize("probability", [1e-12, 0.3, 1 - 1e-7])
def test_expanded_geometrics_keep_the_probabilities_they_were_made_of(probability: float) -> None:
    made, half = td.Geometric(t(probability)), td.Geometric(t(probability) / 2)
    assert made.logits.isfinite()
    truth = kl_divergence(
        td.Geometric(made.probs.double()), td.Geometric(half.probs.double())
    ).item()
    found = kl_divergence(made.expand([2]), half.expand([2]))
    assert found.tolist() == pytest.approx([truth] * 2, rel=1e-6)
