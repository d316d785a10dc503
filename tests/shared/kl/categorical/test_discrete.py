"""The discrete family against worked numbers, scipy, many digits, and its own derivatives."""

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from scipy.spatial.distance import jensenshannon
from torch.distributions import Categorical

from shared.kl.categorical import discrete
from shared.kl.categorical.discrete import (
    cross_entropy_from_logits,
    cross_entropy_from_probs,
    entropy_from_logits,
    entropy_from_probs,
    jeffreys_from_logits,
    jeffreys_from_probs,
    js_distance_from_logits,
    js_distance_from_probs,
    js_from_logits,
    js_from_probs,
    kl_from_logits,
    kl_from_probs,
)

FAIR = torch.tensor([0.5, 0.5], dtype=torch.float64)
BIASED = torch.tensor([0.9, 0.1], dtype=torch.float64)
WEATHER = torch.tensor([0.8, 0.2], dtype=torch.float64)
BOTH = [
    (kl_from_probs, kl_from_logits),
    (jeffreys_from_probs, jeffreys_from_logits),
    (js_from_probs, js_from_logits),
    (js_distance_from_probs, js_distance_from_logits),
    (cross_entropy_from_probs, cross_entropy_from_logits),
]


def drawn(*shape, seed=0, spread=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("function", "p", "q", "unit", "value"),
    [
        (kl_from_probs, FAIR, BIASED, "bits", 0.736965594166206),
        (kl_from_probs, FAIR, BIASED, "nats", 0.510825623765991),
        (kl_from_probs, FAIR, BIASED, "hartleys", 0.221848749616356),
        (kl_from_probs, BIASED, FAIR, "bits", 0.531004406410719),
        (kl_from_probs, BIASED, FAIR, "nats", 0.368064207168497),
        (kl_from_probs, BIASED, WEATHER, "bits", 0.0529325012980811),
        (kl_from_probs, BIASED, WEATHER, "nats", 0.0366900140347506),
        (cross_entropy_from_probs, FAIR, BIASED, "bits", 1.736965594166206),
        (cross_entropy_from_probs, BIASED, FAIR, "bits", 1.0),
        (js_from_probs, FAIR, BIASED, "bits", 0.146793102436052),
        (js_from_probs, FAIR, BIASED, "nats", 0.101749225079197),
        (js_distance_from_probs, FAIR, BIASED, "bits", math.sqrt(0.146793102436052)),
        (jeffreys_from_probs, FAIR, BIASED, "bits", 1.267970000576925),
    ],
)
def test_worked_numbers(function, p, q, unit, value):
    assert function(p, q, unit=unit).item() == pytest.approx(value, rel=1e-12)
    from_logits = getattr(discrete, function.__name__.replace("probs", "logits"))
    assert from_logits(p.log() + 3, q.log() - 7, unit=unit).item() == pytest.approx(value, 1e-12)


def test_entropy_worked_numbers():
    assert entropy_from_probs(FAIR, unit="bits").item() == pytest.approx(1, rel=1e-14)
    value = entropy_from_logits(BIASED.log(), unit="bits").item()
    assert value == pytest.approx(0.468995593589281, rel=1e-13)


def test_against_scipy():
    a, b = drawn(50, 17), drawn(50, 17, seed=1)
    p, q = a.softmax(-1), b.softmax(-1)
    kl = scipy.special.rel_entr(p.numpy(), q.numpy()).sum(-1)
    kl_reverse = scipy.special.rel_entr(q.numpy(), p.numpy()).sum(-1)
    entropy = scipy.stats.entropy(p.numpy(), axis=-1)
    distance = jensenshannon(p.numpy(), q.numpy(), axis=-1)
    oracles = [kl, kl + kl_reverse, distance**2, distance, entropy + kl]
    for (from_probs, from_logits), oracle in zip(BOTH, oracles, strict=True):
        np.testing.assert_allclose(from_probs(p, q).numpy(), oracle, rtol=1e-12)
        np.testing.assert_allclose(from_logits(a, b).numpy(), oracle, rtol=1e-12)
    np.testing.assert_allclose(entropy_from_logits(a).numpy(), entropy, rtol=1e-12)
    np.testing.assert_allclose(entropy_from_probs(p).numpy(), entropy, rtol=1e-12)


def test_against_torch_inside():
    a, b = drawn(50, 17), drawn(50, 17, seed=1)
    truth = torch.distributions.kl_divergence(Categorical(logits=a), Categorical(logits=b))
    torch.testing.assert_close(kl_from_logits(a, b), truth, rtol=1e-12, atol=0)


def exact(p_logits, q_logits, weight=None):
    """D(p || q), or the weighted Jensen-Shannon divergence, in 60 digits."""
    with mpmath.workdps(60):
        p, q = (
            [mpmath.exp(mpmath.mpf(v)) for v in logits.tolist()] for logits in (p_logits, q_logits)
        )
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]

        def kl(p, q):
            return sum(u * mpmath.log(u / v) for u, v in zip(p, q, strict=True))

        if weight is None:
            return float(kl(p, q))
        weight = mpmath.mpf(weight)
        m = [weight * u + (1 - weight) * v for u, v in zip(p, q, strict=True)]
        return float(weight * kl(p, m) + (1 - weight) * kl(q, m))


