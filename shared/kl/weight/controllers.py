"""Weights of a KL penalty that follow the KL measured, and stopping when it is too large.

Every ``kl`` here is a number of nats of the unit its target has, averaged over a batch. It may be
a sampled estimate, so a negative one is allowed and counts as small; +inf counts as large; NaN
raises. The state of a controller is its coefficient alone; its settings come from the
configuration.
"""

import math
import sys
from collections.abc import Mapping

from .schedules import check_finite

# Doubled or halved without end a number leaves the range of floats, and from 0 or infinity no
# factor brings it back.
_SMALLEST, _LARGEST = sys.float_info.min, sys.float_info.max


class _Coefficient:
    """A positive number that is only ever multiplied, between two bounds."""

    def __init__(self, init: float, minimum: float, maximum: float) -> None:
        check_finite(init=init, minimum=minimum, maximum=maximum)
        if minimum <= 0:
            raise ValueError(f"minimum must be positive, got {minimum}: 0 would stay 0 forever")
        if init <= 0:
            raise ValueError(f"init must be positive, got {init}: 0 would stay 0 forever")
        if not minimum <= init <= maximum:
            raise ValueError(f"init must be between {minimum} and {maximum}, got {init}")
        self._value, self._minimum, self._maximum = float(init), minimum, maximum

    @property
    def value(self) -> float:
        """The coefficient now."""
        return self._value

    def _multiply(self, factor: float) -> float:
        self._value = min(max(self._value * factor, self._minimum), self._maximum)
        return self._value

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, which JSON keeps exactly."""
        return {"value": self._value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """ValueError if there is no value in the state, or it is outside the bounds."""
        value = float(state.get("value", math.nan))
        if not self._minimum <= value <= self._maximum:
            raise ValueError(
                f"state must hold a value between {self._minimum} and {self._maximum}, "
                f"got {dict(state)}"
            )
        self._value = value


class AdaptiveKL(_Coefficient):
    """Ziegler et al. 2019 (arXiv 1909.08593), section 2.2: the penalty of RLHF.

    error = clip(KL / target - 1, -clip, clip), value <- value (1 + error n / horizon).

    Args:
        init: the first coefficient, > 0.
        target: nats per **sequence** (KL summed over its tokens), > 0.
        horizon: samples over which a saturated error changes the coefficient by about a factor of
            exp(clip), > 0. n / horizon is the paper's K_beta, there 0.1.
        clip: largest error, > 0. Paper: 0.2.
        minimum, maximum: bounds of the coefficient, > 0.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        init: float,
        target: float,
        horizon: float,
        clip: float = 0.2,
        minimum: float = _SMALLEST,
        maximum: float = _LARGEST,
    ) -> None:
        super().__init__(init, minimum, maximum)
        _check_positive(target=target, horizon=horizon, clip=clip)
        self._target, self._horizon, self._clip = target, horizon, clip

    def update(self, kl: float, n: int) -> float:
        """The coefficient after a step with ``n`` sequences of mean KL(policy || reference) ``kl``.

        Raises:
            ValueError: ``kl`` is NaN; ``n`` is below 1, or so large that the coefficient could
                reach 0 (n >= horizon / clip).
        """
        kl = _checked(kl)
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        if n * self._clip >= self._horizon:
            raise ValueError(
                f"n must be below horizon / clip = {self._horizon / self._clip:g}, "
                f"got {n}: the coefficient could reach 0"
            )
        error = min(max(kl / self._target - 1, -self._clip), self._clip)
        return self._multiply(1 + error * n / self._horizon)


class PPOPenalty(_Coefficient):
    """Schulman et al. 2017 (arXiv 1707.06347), section 4: the coefficient of PPO's KL penalty.

    Halved when KL < target / 1.5, doubled when KL > 1.5 target; meant for once per policy update.

    Args:
        init: the first coefficient, > 0.
        target: nats per **state**, > 0. Paper: 0.003 to 0.03.
        minimum, maximum: bounds of the coefficient, > 0.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self, init: float, target: float, minimum: float = _SMALLEST, maximum: float = _LARGEST
    ) -> None:
        super().__init__(init, minimum, maximum)
        _check_positive(target=target)
        self._target = target

    def update(self, kl: float) -> float:
        """The coefficient after an update of the policy with KL(old || new) = ``kl`` per state.

        Raises:
            ValueError: ``kl`` is NaN.
        """
        kl = _checked(kl)
        if kl < self._target / 1.5:
            return self._multiply(0.5)
        if kl > self._target * 1.5:
            return self._multiply(2.0)
        return self._value


def kl_early_stop(kl: float, target: float, factor: float = 1.5) -> bool:
    """Whether to stop updating on this batch: KL > factor * target (Achiam 2018, Spinning Up).

    Args:
        kl: nats per state between the policy that sampled and the one being updated.
        target: nats per state, > 0.
        factor: how far above the target is too far, > 0.

    Raises:
        ValueError: ``kl`` is NaN; ``target`` or ``factor`` is not positive and finite.
    """
    _check_positive(target=target, factor=factor)
    return _checked(kl) > factor * target


def _check_positive(**numbers: float) -> None:
    check_finite(**numbers)
    for name, number in numbers.items():
        if number <= 0:
            raise ValueError(f"{name} must be positive, got {number}")


def _checked(kl: float) -> float:
    """A plain number (of a tensor too, so that the state stays one), NaN and -inf refused."""
    kl = float(kl)
    if not kl > -math.inf:
        raise ValueError(f"kl must be a number of nats, got {kl}")
    return kl
