"""Controllers against sequences worked out by hand from the papers' rules."""

import json
import math

import pytest
import torch

from shared.kl.weight.controllers import AdaptiveKL, PPOPenalty, kl_early_stop

BAD = (0.0, -1.0, math.nan, math.inf)


def test_adaptive_kl_at_twice_the_target():
    # error = clip(1) = 0.2, and 10 of 100 samples: 2 % more.
    controller = AdaptiveKL(init=0.5, target=6.0, horizon=100)
    assert controller.update(12.0, n=10) == pytest.approx(0.5 * 1.02, rel=1e-15)
    assert controller.update(12.0, n=10) == pytest.approx(0.5 * 1.02**2, rel=1e-15)
    assert controller.value == pytest.approx(0.5 * 1.02**2, rel=1e-15)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1.01),  # error 0.1
        (5.4, 0.99),
        (7.2, 1.02),  # error 0.2, the clip itself
        (4.8, 0.98),
        (1e9, 1.02),
        (math.inf, 1.02),
        (0.0, 0.98),
        (-3.0, 0.98),  # a sampled estimate may be negative
    ],
)
def test_adaptive_kl_is_proportional_and_saturates(kl, factor):
    controller = AdaptiveKL(init=2.0, target=6.0, horizon=100)
    assert controller.update(kl, n=10) == pytest.approx(2.0 * factor, rel=1e-12)


def test_adaptive_kl_counts_samples_and_takes_another_clip():
    controller = AdaptiveKL(init=1.0, target=1.0, horizon=1000, clip=0.5)
    assert controller.update(1.25, n=1) == pytest.approx(1.00025)
    assert controller.update(9.0, n=200) == pytest.approx(1.00025 * 1.1)


def test_adaptive_kl_settles_where_the_kl_meets_its_target():
    # A policy whose KL is 1 / coefficient: the target 4 is reached at 1/4, from either side.
    for init in (0.01, 10.0):
        controller = AdaptiveKL(init=init, target=4.0, horizon=100)
        for _ in range(3000):
            controller.update(1 / controller.value, n=10)
        assert controller.value == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("name", ["init", "target", "horizon", "clip", "minimum"])
@pytest.mark.parametrize("value", BAD)
def test_adaptive_kl_refuses(name, value):
    good = {"init": 0.1, "target": 6.0, "horizon": 100.0, "clip": 0.2, "minimum": 1e-3}
    with pytest.raises(ValueError, match=f"{name} must be"):
        AdaptiveKL(**good | {name: value})


@pytest.mark.parametrize(
    ("kl", "n", "named"),
    [(math.nan, 10, "kl"), (-math.inf, 10, "kl"), (6.0, 0, "n must be"), (6.0, -5, "n must be")],
)
def test_adaptive_kl_refuses_an_update_and_keeps_its_value(kl, n, named):
    controller = AdaptiveKL(init=0.1, target=6.0, horizon=100)
    with pytest.raises(ValueError, match=named):
        controller.update(kl, n)
    assert controller.value == 0.1


def test_adaptive_kl_refuses_a_step_that_could_end_at_zero():
    controller = AdaptiveKL(init=0.1, target=6.0, horizon=100)
    assert controller.update(0.0, n=499) > 0
    with pytest.raises(ValueError, match=r"n must be below horizon / clip = 500, got 500"):
        controller.update(0.0, n=500)


def test_ppo_penalty_doubles_halves_and_rests():
    controller = PPOPenalty(init=1.0, target=0.03)
    kls = [0.0451, 0.0449, 0.03, 0.0201, 0.0199, 0.0, -0.001, math.inf]
    assert [controller.update(kl) for kl in kls] == [2, 2, 2, 2, 1, 0.5, 0.25, 0.5]


def test_ppo_penalty_rests_at_the_edges_themselves():
    controller = PPOPenalty(init=1.0, target=1.5)
    assert controller.update(1.0) == 1  # target / 1.5, exactly
    assert controller.update(2.25) == 1


@pytest.mark.parametrize("name", ["init", "target", "minimum"])
@pytest.mark.parametrize("value", BAD)
def test_ppo_penalty_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        PPOPenalty(**{"init": 1.0, "target": 0.01, "minimum": 1e-3} | {name: value})


@pytest.mark.parametrize("kl", [math.nan, -math.inf])
def test_ppo_penalty_refuses_a_kl_that_is_none(kl):
    controller = PPOPenalty(init=1.0, target=0.01)
    with pytest.raises(ValueError, match=r"kl must be"):
        controller.update(kl)
    assert controller.value == 1


