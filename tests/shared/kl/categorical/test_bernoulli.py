import itertools

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, kl_divergence

from shared.kl import bernoulli_log_prob, kl_bernoulli

DIGITS = 150  # at logits of 100 the two probabilities agree in their first 43 digits
logits = st.floats(-100, 100, width=32)


def exact_log_prob(x, logit):
    with mpmath.workdps(DIGITS):
        s = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
        return x * mpmath.log(s) + (1 - x) * mpmath.log(1 - s)


def exact_kl(p, q):
    """sum_k p_k log p_k / q_k over the two outcomes."""
    with mpmath.workdps(DIGITS):
        p, q = (1 / (1 + mpmath.exp(-mpmath.mpf(v))) for v in (p, q))
        return p * mpmath.log(p / q) + (1 - p) * mpmath.log((1 - p) / (1 - q))


def pairs(gaps, centres, dtype):
    p, gap = torch.tensor(list(itertools.product(centres, gaps)), dtype=dtype).T
    return p, p + gap


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 5e-9)])
def test_log_prob_against_many_digits(dtype, tolerance):
    values = [-100.0, -50.0, -20.5, -3.0, -1e-3, 0.0, 0.4, 7.0, 19.9, 20.1, 50.0, 100.0]
    for x, logit in itertools.product((0.0, 1.0, 0.3), values):
        value = bernoulli_log_prob(torch.tensor(x, dtype=dtype), torch.tensor(logit, dtype=dtype))
        truth = exact_log_prob(torch.tensor(x, dtype=dtype).item(), logit)
        assert abs(value.item() - truth) < tolerance * max(1, abs(truth) / 10)


def test_the_two_outcomes_have_probability_one():
    values = torch.linspace(-60, 60, 241, dtype=torch.float64)
    mass = sum(bernoulli_log_prob(torch.tensor(x), values).exp() for x in (0.0, 1.0))
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=3e-9)


@given(x=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32)), logit=logits)
def test_log_prob_is_never_positive(x, logit):
    assert bernoulli_log_prob(torch.tensor(x), torch.tensor(logit)).item() <= 0


def test_log_prob_is_never_positive_just_below_the_logit():
    # x = 1 subtracts two numbers that agree in all but the last digits.
    values = torch.linspace(-30, 30, 1_000_001)
    assert bernoulli_log_prob(torch.ones(()), values).max() <= 0


def test_torch_distributions_agree_and_shapes_broadcast():
    rng = torch.Generator().manual_seed(0)
    p, q = torch.randn(5, 1, generator=rng) * 3, torch.randn(4, generator=rng) * 3
    x = (torch.rand(5, 1, generator=rng) < 0.5).float()
    value = kl_bernoulli(p, q)
    assert value.shape == (5, 4)
    wide_p, wide_q = (v.double().expand(5, 4) for v in (p, q))  # the oracle does not broadcast
    oracle = kl_divergence(Bernoulli(logits=wide_p), Bernoulli(logits=wide_q))
    torch.testing.assert_close(value, oracle.float(), rtol=2e-6, atol=0)
    torch.testing.assert_close(
        bernoulli_log_prob(x, q), Bernoulli(logits=q).log_prob(x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 1.2e-7), (torch.float64, 2.3e-16)])
@pytest.mark.parametrize("gap", [1e-6, 1e-4, 1e-2, 0.3, 0.999, 1.001, 5.0, 60.0])
def test_kl_is_right_to_the_last_digits_at_every_gap(gap, dtype, eps):
    p, q = pairs([gap, -gap], [0.0, 0.7, -2.0, 6.0, -15.0, 17.0, -28.0], dtype)
    value = kl_bernoulli(p, q)
    assert value.dtype == dtype
    for a, b, kl in zip(p.tolist(), q.tolist(), value.tolist(), strict=True):
        if a != b:
            assert abs(kl / exact_kl(a, b) - 1) < 8 * eps


def test_the_plain_bregman_form_would_fail_the_test_above():
    p, q = torch.tensor(0.7), torch.tensor(0.7) + 1e-4
    softplus = torch.nn.functional.softplus
    plain = softplus(q) - softplus(p) - p.sigmoid() * (q - p)
    assert abs(plain.item() / exact_kl(p.item(), q.item()) - 1) > 0.9


def test_extreme_logits():
    extremes = [-100.0, -50.0, 0.0, 50.0, 100.0]
    for a, b in itertools.product(extremes, extremes):
        value = kl_bernoulli(torch.tensor(a), torch.tensor(b)).item()
        # float32 has no number below 1e-45, and the smallest ones have few digits.
        assert abs(value - exact_kl(a, b)) <= 4e-7 * exact_kl(a, b) + 1e-40


@given(p=logits, q=logits)
def test_kl_is_never_negative_and_zero_between_equals(p, q):
    p, q = torch.tensor(p), torch.tensor(q)
    assert kl_bernoulli(p, q).item() >= 0
    assert kl_bernoulli(p, p).item() == 0


@given(p=st.floats(-90, 90, width=32), gap=st.floats(-(2**-10), 2**-10, width=32))
def test_kl_is_never_negative_between_neighbours(p, gap):
    assert kl_bernoulli(torch.tensor(p), torch.tensor(p) + torch.tensor(gap)).item() >= 0


@pytest.mark.parametrize("gap", [1e-5, 1e-3, 0.5, -0.99, 1.01, 4.0])
@pytest.mark.parametrize("centre", [0.0, 1.3, -3.0, 8.0])
def test_float32_gradients_have_their_closed_form(gap, centre):
    p = torch.tensor(centre, requires_grad=True)
    q = (torch.tensor(centre) + gap).requires_grad_()
    grad_p, grad_q = torch.autograd.grad(kl_bernoulli(p, q), (p, q))
    a, b = mpmath.mpf(p.item()), mpmath.mpf(q.item())
    with mpmath.workdps(DIGITS):
        s, t = (1 / (1 + mpmath.exp(-v)) for v in (a, b))
        true_p, true_q = (a - b) * s * (1 - s), t - s
    assert abs(grad_p.item() / true_p - 1) < 1e-5
    assert abs(grad_q.item() / true_q - 1) < 1e-5


def test_extreme_gradients_are_finite():
    p = torch.tensor([-100.0, 100.0, 0.0, 100.0, -1e4], requires_grad=True)
    q = torch.tensor([100.0, -100.0, 1e4, 100.0, -1e4], requires_grad=True)
    for grad in torch.autograd.grad(kl_bernoulli(p, q).sum(), (p, q)):
        assert grad.isfinite().all()


def test_first_and_second_derivatives():
    p, q = pairs([0.05, -0.6, 1.3, -4.0], [0.2, -1.5, 3.0], torch.float64)
    p.requires_grad_()
    q.requires_grad_()
    x = torch.rand(len(p), dtype=torch.float64, requires_grad=True)
    for function, inputs in ((kl_bernoulli, (p, q)), (bernoulli_log_prob, (x, q))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 1.5, 12.0])
def test_the_second_derivative_where_both_are_equal_is_the_fisher_information(logit):
    """s (1 - s); a clamp at 0 would make it 0."""
    p = torch.tensor(logit, dtype=torch.float64)
    s = p.sigmoid()
    for moved in (lambda x: kl_bernoulli(p, x), lambda x: kl_bernoulli(x, p)):
        hessian = torch.autograd.functional.hessian(moved, p)
        torch.testing.assert_close(hessian, s * (1 - s), rtol=1e-9, atol=0)
