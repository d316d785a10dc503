"""Losses whose expectations are sums over every outcome: over four actions, and over all sentences
of a small autoregressive model that stops at its token 0."""

import itertools
import math

import pytest
import torch

from shared.kl.samples.estimators import (
    kl_loss,
    log_ratio_estimator,
    rao_blackwell_kl,
    sequence_kl_surrogate,
)
from tests.shared.kl.samples.expectations import close, gradient

LOGITS = torch.tensor([0.2, -0.5, 1.3, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([1.0, -0.2, -0.4, 0.3], dtype=torch.float64).log_softmax(0)
BEHAVIOUR = torch.tensor([0.9, 0.1, 0.2, -0.7], dtype=torch.float64).log_softmax(0)


def discrete_kl(log_a, log_b):
    return (log_a.exp() * (log_a - log_b)).sum()


def policy():
    logits = LOGITS.clone().requires_grad_()
    return logits, logits.log_softmax(0)


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
        torch.tensor([-1.0, -inf, nan]),
        torch.tensor([-2.0, -1.0, nan]),
        grad,
        logp_behaviour=torch.tensor([-1.0, -2.0, nan]),
        mask=torch.tensor([True, True, False]),
        reduction="positionmean",
    )
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
    [
        [sum(s[u] * VOCABULARY**u + VOCABULARY**u for u in range(t)) for t in range(LENGTH)]
        for s in SENTENCES.tolist()
    ]
)
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