def test_the_coefficient_stays_between_its_bounds():
    ppo = PPOPenalty(1.0, 0.01, minimum=0.3, maximum=3.0)
    assert [ppo.update(1.0) for _ in range(3)] == [2, 3, 3]
    assert [ppo.update(0.0) for _ in range(5)] == [1.5, 0.75, 0.375, 0.3, 0.3]
    adaptive = AdaptiveKL(1.0, 6.0, 10, minimum=0.9, maximum=1.1)
    assert [adaptive.update(60.0, 10) for _ in range(2)] == [1.1, 1.1]
    assert adaptive.update(0.0, 10) == pytest.approx(0.9)


def test_the_coefficient_always_comes_back():
    # 1100 halvings or doublings leave the range of floats; 0 and infinity would stay.
    controller = PPOPenalty(1.0, 0.01)
    for kl, back in ((0.0, 1.0), (1.0, 0.0)):
        for _ in range(1100):
            controller.update(kl)
        assert 0 < controller.value < math.inf
        before = controller.value
        assert controller.update(back) in (2 * before, before / 2)


def test_the_coefficient_rises_by_two_percent_from_the_very_bottom():
    # Numbers below the normal range have too few digits: 5e-324 * 1.02 is 5e-324.
    controller = AdaptiveKL(1.0, 6.0, 10)
    for _ in range(5000):
        controller.update(0.0, 10)
    bottom = controller.value
    assert bottom < 1e-300
    assert controller.update(60.0, 1) / bottom == pytest.approx(1.02)


@pytest.mark.parametrize(("init", "minimum", "maximum"), [(1.0, 2.0, 3.0), (4.0, 2.0, 3.0)])
def test_an_init_outside_the_bounds_is_refused(init, minimum, maximum):
    with pytest.raises(ValueError, match=r"init must be between 2\.0 and 3\.0"):
        PPOPenalty(init, 0.01, minimum, maximum)
    with pytest.raises(ValueError, match=r"init must be between 2\.0 and 3\.0"):
        AdaptiveKL(init, 6.0, 100, minimum=minimum, maximum=maximum)


@pytest.mark.parametrize(
    ("make", "update"),
    [
        (lambda: AdaptiveKL(0.2, 6.0, 10_000), lambda c, kl: c.update(kl, 64)),
        (lambda: PPOPenalty(0.2, 6.0), lambda c, kl: c.update(kl)),
    ],
)
def test_the_state_goes_through_json_exactly(make, update):
    first, second = make(), make()
    for kl in (20.0, 6.5, 3.3, 20.0):
        update(first, kl)
    assert first.value != second.value
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.value == first.value
    assert [update(second, kl) for kl in (9.0, 1.0)] == [update(first, kl) for kl in (9.0, 1.0)]


@pytest.mark.parametrize("state", [{}, {"value": 0.0}, {"value": math.nan}, {"value": 4.0}])
def test_a_state_that_is_none_is_refused(state):
    controller = PPOPenalty(1.0, 0.01, minimum=0.5, maximum=2.0)
    with pytest.raises(ValueError, match=r"state must hold a value between 0\.5 and 2\.0"):
        controller.load_state_dict(state)
    assert controller.value == 1


def test_a_kl_from_a_tensor_leaves_plain_numbers():
    adaptive, ppo = AdaptiveKL(1.0, 6.0, 100), PPOPenalty(1.0, 0.01)
    adaptive.update(torch.tensor(6.3), 10)
    ppo.update(torch.tensor(0.5))
    assert json.loads(json.dumps(ppo.state_dict())) == {"value": 2.0}
    assert json.loads(json.dumps(adaptive.state_dict()))["value"] == pytest.approx(1.005)
    assert kl_early_stop(torch.tensor(0.5), 0.01) is True


def test_early_stop_is_strictly_above_one_and_a_half_targets():
    kls = (-0.1, 0.0, 1.49, 1.5, 1.51, math.inf)
    assert [kl_early_stop(kl, 1.0) for kl in kls] == [False] * 4 + [True] * 2
    assert kl_early_stop(1.2, 1.0, factor=1.0)
    assert not kl_early_stop(0.02, 0.015)


@pytest.mark.parametrize("name", ["target", "factor"])
@pytest.mark.parametrize("value", BAD)
def test_early_stop_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        kl_early_stop(**{"kl": 1.0, "target": 1.0, "factor": 1.5} | {name: value})


def test_early_stop_refuses_nan():
    with pytest.raises(ValueError, match=r"kl must be"):
        kl_early_stop(math.nan, 1.0)
