"""The state of a checkpoint beside the agent: of every environment, beta, moments."""

from typing import Any

import torch
from torch import Tensor, nn

from shared.processes.distributed import all_gather_rows
from shared.training.statistics import RunningMoments
from trpo_ppo.envs import Environments
from trpo_ppo.policy import Agent

RECENT = 100  # episodes that the running score is the mean of


class State(nn.Module):
    """The agent and the rest of the training's state, as buffers, of all processes together."""

    beta: Tensor
    recent: Tensor  # scores, the newest last
    episodes: Tensor  # that ended so far
    env_episodes: Tensor
    env_elapsed: Tensor
    env_actions: Tensor
    env_observations: Tensor

    def __init__(self, agent: Agent, envs: Environments, num_envs: int, beta: float) -> None:
        super().__init__()
        self.agent = agent
        self.returns = RunningMoments(1)
        spaces = envs.interface
        buffers: dict[str, Any] = {
            "beta": torch.tensor(beta, dtype=torch.float64),
            "recent": torch.zeros(RECENT, dtype=torch.float64),
            "episodes": torch.zeros((), dtype=torch.int64),
            "env_episodes": torch.zeros(num_envs, dtype=torch.int64),
            "env_elapsed": torch.zeros(num_envs, dtype=torch.int64),
            "env_actions": torch.zeros(num_envs, spaces.limit, spaces.width),
            "env_observations": torch.zeros(num_envs, spaces.observations, dtype=torch.float64),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def remember(self, envs: Environments, scores: Tensor) -> None:
        """After an update: where all processes' environments stand, and the scores of episodes."""
        for name, own in envs.state().items():
            getattr(self, f"env_{name}").copy_(all_gather_rows(torch.from_numpy(own)))
        self.recent.copy_(torch.cat([self.recent, scores])[-RECENT:])
        self.episodes += len(scores)

    def restore(self, envs: Environments) -> None:
        """Put this process's environments where the checkpoint's stood."""
        own = envs.indices
        envs.restore(
            self.env_episodes[own].numpy(),
            self.env_elapsed[own].numpy(),
            self.env_actions[own].numpy(),
            self.env_observations[own].numpy(),
        )

    def score(self) -> float:
        """Mean score of the last hundred episodes; NaN before the first has ended."""
        return self.recent[RECENT - min(RECENT, int(self.episodes)) :].mean().item()
