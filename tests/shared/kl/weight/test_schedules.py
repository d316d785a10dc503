import json
import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from shared.kl.weight.schedules import (
    Annealing,
    capacity_penalty,
    constant,
    cosine,
    cyclical,
    free_bits,
    linear,
)


def test_constant_is_constant():
    assert [constant(step, 0.3) for step in (0, 1, 10**9)] == [0.3] * 3


@pytest.mark.parametrize(("step", "value"), [(-1, 1.0), (0, math.nan), (0, math.inf)])
def test_constant_refuses(step, value):
    with pytest.raises(ValueError, match=r"step|value must be finite"):
        constant(step, value)


def test_linear_goes_through_both_ends_and_the_middle_and_stays():
    assert [linear(step, 1.0, 5.0, 4) for step in range(7)] == [1, 2, 3, 4, 5, 5, 5]
    assert linear(2, 5.0, 1.0, 4) == 3


def test_linear_over_no_steps_is_its_end():
    assert linear(0, 0.0, 4.0, 0) == 4


def test_cosine_at_its_thirds():
    # cos(pi / 3) = 1/2, cos(pi / 2) = 0.
    values = [cosine(step, 1.0, 5.0, 6) for step in (0, 2, 3, 4, 6, 100)]
    assert values == pytest.approx([1, 2, 3, 4, 5, 5], abs=1e-12)
    assert cosine(2, 5.0, 1.0, 6) == pytest.approx(4)


def test_cosine_is_monotone_flat_at_its_ends_and_never_beyond_them():
    values = [cosine(step, 0.0, 2.0, 1000) for step in range(1001)]
    rises = [b - a for a, b in pairwise(values)]
    assert min(rises) > 0
    assert max(rises[0], rises[-1]) < 1e-2 * max(rises)
    assert max(rises) == pytest.approx(2 * math.pi / 2 / 1000, rel=1e-4)  # the slope at the middle
    assert values[0] == 0
    assert max(values) == values[-1] == 2


def test_cosine_over_no_steps_is_its_end():
    assert cosine(0, 0.0, 4.0, 0) == 4


@pytest.mark.parametrize("schedule", [linear, cosine])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"step": -1}, "step=-1"),
        ({"steps": -1}, "steps=-1"),
        ({"start": math.nan}, "start"),
        ({"end": math.inf}, "end"),
    ],
)
def test_ramps_refuse(schedule, arguments, named):
    with pytest.raises(ValueError, match=named):
        schedule(**{"step": 0, "start": 0.0, "end": 1.0, "steps": 10} | arguments)


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
        {"step": 0, "period": 5, "ratio": math.nan},
    ],
)
def test_cyclical_refuses(arguments):
    with pytest.raises(ValueError, match=r"need period >= 1"):
        cyclical(end=1.0, **arguments)


def test_cyclical_refuses_an_end_that_is_no_number():
    with pytest.raises(ValueError, match=r"end must be finite"):
        cyclical(0, math.nan, 5)


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


def test_free_bits_of_groups_by_hand():
    kl = torch.tensor([0.1, 0.3, 0.5, 2.0, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    # Sums 0.4, 2.7, 0.1 against 0.5 nats.
    charged = free_bits(kl, 0.5, groups=[2, 3, 1])
    assert charged.item() == pytest.approx(0.5 + 2.7 + 0.5)
    assert torch.autograd.grad(charged, kl)[0].tolist() == [0, 0, 1, 1, 1, 0]


def test_free_bits_of_groups_of_one_and_of_one_group():
    kl = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    assert free_bits(kl, 0.5, groups=[1, 1, 1]) == free_bits(kl, 0.5)
    assert free_bits(kl, 3.0, groups=[3]).item() == 3
    assert free_bits(kl, 1.0, groups=[3]).item() == pytest.approx(2.6)


@pytest.mark.parametrize("minimum", [-0.1, math.nan, math.inf])
def test_free_bits_refuses_a_minimum(minimum):
    with pytest.raises(ValueError, match=r"minimum must be"):
        free_bits(torch.zeros(2), minimum)


@pytest.mark.parametrize("groups", [[], [1, 1], [2, 2], [4, -1], [3, 0], [0, 3]])
def test_free_bits_refuses_groups_that_do_not_add_up(groups):
    with pytest.raises(ValueError, match=r"groups must be sizes >= 1 that add up to 3"):
        free_bits(torch.zeros(3), 0.5, groups)


@pytest.mark.parametrize("shape", [(), (4, 3)])
def test_free_bits_refuse_a_batch_that_was_not_averaged(shape):
    with pytest.raises(ValueError, match=r"kl_mean must be \[latent\]"):
        free_bits(torch.zeros(shape), 0.5)


@pytest.mark.parametrize(("kl", "expected", "slope"), [(7.0, 6.0, 3.0), (2.0, 9.0, -3.0)])
def test_capacity_penalty_pulls_from_both_sides(kl, expected, slope):
    rate = torch.tensor(kl, requires_grad=True)
    penalty = capacity_penalty(rate, capacity=5.0, gamma=3.0)
    assert penalty.item() == expected
    assert torch.autograd.grad(penalty, rate)[0].item() == slope


def test_capacity_penalty_is_zero_at_the_capacity():
    assert capacity_penalty(torch.tensor(5.0), 5.0, 30.0).item() == 0


@pytest.mark.parametrize(
    ("capacity", "gamma", "named"),
    [
        (-1.0, 1.0, "capacity and gamma must be >= 0"),
        (1.0, -1.0, "capacity and gamma must be >= 0"),
        (math.nan, 1.0, "capacity must be finite"),
        (1.0, math.inf, "gamma must be finite"),
    ],
)
def test_capacity_penalty_refuses(capacity, gamma, named):
    with pytest.raises(ValueError, match=named):
        capacity_penalty(torch.tensor(1.0), capacity, gamma)


RAMP = partial(linear, start=0.0, end=1.0, steps=4)


def test_annealing_walks_through_its_schedule():
    annealing = Annealing(RAMP)
    values = [annealing.value] + [annealing.step() for _ in range(5)]
    assert values == [0, 0.25, 0.5, 0.75, 1, 1]
    assert annealing.value == 1


def test_annealing_goes_on_from_its_state_through_json():
    first = Annealing(partial(cyclical, end=1.0, period=5))
    for _ in range(7):
        first.step()
    second = Annealing(partial(cyclical, end=1.0, period=5))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.value == first.value == pytest.approx(0.8)
    assert [second.step() for _ in range(9)] == [first.step() for _ in range(9)]


def test_annealing_refuses_a_bad_schedule_at_once():
    with pytest.raises(ValueError, match=r"steps=-1"):
        Annealing(partial(linear, start=0.0, end=1.0, steps=-1))


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": 1.5}, {"steps": 3}])
def test_annealing_refuses_a_state_that_is_none(state):
    annealing = Annealing(RAMP)
    annealing.step()
    with pytest.raises(ValueError, match=r"state must hold a step >= 0"):
        annealing.load_state_dict(state)
    assert annealing.value == 0.25
