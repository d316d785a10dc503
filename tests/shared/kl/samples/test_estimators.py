"""Estimators of a KL: their values, and samples that are functions of the parameters."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Independent,
    MultivariateNormal,
    Normal,
    StudentT,
    kl_divergence,
)

from shared.kl.samples.estimate import summarise_terms
from shared.kl.samples.estimators import (
    kl_loss,
    log_ratio_estimator,
    rao_blackwell_kl,
    reparameterized_kl,
)
from tests.shared.kl.samples.expectations import close, gradient

KINDS = ["k1", "k2", "k3"]


# Values


def gauss_hermite(function):
    """E f(x) of x ~ N(0, 1), exact to rounding for what is smooth."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    x = torch.as_tensor(nodes, dtype=torch.float64)
    return (torch.as_tensor(weights) * function(x)).sum() / math.sqrt(2 * math.pi)


def shifted(x, mu):
    """log p and log q of p = N(0, 1) and q = N(mu, 1)."""
    mu = torch.tensor(mu, dtype=torch.float64)
    return Normal(0.0, 1.0).log_prob(x), Normal(mu, 1.0).log_prob(x)


@pytest.mark.parametrize("mu", [0.1, 1.0])
@pytest.mark.parametrize(
    ("kind", "bias", "spread"),
    [
        ("k1", lambda _: 0, lambda m: 2 / m),
        ("k2", lambda m: m**2 / 4, lambda m: math.sqrt(2 + m**2)),
        ("k3", lambda _: 0, lambda m: 2 * math.sqrt(math.expm1(m**2) - m**2) / m**2),
    ],
)
def test_moments_of_a_shifted_gaussian_in_closed_form(kind, bias, spread, mu):
    truth = mu**2 / 2

    def terms(x):
        return log_ratio_estimator(*shifted(x, mu), kind)

    mean = gauss_hermite(terms)
    sd = gauss_hermite(lambda x: (terms(x) - mean).square()).sqrt()
    assert mean.item() == pytest.approx(truth * (1 + bias(mu)), rel=1e-9)
    assert sd.item() == pytest.approx(truth * spread(mu), rel=1e-9)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_samples_agree_within_their_standard_error(kind):
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    summary = summarise_terms(log_ratio_estimator(*shifted(x, 1.0), kind))
    mean, stderr, n, minimum = summary.estimate
    spread = {"k1": 2.0, "k3": 1.69503}[kind]
    assert stderr.item() == pytest.approx(0.5 * spread / math.sqrt(n), rel=0.03)
    assert abs(mean.item() - 0.5) < 4 * stderr
    assert (minimum < 0) == (kind == "k1")
    assert not summary.heavy_tailed


def test_the_default_is_k3_in_the_order_of_the_mathematics():
    terms = log_ratio_estimator(torch.tensor(2.0), torch.tensor(3.0))
    assert terms.item() == pytest.approx(math.e - 2, rel=1e-6)
    assert log_ratio_estimator(torch.tensor(2.0), torch.tensor(3.0), "k1").item() == -1
    assert log_ratio_estimator(torch.tensor(2.0), torch.tensor(3.0), "k2").item() == 0.5


@pytest.mark.parametrize("sign", [1, -1])
def test_k3_keeps_its_digits_in_float32(sign):
    logp = torch.tensor(sign * 1e-4)
    value = log_ratio_estimator(logp, torch.zeros(())).item()
    r = mpmath.mpf(logp.item())
    truth = mpmath.exp(-r) - 1 + r
    assert abs(value / truth - 1) < 1e-6
    naive = (-logp).exp() - 1 + logp
    assert abs(naive.item() / truth - 1) > 0.5


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_never_negative_however_close(kind):
    r = torch.linspace(-1e-3, 1e-3, 20_001)
    terms = log_ratio_estimator(r, torch.zeros(()), kind)
    assert (terms >= 0).all()
    assert ((terms == 0) == (r == 0)).all()


