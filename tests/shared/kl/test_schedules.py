import pytest
import torch

from shared.kl import capacity_penalty, cyclical, free_bits, linear


def test_linear_goes_through_both_ends_and_the_middle_and_stays():
    assert [linear(step, 1.0, 5.0, 4) for step in range(7)] == [1, 2, 3, 4, 5, 5, 5]
    assert linear(2, 5.0, 1.0, 4) == 3


def test_linear_over_no_steps_is_its_end():
    assert linear(0, 0.0, 4.0, 0) == 4


@pytest.mark.parametrize(("step", "steps"), [(-1, 10), (0, -1)])
def test_linear_refuses_negative_steps(step, steps):
    with pytest.raises(ValueError, match=r"must be >= 0"):
        linear(step, 0.0, 1.0, steps)


def test_cyclical_ramps_holds_and_starts_again():
    values = [cyclical(step, 2.0, period=8, ratio=0.5) for step in range(17)]
    assert values[:8] == [0, 0.5, 1, 1.5, 2, 2, 2, 2]
    assert values[8:16] == values[:8]
    assert values[16] == 0


def test_cyclical_may_ramp_all_the_time():
    assert [cyclical(step, 1.0, period=4, ratio=1.0) for step in range(5)] == [
        0,
        0.25,
        0.5,
        0.75,
        0,
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"step": 0, "period": 0},
        {"step": -1, "period": 5},
        {"step": 0, "period": 5, "ratio": 0.0},
        {"step": 0, "period": 5, "ratio": 1.01},
    ],
)
def test_cyclical_refuses(arguments):
    with pytest.raises(ValueError, match=r"need period >= 1"):
        cyclical(end=1.0, **arguments)


def test_free_bits_by_hand():
    assert free_bits(torch.tensor([0.1, 0.5, 2.0]), 0.5).item() == pytest.approx(3.0)
    assert free_bits(torch.tensor([0.1, 0.5, 2.0]), 0.0).item() == pytest.approx(2.6)


def test_free_bits_are_of_the_batch_mean_and_not_of_each_example():
    # One latent: 0 and 2 nats average to 1. The mean of maxima would be 1.25.
    rows = torch.tensor([[0.0], [2.0]])
    assert free_bits(rows.mean(0), 0.5).item() == 1


def test_free_bits_take_the_pressure_off_below_the_minimum_only():
    kl = torch.tensor([0.1, 0.49, 0.51, 3.0], requires_grad=True)
    (grad,) = torch.autograd.grad(free_bits(kl, 0.5), kl)
    assert grad.tolist() == [0, 0, 1, 1]


def test_free_bits_refuses_a_negative_minimum():
    with pytest.raises(ValueError, match=r"minimum must be >= 0"):
        free_bits(torch.zeros(2), -0.1)


@pytest.mark.parametrize(("kl", "expected", "slope"), [(7.0, 6.0, 3.0), (2.0, 9.0, -3.0)])
def test_capacity_penalty_pulls_from_both_sides(kl, expected, slope):
    rate = torch.tensor(kl, requires_grad=True)
    penalty = capacity_penalty(rate, capacity=5.0, gamma=3.0)
    assert penalty.item() == expected
    assert torch.autograd.grad(penalty, rate)[0].item() == slope


def test_capacity_penalty_is_zero_at_the_capacity():
    assert capacity_penalty(torch.tensor(5.0), 5.0, 30.0).item() == 0


@pytest.mark.parametrize(("capacity", "gamma"), [(-1.0, 1.0), (1.0, -1.0)])
def test_capacity_penalty_refuses(capacity, gamma):
    with pytest.raises(ValueError, match=r"capacity and gamma must be >= 0"):
        capacity_penalty(torch.tensor(1.0), capacity, gamma)
