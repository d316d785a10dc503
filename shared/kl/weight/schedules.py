"""Weights of a KL term over time, and what is charged for a KL: functions of the step and the KL.

A schedule is a pure function of the step, so it has no state to save: a run that knows its step
knows the weight. ``Annealing`` counts the steps for a loop that does not. Weights that depend on
the KL measured so far are in ``weight.controllers``.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..conventions import widened


def constant(step: int, value: float) -> float:
    """``value`` at every step: the schedule that changes nothing.

    Raises:
        ValueError: ``step`` is negative, or ``value`` not finite.
    """
    check_finite(value=value)
    _check_step(step, 0)
    return value


def linear(step: int, start: float, end: float, steps: int) -> float:
    """From ``start`` to ``end`` in ``steps`` steps, then constant (Bowman et al. 2016).

    Raises:
        ValueError: ``steps`` or ``step`` is negative; ``start`` or ``end`` is not finite.
    """
    check_finite(start=start, end=end)
    _check_step(step, steps)
    if step >= steps:
        return end
    return start + (end - start) * step / steps


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """From ``start`` to ``end`` along half a cosine, flat at both ends, then constant.

    Loshchilov and Hutter 2017, eq. 5, one period, for a weight instead of a learning rate.

    Raises:
        ValueError: ``steps`` or ``step`` is negative; ``start`` or ``end`` is not finite.
    """
    check_finite(start=start, end=end)
    _check_step(step, steps)
    if step >= steps:
        return end
    return start + (end - start) * (1 - math.cos(math.pi * step / steps)) / 2


def cyclical(step: int, end: float, period: int, ratio: float = 0.5) -> float:
    """Ramp from 0 to ``end`` over the first ``ratio`` of every ``period`` steps, then hold.

    Fu et al. 2019, "Cyclical annealing schedule", eq. 6 with a linear ramp.

    Raises:
        ValueError: ``period`` < 1, ``step`` < 0, ``ratio`` outside (0, 1], ``end`` not finite.
    """
    check_finite(end=end)
    if period < 1 or step < 0 or not 0 < ratio <= 1:
        raise ValueError(
            f"need period >= 1, step >= 0, 0 < ratio <= 1, "
            f"got period={period}, step={step}, ratio={ratio}"
        )
    return end * min(1.0, (step % period) / (period * ratio))


class Annealing:
    """A schedule and the step it is at, for a loop that keeps no count of its own.

    ``Annealing(partial(linear, start=0.0, end=1.0, steps=1000))``; ``value`` is the weight now,
    ``step()`` goes one step on. The state is the step alone: the schedule comes from the
    configuration, as after any resume.

    Raises:
        ValueError: what the schedule refuses, when the object is made and not at the first step.
    """

    def __init__(self, schedule: Callable[[int], float]) -> None:
        self._schedule = schedule
        self._step = 0
        schedule(0)

    @property
    def value(self) -> float:
        return self._schedule(self._step)

    def step(self) -> float:
        """The weight after one more step."""
        self._step += 1
        return self.value

    def state_dict(self) -> dict[str, int]:
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """ValueError if the state is no ``state_dict()`` of a schedule."""
        step = state.get("step", -1)
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"state must hold a step >= 0, got {dict(state)}")
        self._step = step


def free_bits(kl_mean: Tensor, minimum: float, groups: Sequence[int] | None = None) -> Tensor:
    """Sum over groups of max(minimum, KL): no pressure on a group below ``minimum`` nats.

    Kingma et al. 2016, eq. 15.

    Args:
        kl_mean: [latent] KL **averaged over the batch**: the maximum of the mean, not the mean of
            maxima.
        minimum: nats per group, >= 0. The groups below it get a gradient of zero.
        groups: sizes of the groups of consecutive latents; by default every latent is one.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: ``kl_mean`` is not of one dimension (a batch that was not averaged); ``minimum``
            is negative or not finite; a size is below 1, or they do not add up to the latents.
    """
    (kl_mean,) = widened(kl_mean=kl_mean)
    if kl_mean.dim() != 1:
        raise ValueError(f"kl_mean must be [latent], a batch mean, got {list(kl_mean.shape)}")
    check_finite(minimum=minimum)
    if minimum < 0:
        raise ValueError(f"minimum must be >= 0 nats, got {minimum}")
    if groups is not None:
        if min(groups, default=0) < 1 or sum(groups) != len(kl_mean):
            raise ValueError(
                f"groups must be sizes >= 1 that add up to {len(kl_mean)} latents, "
                f"got {list(groups)}"
            )
        kl_mean = torch.stack([part.sum() for part in kl_mean.split(list(groups))])
    return torch.clamp(kl_mean, min=minimum).sum()


def capacity_penalty(kl: Tensor, capacity: float, gamma: float) -> Tensor:
    """gamma |KL - C|: holds the rate at ``capacity`` nats (Burgess et al. 2018, eq. 8).

    Args:
        kl: scalar, the batch's mean KL summed over latents.

    Raises:
        ValueError: ``capacity`` or ``gamma`` is negative or not finite.
    """
    (kl,) = widened(kl=kl)
    check_finite(capacity=capacity, gamma=gamma)
    if capacity < 0 or gamma < 0:
        raise ValueError(f"capacity and gamma must be >= 0, got capacity={capacity}, gamma={gamma}")
    return gamma * (kl - capacity).abs()


def check_finite(**numbers: float) -> None:
    """ValueError naming the first argument that is NaN or infinite."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}")


def _check_step(step: int, steps: int) -> None:
    if steps < 0 or step < 0:
        raise ValueError(f"step and steps must be >= 0, got step={step}, steps={steps}")
