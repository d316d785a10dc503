"""Expectations are sums over every outcome: over four actions, and over all sentences of a small
autoregressive model that stops at its token 0."""

import itertools
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

from shared.kl.estimate import summarise_terms
from shared.kl.estimators import (
    kl_loss,
    log_ratio_estimator,
    rao_blackwell_kl,
    reparameterized_kl,
    sequence_kl_surrogate,
)

KINDS = ["k1", "k2", "k3"]
LOGITS = torch.tensor([0.2, -0.5, 1.3, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([1.0, -0.2, -0.4, 0.3], dtype=torch.float64).log_softmax(0)
BEHAVIOUR = torch.tensor([0.9, 0.1, 0.2, -0.7], dtype=torch.float64).log_softmax(0)


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def gradient(value, at):
    (grad,) = torch.autograd.grad(value, at, retain_graph=True)
    return grad


def discrete_kl(log_a, log_b):
    return (log_a.exp() * (log_a - log_b)).sum()


def policy():
    logits = LOGITS.clone().requires_grad_()
    return logits, logits.log_softmax(0)


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


# Losses: expectations over four actions


def test_differentiated_estimators_do_not_have_the_gradient_of_what_they_estimate():
    logits, logp = policy()
    p = logp.detach().exp()
    reverse = gradient(discrete_kl(logp, REFERENCE), logits)
    forward = gradient(discrete_kl(REFERENCE, logits.log_softmax(0)), logits)
    expected = {"k1": torch.zeros(4, dtype=torch.float64), "k2": reverse, "k3": forward}
    assert (reverse - forward).abs().max() > 0.05
    for kind, truth in expected.items():
        logits, logp = policy()
        mean = (p * log_ratio_estimator(logp, REFERENCE, kind)).sum()
        close(gradient(mean, logits), truth)


@pytest.mark.parametrize("behaviour", [None, BEHAVIOUR], ids=["on policy", "off policy"])
@pytest.mark.parametrize("grad", ["reverse", "forward"])
def test_kl_loss_has_the_value_of_kl_and_the_gradient_it_names(grad, behaviour):
    logits, logp = policy()
    sampled = (logp if behaviour is None else behaviour).detach().exp()
    reference = REFERENCE.clone().requires_grad_()
    given = None if behaviour is None else behaviour.clone().requires_grad_()
    terms = kl_loss(logp, reference, grad, logp_behaviour=given)
    assert (terms >= 0).all()
    close((sampled * terms).sum().detach(), discrete_kl(logp, REFERENCE).detach())
    others = [reference] if given is None else [reference, given]
    got, *none = torch.autograd.grad((sampled * terms).sum(), [logits, *others], allow_unused=True)
    assert all(other is None for other in none)
    logits, logp = policy()
    kl = discrete_kl(logp, REFERENCE) if grad == "reverse" else discrete_kl(REFERENCE, logp)
    close(got, gradient(kl, logits))


def test_kl_loss_off_policy_in_single_terms_and_truncated():
    _, logp = policy()
    p, q, b = logp.detach().exp(), REFERENCE.exp(), BEHAVIOUR.exp()
    for limit in (math.inf, 1.1):
        weight = (p / b).clamp(max=limit)
        leaf = logp.detach().requires_grad_()
        value = weight * (q / p - 1 + (p / q).log())
        for grad, slope in (("reverse", weight * (p / q).log()), ("forward", weight * (1 - q / p))):
            terms = kl_loss(leaf, REFERENCE, grad, logp_behaviour=BEHAVIOUR, max_weight=limit)
            close(terms.detach(), value)
            close(gradient(terms.sum(), leaf), slope)
    assert ((p / b > 1.1).any(), (p / b < 1.1).any()) == (True, True)


@pytest.mark.parametrize("grad", ["reverse", "forward"])
def test_kl_loss_at_the_edges(grad):
    inf, nan = math.inf, math.nan
    logp = torch.tensor([-1.0, -inf, -1.0, nan, -1.0], requires_grad=True)
    logq = torch.tensor([-inf, -1.0, -1.0, -1.0, nan])
    mask = torch.tensor([True, True, True, False, False])
    behaviour = torch.tensor([-1.0, -2.0, -1.0, nan, -inf])
    terms = kl_loss(logp, logq, grad, logp_behaviour=behaviour, mask=mask)
    assert terms.tolist() == [inf, 0, 0, 0, 0]
    slopes = gradient(terms.sum(), logp).tolist()
    assert slopes == [inf if grad == "reverse" else 1, 0, 0, 0, 0]
    counted = kl_loss(
        torch.tensor([-1.0, -inf, nan]), torch.tensor([-2.0, -1.0, nan]), grad,
        logp_behaviour=torch.tensor([-1.0, -2.0, nan]),
        mask=torch.tensor([True, True, False]), reduction="positionmean",
    )  # fmt: skip
    assert counted.item() == pytest.approx(math.exp(-1) / 2, rel=1e-6)


@pytest.mark.parametrize("grad", ["reverse", "forward"])
def test_kl_loss_overflows_to_inf_and_takes_half_precision(grad):
    logp = torch.tensor([-100.0, -2.0]).bfloat16().requires_grad_()
    terms = kl_loss(logp, torch.tensor([0.0, -1.0]).bfloat16(), grad)
    assert terms.dtype == torch.float32
    assert terms[0] == math.inf
    assert terms[1].item() == pytest.approx(math.e - 2, rel=1e-6)
    assert not gradient(terms.sum(), logp).isnan().any()


# Losses: expectations over all sentences of a model that stops at token 0

VOCABULARY, LENGTH = 3, 3
SENTENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
PREFIXES = torch.tensor(
    [[sum(s[u] * VOCABULARY**u + VOCABULARY**u for u in range(t)) for t in range(LENGTH)]
     for s in SENTENCES.tolist()]
)  # fmt: skip
ENDED = (SENTENCES == 0).long().cumsum(1) - (SENTENCES == 0).long() > 0
FIRST = (~ENDED | (SENTENCES == 0)).all(1)  # one spelling of a sentence: zeros after its end


class Language:
    """Logits for every prefix, and what they give on every sentence; NaN after the end."""

    def __init__(self, seed, spread=1.0):
        rng = torch.Generator().manual_seed(seed)
        table = torch.randn(40, VOCABULARY, generator=rng, dtype=torch.float64) * spread
        self.table = table.requires_grad_()
        logits = self.table[PREFIXES[FIRST]]
        self.mask = ~ENDED[FIRST]
        self.logits = torch.where(self.mask[..., None], logits, math.nan)
        tokens = SENTENCES[FIRST][..., None]
        self.by_token = logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
        self.logp = torch.where(self.mask, self.by_token, math.nan)
        self.sentence = torch.where(self.mask, self.by_token, 0.0).sum(1)


def expected(terms, language):
    return (language.sentence.detach().exp() * terms).sum()


@pytest.fixture
def pair():
    p, q = Language(0), Language(1)
    close(p.sentence.exp().sum().detach(), torch.ones((), dtype=torch.float64))
    return p, q, discrete_kl(p.sentence, q.sentence)


def test_sequence_surrogate_has_the_whole_gradient(pair):
    p, q, truth = pair
    terms = sequence_kl_surrogate(p.logp, q.logp, p.mask)
    assert terms.shape == p.sentence.shape
    assert (terms >= 0).all()
    close(expected(terms, p).detach(), truth.detach())
    close(gradient(expected(terms, p), p.table), gradient(truth, p.table))
    assert not sequence_kl_surrogate(p.logp.detach(), q.logp, p.mask).requires_grad


def test_token_losses_leave_out_the_effect_on_later_tokens(pair):
    p, q, truth = pair
    tokens = kl_loss(p.logp, q.logp, "reverse", mask=p.mask).sum(1)
    close(expected(tokens, p).detach(), truth.detach())
    partial = gradient(expected(tokens, p), p.table)
    whole = gradient(truth, p.table)
    close(partial[PREFIXES[:, -1]], whole[PREFIXES[:, -1]])  # the last token has no later one
    assert (partial - whole).abs().max() > 0.02


def test_rao_blackwell_is_unbiased_in_value_and_gradient(pair):
    p, q, truth = pair
    terms = rao_blackwell_kl(p.logits, q.logits, p.mask, logp=p.logp)
    assert terms.shape == p.sentence.shape
    close(expected(terms, p).detach(), truth.detach())
    close(gradient(expected(terms, p), p.table), gradient(truth, p.table))
    plain = rao_blackwell_kl(p.logits, q.logits, p.mask, unit="bits")
    close(plain * math.log(2), terms)


def test_rao_blackwell_charges_a_token_with_later_divergences_only(pair):
    p, q, _ = pair
    leaf = p.by_token.detach().requires_grad_()
    logits = torch.where(p.mask[..., None], p.logits, 0.0).detach()
    other = torch.where(p.mask[..., None], q.logits, 0.0).detach()
    slopes = gradient(rao_blackwell_kl(logits, other, p.mask, logp=leaf).sum(), leaf)
    log_a, log_b = logits.log_softmax(-1), other.log_softmax(-1)
    kl = torch.where(p.mask, (log_a.exp() * (log_a - log_b)).sum(-1), 0.0)
    later = torch.stack([kl[:, t + 1 :].sum(1) for t in range(LENGTH)], 1)
    close(slopes, torch.where(p.mask, later, 0.0))


def test_rao_blackwell_without_logp_holds_the_prefixes_fixed(pair):
    p, q, _ = pair
    tokens = kl_loss(p.logp, q.logp, "reverse", mask=p.mask).sum(1)
    terms = rao_blackwell_kl(p.logits, q.logits, p.mask)
    partial = gradient(expected(tokens, p), p.table)
    close(gradient(expected(terms, p), p.table), partial)


def test_variances_in_their_order(pair):
    p, q, truth = pair

    def variance(terms):
        return (expected(terms.detach().square(), p) - truth.detach().square()).item()

    k1 = variance(p.sentence - q.sentence)
    k3_tokens = variance(sequence_kl_surrogate(p.logp, q.logp, p.mask))
    blackwell = variance(rao_blackwell_kl(p.logits, q.logits, p.mask))
    assert blackwell < 0.5 * k3_tokens
    assert blackwell < 0.2 * k1


def test_rao_blackwell_gradcheck_and_more_dimensions():
    rng = torch.Generator().manual_seed(2)
    logits = [torch.randn(2, 3, 4, generator=rng, dtype=torch.float64) for _ in range(2)]
    logits = [value.requires_grad_() for value in logits]
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert torch.autograd.gradcheck(lambda a, b: rao_blackwell_kl(a, b, mask), logits)
    deeper = rao_blackwell_kl(*(value[:, None] for value in logits), mask[:, None])
    close(deeper.squeeze(1), rao_blackwell_kl(*logits, mask))


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
