"""Schedules and penalties on a KL term: pure functions of the step and of the KL, in nats."""

import torch
from torch import Tensor


def linear(step: int, start: float, end: float, steps: int) -> float:
    """From ``start`` to ``end`` in ``steps`` steps, then constant (Bowman et al. 2016).

    Raises:
        ValueError: ``steps`` or ``step`` is negative.
    """
    if steps < 0 or step < 0:
        raise ValueError(f"step and steps must be >= 0, got step={step}, steps={steps}")
    if step >= steps:
        return end
    return start + (end - start) * step / steps


def cyclical(step: int, end: float, period: int, ratio: float = 0.5) -> float:
    """Ramp from 0 to ``end`` over the first ``ratio`` of every ``period`` steps, then hold.

    Fu et al. 2019, "Cyclical annealing schedule", eq. 6 with a linear ramp.

    Raises:
        ValueError: ``period`` < 1, ``step`` < 0, or ``ratio`` outside (0, 1].
    """
    if period < 1 or step < 0 or not 0 < ratio <= 1:
        raise ValueError(
            f"need period >= 1, step >= 0, 0 < ratio <= 1, "
            f"got period={period}, step={step}, ratio={ratio}"
        )
    return end * min(1.0, (step % period) / (period * ratio))


def free_bits(kl_mean: Tensor, minimum: float) -> Tensor:
    """Sum over latents of max(minimum, KL): no pressure on a latent below ``minimum`` nats.

    Kingma et al. 2016, eq. 15.

    Args:
        kl_mean: [latent] (or [groups]) KL **averaged over the batch**; the maximum of the mean, not
            the mean of maxima.
        minimum: nats per latent, >= 0.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: ``minimum`` is negative.
    """
    if minimum < 0:
        raise ValueError(f"minimum must be >= 0 nats, got {minimum}")
    return torch.clamp(kl_mean, min=minimum).sum()


def capacity_penalty(kl: Tensor, capacity: float, gamma: float) -> Tensor:
    """gamma |KL - C|: holds the rate at ``capacity`` nats (Burgess et al. 2018, eq. 8).

    Args:
        kl: scalar, the batch's mean KL summed over latents.

    Raises:
        ValueError: ``capacity`` or ``gamma`` is negative.
    """
    if capacity < 0 or gamma < 0:
        raise ValueError(f"capacity and gamma must be >= 0, got capacity={capacity}, gamma={gamma}")
    return gamma * (kl - capacity).abs()
