"""Rollouts: the policy acts, and its transitions become batches with advantages.

Notation: T steps of N environments. Rows of a batch are environment by environment, so that the
rows of a process's environments are consecutive.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.errors import UserError
from shared.processes.distributed import all_gather_rows, all_reduce_sum
from shared.training.advantages import gae, standardise
from shared.training.seeding import NOISE, PERMUTATION, generator
from shared.training.statistics import RunningMoments
from trpo_ppo.envs import Columns, Ended, Environments, columns
from trpo_ppo.network import Array
from trpo_ppo.policy import Agent, Distribution

CLIP_REWARDS = 10.0  # as in OpenAI baselines' VecNormalize


class Rollout(NamedTuple):
    """T steps of this process's N environments, as arrays."""

    raw: Array  # [T, N, observations] as the environments gave them
    observations: Array  # [T, N, observations] as the policy saw them
    actions: Array  # [T, N, width]
    columns: Columns  # rewards and ends, [T, N] each
    ended: list[tuple[int, Ended]]  # (t, episode)
    after: Array  # [N, observations], as the policy will see them


class Batch(NamedTuple):
    """This process's transitions for an update, [rows, ...]."""

    observations: Tensor
    actions: Tensor
    old: Distribution  # the policy that acted
    log_prob: Tensor  # of the actions under it
    advantages: Tensor  # standardised over all processes
    targets: Tensor  # of the value function
    values: Tensor  # V before the update
    total: int  # rows of all processes
    first: int  # number of this process's first row among them

    def mean(self, x: Tensor) -> Tensor:
        """Sum of ``x`` [n, ...] over its rows and processes, divided by the number of rows."""
        return all_reduce_sum(x.sum(0)) / self.total

    def rows(self, index: Tensor, n: int) -> "Batch":
        """Some of this process's rows, as its part of a batch of ``n``."""
        return Batch(
            self.observations[index],
            self.actions[index],
            self.old.rows(index),
            self.log_prob[index],
            self.advantages[index],
            self.targets[index],
            self.values[index],
            n,
            0,
        )


def collect(agent: Agent, envs: Environments, T: int, N: int, seed: int, number: int) -> Rollout:  # noqa: N803
    """Let the policy act for T steps; the noise of all N environments of all processes is drawn.

    Raises:
        UserError: the environment gave an observation or a reward that is not a finite number.
    """
    spaces, own = envs.interface, envs.indices
    rng = generator("cpu", seed, NOISE, number)
    drawn = torch.randn if spaces.kind == "gaussian" else torch.rand
    noise = drawn(T, N, spaces.width, generator=rng)[:, own].numpy()
    raw = np.zeros((T, len(own), spaces.observations))
    seen = np.zeros(raw.shape, np.float32)
    actions = np.zeros((T, len(own), spaces.width), np.float32)
    out, ended = columns(T, len(own)), []
    actor = agent.actor_arrays()
    for t in range(T):
        raw[t] = envs.observations
        if not math.isfinite(raw[t].sum()):  # before it becomes an action
            raise UserError(f"--env {envs.name}: gave a non-finite observation")
        seen[t] = actor.normalised(envs.observations)
        actions[t] = actor.sample(seen[t], noise[t])
        ended += [(t, episode) for episode in envs.step(actions[t], out, t)]
    last = np.array([episode.observation for _, episode in ended] or [raw[-1, 0]])
    for what, values in (("reward", out.rewards), ("observation", last)):
        if not np.isfinite(values).all():
            raise UserError(f"--env {envs.name}: gave a non-finite {what}")
    return Rollout(raw, seen, actions, out, ended, actor.normalised(envs.observations))


def rows(x: Tensor) -> Tensor:
    """[T, N, ...] -> [N T, ...], environment by environment."""
    return x.transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def prepare(
    agent: Agent, rollout: Rollout, scale: float, n: int, gamma: float, lam: float, first: int
) -> Batch:
    """Values, advantages and the acting policy's distribution for one rollout.

    Args:
        scale: the rewards are multiplied by this.
        n: rows of all processes.
        first: number of this process's first row.
    """
    actor, out = agent.actor_arrays(), rollout.columns
    observations = rows(torch.from_numpy(rollout.observations)).contiguous()
    own = rollout.observations.shape[1]
    values = agent.values(observations).view(own, -1).T
    next_values = torch.cat([values[1:], agent.values(torch.from_numpy(rollout.after))[None]])
    next_values[torch.from_numpy(out.terminated)] = 0.0
    # Cut by the time limit, an episode would have gone on from its last observation.
    cut = [(t, e.env, e.observation) for t, e in rollout.ended if out.truncated[t, e.env]]
    if cut:
        times, which, last = zip(*cut, strict=True)
        seen = torch.from_numpy(actor.normalised(np.stack(last)))
        next_values[list(times), list(which)] = agent.values(seen)
    rewards = (
        np.clip(out.rewards * scale, -CLIP_REWARDS, CLIP_REWARDS) if scale != 1 else out.rewards
    )
    over = torch.from_numpy(out.terminated | out.truncated)
    reward = torch.from_numpy(rewards).float()
    advantages = gae(reward, values, next_values, over, gamma, lam)
    # Through the same code as the update's, so that the ratio is exactly 1 before it.
    old = agent.policy(observations).detach()
    actions = rows(torch.from_numpy(rollout.actions)).contiguous()
    return Batch(
        observations,
        actions,
        old,
        old.log_prob(actions),
        standardise(rows(advantages), n),
        rows(advantages + values).contiguous(),
        rows(values).contiguous(),
        n,
        first,
    )


def passes(
    batch: Batch, size: int, seed: int, number: int, epochs: int
) -> Iterator[Iterator[Batch]]:
    """``epochs`` passes over the batch of rollout ``number``, each in an order of its own."""
    rng = generator("cpu", seed, PERMUTATION, number)
    for _ in range(epochs):
        yield minibatches(batch, size, rng)


def minibatches(batch: Batch, size: int, rng: torch.Generator) -> Iterator[Batch]:
    """One pass: this process's rows of every minibatch of ``size`` rows of all processes."""
    if size >= batch.total:  # taken whole, its order does not matter
        yield batch
        return
    own = len(batch.observations)
    for chosen in torch.randperm(batch.total, generator=rng).split(size):
        index = chosen
        if own < batch.total:
            index = chosen[(chosen >= batch.first) & (chosen < batch.first + own)] - batch.first
        yield batch.rows(index, len(chosen))


def finished(rollout: Rollout) -> Tensor:
    """Scores of the episodes that ended in the rollout, on all processes, in order of time: [n]."""
    scores = torch.full(rollout.columns.rewards.T.shape, torch.nan, dtype=torch.float64)
    for t, episode in rollout.ended:
        scores[episode.env, t] = episode.total
    by_time = all_gather_rows(scores).T.flatten()
    return by_time[~by_time.isnan()]


def reward_scale(rollout: Rollout, returns: RunningMoments) -> float:
    """1 / standard deviation of the discounted returns so far, these included.

    Engstrom et al. 2020 (arXiv 2005.12729), section 3: what PPO's code does to rewards.
    """
    returns.update(torch.from_numpy(rollout.columns.discounted.T).reshape(-1, 1))
    return float(returns.shift_and_scale()[1][0])
