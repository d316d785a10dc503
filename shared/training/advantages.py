"""Generalised advantage estimation, and advantages standardised over all processes."""

import torch
from torch import Tensor

from shared.processes.distributed import all_reduce_sum


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, gamma: float, lam: float
) -> Tensor:
    """Schulman et al. 2016 (arXiv 1506.02438), eq. 16, for rows of time [time, ...].

    A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t). The sum is cut
    where an episode ends. ``next_values`` says how it ended: 0 where it was terminated, V of the
    last observation where it was truncated (Pardo et al. 2018).

    Args:
        rewards, values: r_t and V(s_t).
        next_values: V(s_{t+1}) of the next state of the same episode, never of the first state
            of the next one.
        ended: bool, whether step t was the last of its episode.
        gamma, lam: discount and trace, between 0 and 1.

    Returns:
        Advantages [time, ...]; added to ``values`` they are the targets of the value function.

    Raises:
        ValueError: the shapes differ.
    """
    for name, x in (("values", values), ("next_values", next_values), ("ended", ended)):
        if x.shape != rewards.shape:
            raise ValueError(f"{name} must have shape {list(rewards.shape)}, got {list(x.shape)}")
    # In NumPy: a torch operation on the few numbers of a row takes ten times as long.
    delta = (rewards + gamma * next_values - values).cpu().numpy()
    trace = (gamma * lam * (~ended).to(values.dtype)).cpu().numpy()
    for t in range(len(delta) - 2, -1, -1):
        delta[t] += trace[t] * delta[t + 1]
    return torch.from_numpy(delta).to(rewards.device)


def standardise(x: Tensor, n: int) -> Tensor:
    """(x - mean) / standard deviation over the ``n`` numbers of all processes; same shape.

    If all numbers are equal, they become zeros.
    """
    wide = x.double()
    mean = all_reduce_sum(wide.sum()) / n
    deviation = (all_reduce_sum((wide - mean).square().sum()) / n).sqrt()
    scaled = (wide - mean) / deviation
    return torch.where(deviation > 0, scaled, torch.zeros_like(scaled)).to(x.dtype)
