"""A temperature per position, its gradient, and log-probabilities."""

import math

import pytest
import torch

import shared.kl as K

FUNCTIONS = [
    K.kl_from_logits,
    K.js_from_logits,
    K.jeffreys_from_logits,
    K.cross_entropy_from_logits,
    K.total_variation_from_logits,
    lambda p, q, **options: K.renyi_from_logits(p, q, 0.5, **options),
    lambda p, _, **options: K.entropy_from_logits(p, **options),
    K.chunked_kl,
    K.chunked_js,
]
SHAPES = [(2, 3, 5), (2, 3, 3000)]  # the first by the kernels of a few elements


def logits(shape, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    return [2 * torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for _ in "pq"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_temperature_per_position_is_that_of_each(function, shape):
    p, q = logits(shape)
    for temperature in (torch.tensor([0.5, 2.0, 0.7]), torch.tensor([[0.5], [1.3]])):
        q_leaf = q.clone().requires_grad_()
        value = function(p, q_leaf, temperature=temperature)
        each = temperature.expand(2, 3)
        alone = q.clone().requires_grad_()
        expected = torch.stack(
            [
                torch.stack(
                    [
                        function(p[i, j], alone[i, j], temperature=each[i, j].item())
                        for j in range(3)
                    ]
                )
                for i in range(2)
            ]
        )
        torch.testing.assert_close(value, expected, rtol=5e-6, atol=1e-7)
        if value.requires_grad:
            value.sum().backward()
            expected.sum().backward()
            torch.testing.assert_close(q_leaf.grad, alone.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("function", FUNCTIONS[:7])
def test_the_gradient_to_a_temperature_is_that_of_dividing_first(function):
    p, q = logits((3, 5), torch.float64)
    temperature = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    value = function(p, q, temperature=temperature, reduction="sum")
    (found,) = torch.autograd.grad(value, temperature)
    divided = function(p / temperature[:, None], q / temperature[:, None], reduction="sum")
    (expected,) = torch.autograd.grad(divided, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_single_temperature_that_is_learned():
    p, q = logits((3, 5), torch.float64)
    temperature = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: K.kl_from_logits(p, q, temperature=t, reduction="sum"), temperature
    )


def test_masks_select_temperatures_too():
    p, q = logits((6, 2000))
    temperature, mask = torch.linspace(0.5, 2, 6), torch.arange(6) % 2 == 0
    temperature[1] = 9.0
    value = K.kl_from_logits(p, q, temperature=temperature, mask=mask)
    alone = K.kl_from_logits(p[mask], q[mask], temperature=temperature[mask])
    torch.testing.assert_close(value[mask], alone, rtol=1e-6, atol=0)
    assert (value[~mask] == 0).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_bad_temperatures_are_refused_by_name(temperature):
    p, q = logits((2, 3))
    for bad in (temperature, torch.tensor([1.0, temperature])):
        for function in FUNCTIONS:
            with pytest.raises(ValueError, match="temperature must be positive"):
                function(p, q, temperature=bad)
    with pytest.raises(ValueError, match="temperature of shape"):
        K.kl_from_logits(p, q, temperature=torch.ones(3))
    learned = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="temperature requires a gradient"):
        K.chunked_kl(p, q, temperature=learned)
    with pytest.raises(ValueError, match="temperature must be a number"):
        K.fused_linear_kl(p, p, q, q, temperature=learned)


OF_LOG_PROBS = "cross_entropy entropy jeffreys js js_distance kl".split()


@pytest.mark.parametrize("name", OF_LOG_PROBS)
def test_log_probabilities_are_probabilities(name):
    for shape in SHAPES:
        p, q = (tensor.log_softmax(-1) for tensor in logits(shape, torch.float64))
        arguments = (p,) if name == "entropy" else (p, q)
        found = getattr(K, f"{name}_from_log_probs")(*arguments, unit="bits")
        of_probs = getattr(K, f"{name}_from_probs")
        expected = of_probs(*(tensor.exp() for tensor in arguments), unit="bits")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OF_LOG_PROBS)
def test_log_probabilities_that_do_not_sum_to_one_are_refused_when_asked(name):
    p, _ = logits((2, 5))
    arguments = (p,) if name == "entropy" else (p, p)
    with pytest.raises(ValueError, match="exp of log_p is not normalised"):
        getattr(K, f"{name}_from_log_probs")(*arguments, validate=True)


def test_log_probabilities_of_zero():
    log_p = torch.tensor([0.5, 0.5, 0.0]).log()
    log_q = torch.tensor([0.25, 0.5, 0.25]).log()
    assert K.kl_from_log_probs(log_p, log_q).item() == pytest.approx(0.5 * math.log(2))
    assert K.kl_from_log_probs(log_q, log_p).item() == math.inf
    assert K.js_from_log_probs(log_q, log_p).isfinite()