@pytest.mark.parametrize("gap", [1e-7, 1e-5, 1e-3, 0.1, 1.0, 10.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_digits_from_close_to_far(gap, dtype):
    """To rounding of the differences of logits, which is all there is where they are large."""
    a = drawn(9, dtype=dtype)
    b = a + gap * drawn(9, seed=1, spread=1, dtype=dtype)
    eps = torch.finfo(dtype).eps
    far = 4 * eps * (a - b).abs().max().item() if gap > 1 else 0
    for p, q in ((a, b), (b, a)):
        close = pytest.approx(exact(p, q), rel=50 * eps, abs=far)
        assert kl_from_logits(p, q).item() == close
        for weight in (0.5, 0.1):
            close = pytest.approx(exact(p, q, weight), rel=50 * eps, abs=far)
            assert js_from_logits(p, q, weight).item() == close


def test_equal_distributions_are_at_distance_zero_exactly():
    for dtype in (torch.float32, torch.float64):
        a = drawn(100, 9, dtype=dtype)
        for _, from_logits in BOTH[:4]:
            assert (from_logits(a, a) == 0).all()
        for from_probs, _ in BOTH[:4]:
            assert (from_probs(a.softmax(-1), a.softmax(-1)) == 0).all()


def test_entropy_of_a_nearly_certain_outcome_keeps_its_digits():
    """A log-softmax that rounds 1 + 1e-9 to 1 loses a twentieth of it."""
    logits = torch.tensor([0.0, -20.0])
    with mpmath.workdps(40):
        q = 1 / (1 + mpmath.exp(20))
        truth = float(-(q * mpmath.log(q) + (1 - q) * mpmath.log(1 - q)))
    assert entropy_from_logits(logits).item() == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize(("from_probs", "from_logits"), BOTH)
def test_first_and_second_derivatives(from_probs, from_logits):
    a = drawn(3, 5, spread=1).requires_grad_()
    b = drawn(3, 5, seed=1, spread=1).requires_grad_()
    p, q = (x.detach().softmax(-1).requires_grad_() for x in (a, b))
    for function, inputs in ((from_logits, (a, b)), (from_probs, (p, q))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_derivatives_of_the_entropy():
    a = drawn(3, 5, spread=1).requires_grad_()
    assert torch.autograd.gradgradcheck(entropy_from_logits, (a,))
    assert torch.autograd.gradgradcheck(
        entropy_from_probs, (a.detach().softmax(-1).requires_grad_(),)
    )


def test_gradients_have_their_closed_form():
    """To q's logits q - p; to p's logits p (log p/q - D)."""
    a, b = drawn(6, 11).requires_grad_(), drawn(6, 11, seed=1).requires_grad_()
    kl = kl_from_logits(a, b)
    to_a, to_b = torch.autograd.grad(kl.sum(), (a, b))
    p, q = a.softmax(-1), b.softmax(-1)
    torch.testing.assert_close(to_b, q - p, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(to_a, p * ((p / q).log() - kl[:, None]), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize(
    ("function", "factor"), [(kl_from_logits, 1), (jeffreys_from_logits, 2), (js_from_logits, 0.25)]
)
def test_hessian_where_both_are_equal_is_the_fisher_matrix(function, factor, argument):
    a = drawn(7)
    p = a.softmax(-1)

    def moved(x):
        return function(x, a) if argument == 0 else function(a, x)

    hessian = torch.autograd.functional.hessian(moved, a)
    torch.testing.assert_close(hessian, factor * (p.diag() - p.outer(p)), rtol=1e-12, atol=1e-15)
    assert torch.autograd.functional.jacobian(moved, a).abs().max() < 1e-16


def test_temperature_divides_the_logits():
    a, b = drawn(4, 9), drawn(4, 9, seed=1)
    for _, from_logits in BOTH:
        torch.testing.assert_close(from_logits(a, b, temperature=4.0), from_logits(a / 4, b / 4))
    torch.testing.assert_close(entropy_from_logits(a, temperature=4.0), entropy_from_logits(a / 4))


def test_any_dimension_and_broadcasting():
    a, b = drawn(4, 9, 3), drawn(9, 1, seed=1)
    value = kl_from_logits(a, b, dim=1)
    rows = kl_from_logits(a.movedim(1, -1), b[:, 0])
    assert value.shape == (4, 3)
    torch.testing.assert_close(value, rows)
    torch.testing.assert_close(
        js_from_probs(a.softmax(1), b.softmax(0), dim=1), js_from_logits(a, b, dim=1)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    a, b = drawn(4, 1000).to(dtype), drawn(4, 1000, seed=1).to(dtype)
    value = kl_from_logits(a, b)
    assert value.dtype == torch.float32
    truth = kl_from_logits(a.double(), b.double()).float()
    torch.testing.assert_close(value, truth, rtol=1e-5, atol=0)


def test_unnormalised_probabilities_are_not_silently_normalised():
    """The generalised divergence, scipy's kl_div: sum p log(p/q) - p + q."""
    truth = scipy.special.kl_div((2 * FAIR).numpy(), BIASED.numpy()).sum()
    assert kl_from_probs(2 * FAIR, BIASED).item() == pytest.approx(truth, rel=1e-14)
    assert kl_from_probs(2 * FAIR, BIASED).item() != pytest.approx(
        kl_from_probs(FAIR, BIASED).item()
    )


def test_js_weight():
    """Near weight 0 the divergence over w is D(p || q), near 1 that over 1 - w is D(q || p)."""
    a, b = drawn(9), drawn(9, seed=1)
    w = 1e-7
    torch.testing.assert_close(js_from_logits(a, b, w) / w, kl_from_logits(a, b), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        js_from_logits(a, b, 1 - w) / w, kl_from_logits(b, a), rtol=1e-4, atol=0
    )
    small, wide = js_from_logits(a.float(), b.float(), 1e-6), js_from_logits(a, b, 1e-6)
    torch.testing.assert_close(small.double(), wide, rtol=1e-5, atol=0)
    disjoint = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert js_from_probs(*disjoint, 0.2).item() == pytest.approx(entropy, rel=1e-6)