def test_overflow_is_inf_where_float32_ends():
    zero = torch.zeros(())
    assert log_ratio_estimator(zero - 90, zero).item() == math.inf
    assert log_ratio_estimator(zero + 90, zero).item() == 89
    assert log_ratio_estimator(zero.double() - 90, zero).item() == pytest.approx(math.exp(90))
    half = log_ratio_estimator(zero.half() - 12, zero.half())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(math.exp(12) - 13, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_reference_forbids_costs_inf_and_never_nan(kind):
    logp = torch.tensor([-0.5, -1.0], requires_grad=True)
    terms = log_ratio_estimator(logp, torch.tensor([-torch.inf, -1.0]), kind)
    assert terms.tolist() == [math.inf, 0]
    assert not gradient(terms.sum(), logp).isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_masked_positions_are_never_read(kind):
    nan = math.nan
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logp = torch.tensor([[-1.0, -2.0, nan], [-0.5, -math.inf, nan]], requires_grad=True)
    logq = torch.tensor([[-1.5, -1.0, -1.0], [-0.7, nan, -math.inf]])
    rows = [log_ratio_estimator(logp[i, :n], logq[i, :n], kind) for i, n in ((0, 2), (1, 1))]
    terms = log_ratio_estimator(logp, logq, kind, mask=mask)
    torch.testing.assert_close(terms[mask], torch.cat(rows), rtol=0, atol=0)
    assert (terms[~mask] == 0).all()
    mean = log_ratio_estimator(logp, logq, kind, mask=mask, reduction="positionmean", unit="bits")
    assert mean.item() == pytest.approx(torch.cat(rows).mean().item() / math.log(2), rel=1e-6)
    grad = gradient(mean, logp)
    assert (grad[~mask] == 0).all()
    assert grad[mask].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    rng = torch.Generator().manual_seed(1)
    pair = [torch.randn(5, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(lambda a, b: log_ratio_estimator(a, b, kind), pair)
    assert torch.autograd.gradgradcheck(lambda a, b: log_ratio_estimator(a, b, kind), pair)


def test_bad_arguments_are_named():
    x = torch.zeros(3)
    for function, message in [
        (lambda: log_ratio_estimator(x, x, "k4"), "kind must be one of k1, k2, k3"),
        (lambda: log_ratio_estimator(x, torch.zeros(2)), "logp .* and logq .* do not broadcast"),
        (lambda: log_ratio_estimator(x, x.int()), "logq must be a floating-point"),
        (lambda: log_ratio_estimator(x, x, mask=x), "mask must be bool"),
        (lambda: log_ratio_estimator(x, x, reduction="mean"), "reduction must be"),
        (lambda: log_ratio_estimator(x, x, unit="dits"), "unit must be"),
        (lambda: kl_loss(x, x, "jeffreys"), "grad must be one of reverse, forward"),
        (lambda: kl_loss(x, x, max_weight=2.0), "max_weight needs logp_behaviour"),
        (lambda: kl_loss(x, x, logp_behaviour=x, max_weight=0.0), "max_weight must be positive"),
        (lambda: kl_loss(x, x, logp_behaviour=torch.zeros(2)), "logp_behaviour"),
        (lambda: rao_blackwell_kl(x, x), "p_logits must be"),
        (lambda: reparameterized_kl(Bernoulli(0.5), Bernoulli(0.5), 3), "p must have rsample"),
        (lambda: reparameterized_kl(Normal(0.0, 1.0), Normal(0.0, 1.0), 0), "n must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            function()
    with pytest.raises(ValueError, match="one event shape"):
        reparameterized_kl(Normal(x, 1.0), Independent(Normal(x, 1.0), 1), 2)


# How far a standard error can be trusted


@pytest.mark.parametrize("n", [1_000, 100_000])
@pytest.mark.parametrize(
    ("q", "flag"), [(Normal(0.0, 3**0.5), True), (Normal(0.3, 1.0), False)], ids=["heavy", "light"]
)
def test_the_flag_tells_infinite_variance_of_k3(q, flag, n):
    """Of p = N(0, 1): with q = N(0, s^2) the variance of k3 is infinite exactly if s^2 >= 2."""
    p = Normal(0.0, 1.0)
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(n, generator=rng, dtype=torch.float64)
        logp, logq = p.log_prob(x), q.log_prob(x)
        assert summarise_terms(log_ratio_estimator(logp, logq, "k3")).heavy_tailed == flag
        assert not summarise_terms(log_ratio_estimator(logp, logq, "k1")).heavy_tailed


def test_the_share_by_hand_over_a_dimension():
    terms = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    summary = summarise_terms(terms)
    torch.testing.assert_close(summary.largest_share, torch.tensor([4 / 6, 0.0]))
    assert summary.heavy_tailed.tolist() == [True, False]
    assert summary.estimate.mean.tolist() == [1, 1]
    transposed = summarise_terms(terms.T, dim=1)
    torch.testing.assert_close(transposed.largest_share, summary.largest_share)
    assert summarise_terms(torch.tensor([1.0, math.inf])).heavy_tailed


# Samples as functions of the parameters


def gaussians(mean=0.7, scale=0.6):
    p = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (mean, scale)]
    q = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-0.2, 1.1)]
    return p, q


@pytest.mark.parametrize("landing", [False, True])
def test_reparameterized_value_and_gradient_are_unbiased(landing):
    p, q = gaussians()
    torch.manual_seed(0)
    n = 40_000
    # One copy of the parameters per sample gives every sample's own gradient.
    copies = [v.detach().expand(n).clone().requires_grad_() for v in (*p, *q)]
    terms = reparameterized_kl(
        Normal(*copies[:2]), Normal(*copies[2:]), 1, sticking_the_landing=landing
    )[0]
    truth = kl_divergence(Normal(*p), Normal(*q))
    exact = torch.autograd.grad(truth, [*p, *q])
    grads = torch.autograd.grad(terms.sum(), copies)
    for got, want in zip((terms.detach(), *grads), (truth.detach(), *exact), strict=True):
        error = got.std() / math.sqrt(n)
        assert error < 0.02
        assert abs(got.mean() - want) < 4 * error + 1e-12


def test_sticking_the_landing_has_no_noise_at_the_optimum():
    largest = {}
    for landing in (False, True):
        (mean, scale), _ = gaussians()
        q = Normal(mean.detach(), scale.detach())
        torch.manual_seed(0)
        for term in reparameterized_kl(Normal(mean, scale), q, 20, sticking_the_landing=landing):
            grads = torch.autograd.grad(term, [mean, scale], retain_graph=True)
            largest[landing] = max(largest.get(landing, 0), *(g.abs().item() for g in grads))
    assert largest[True] < 1e-14
    assert largest[False] > 0.5


@pytest.mark.parametrize("landing", [False, True])
def test_reparameterized_events_batches_and_missing_closed_forms(landing):
    torch.manual_seed(0)
    root = torch.tensor([[1.0, 0.0], [0.4, 0.8]], dtype=torch.float64, requires_grad=True)
    p = MultivariateNormal(torch.zeros(3, 2, dtype=torch.float64), scale_tril=root)
    q = MultivariateNormal(torch.ones(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    terms = reparameterized_kl(p, q, 4000, sticking_the_landing=landing)
    assert terms.shape == (4000, 3)
    truth = kl_divergence(p, q)
    error = terms.std(0) / math.sqrt(4000)
    assert ((terms.mean(0) - truth).abs() < 4 * error).all()
    wanted = gradient(truth.mean(), root).tril()
    close(gradient(terms.mean(), root).tril(), wanted, tolerance=0.1)
    no_form = reparameterized_kl(Normal(0.0, 1.0), StudentT(3.0), 2000)
    assert summarise_terms(no_form).estimate.mean > 0
