"""The agent: a policy and a value function on normalised observations, and the distributions."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from shared.kl import entropy_from_logits, kl_from_logits, kl_normal, normal_log_prob
from shared.training.statistics import RunningMoments
from trpo_ppo.network import Array, Layers, Network, activations

CLIP_OBSERVATIONS = 10.0  # standard deviations, as in OpenAI baselines' VecNormalize


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements in one vector."""
    return torch.cat([x.reshape(-1) for x in tensors])


class Gaussian(NamedTuple):
    """N(mean, exp(logvar)) with independent dimensions; the variance is the same in every state."""

    mean: Tensor  # [batch, actions]
    logvar: Tensor  # [actions]

    def log_prob(self, actions: Tensor) -> Tensor:
        """[batch, actions] -> [batch]: a joint density, so a sum over dimensions."""
        return normal_log_prob(actions, self.mean, self.logvar).sum(-1)

    def kl(self, other: Self) -> Tensor:
        """KL(self || other) per state, summed over action dimensions: [batch]."""
        return kl_normal(self.mean, self.logvar, other.mean, other.logvar).sum(-1)

    def entropy(self) -> Tensor:
        """[], the same in every state."""
        return 0.5 * (self.logvar + np.log(2 * np.pi * np.e)).sum()

    def rows(self, index: Tensor) -> "Gaussian":
        return Gaussian(self.mean[index], self.logvar)

    def detach(self) -> "Gaussian":
        return Gaussian(self.mean.detach(), self.logvar.detach().clone())


class Categorical(NamedTuple):
    """softmax(logits) over the actions."""

    logits: Tensor  # [batch, actions]

    def log_prob(self, actions: Tensor) -> Tensor:
        """Numbers of actions [batch, 1] -> [batch]."""
        return self.logits.log_softmax(-1).gather(-1, actions.long()).squeeze(-1)

    def kl(self, other: Self) -> Tensor:
        """KL(self || other) per state: [batch]."""
        return kl_from_logits(self.logits, other.logits)

    def entropy(self) -> Tensor:
        """Per state: [batch]."""
        return entropy_from_logits(self.logits)

    def rows(self, index: Tensor) -> "Categorical":
        return Categorical(self.logits[index])

    def detach(self) -> "Categorical":
        return Categorical(self.logits.detach())


Distribution = Gaussian | Categorical


class Agent(nn.Module, PyTorchModelHubMixin, library_name="kl-zoo", license="apache-2.0"):
    """pi(a|s) and V(s), two tanh networks, with the moments that normalise observations."""

    def __init__(
        self,
        observations: int = 4,
        actions: int = 2,
        kind: Literal["categorical", "gaussian"] = "categorical",
        width: int = 64,
        depth: int = 2,
        log_std: float = 0.0,
        normalise: bool = False,
    ) -> None:
        """``log_std`` is where a Gaussian's standard deviations start."""
        super().__init__()
        hidden = [observations] + [width] * depth
        # The last layers' gains are those of baselines and of Andrychowicz et al. 2020.
        self.actor = Network([*hidden, actions], last_gain=0.01)
        self.critic = Network([*hidden, 1], last_gain=1.0)
        self.log_std = nn.Parameter(torch.full((actions if kind == "gaussian" else 0,), log_std))
        self.moments = RunningMoments(observations)
        self.kind, self.normalise = kind, normalise

    def policy(self, observations: Tensor) -> Distribution:
        """pi(.|s) for normalised observations [batch, observations]."""
        return self.distribution(self.actor(observations))

    def distribution(self, out: Tensor) -> Distribution:
        """The distribution that the policy network's output [batch, actions] stands for."""
        return Gaussian(out, 2 * self.log_std) if self.kind == "gaussian" else Categorical(out)

    def values(self, observations: Tensor) -> Tensor:
        """V(s) for normalised observations [batch, observations] -> [batch]."""
        result: Tensor = self.critic(observations)
        return result.squeeze(-1)

    @torch.no_grad()
    def value_gradient(self, observations: Tensor, targets: Tensor, weight: float) -> Tensor:
        """Gradient of weight * sum (V - target)^2 with respect to the critic's parameters."""
        values = self.critic.run(observations)
        error = torch.from_numpy(values[-1]) - targets[:, None]
        return self.critic.backward(values, error * (2 * weight))

    def policy_parameters(self) -> list[nn.Parameter]:
        """The parameters of pi, without the value function's."""
        return [self.actor.flat, *([self.log_std] if self.kind == "gaussian" else [])]

    def actor_arrays(self) -> "Actor":
        """The policy as NumPy arrays, for acting."""
        shift, scale = self.moments.shift_and_scale() if self.normalise else (None, None)
        return Actor(self.actor.arrays(), self.log_std.detach().exp().numpy(), shift, scale)


class Actor(NamedTuple):
    """A policy that acts in NumPy: for a few observations at a time torch is ten times slower."""

    network: Layers
    std: Array  # [actions], or [0] of a categorical policy
    shift: Array | None  # normalised = (observation - shift) * scale; None: as they are
    scale: Array | None

    def normalised(self, observations: Array) -> Array:
        """[batch, observations] of any float type -> float32, within CLIP_OBSERVATIONS."""
        if self.shift is None:
            return observations.astype(np.float32)
        x = ((observations - self.shift) * self.scale).astype(np.float32)
        return np.clip(x, -CLIP_OBSERVATIONS, CLIP_OBSERVATIONS, out=x)

    def sample(self, x: Array, noise: Array) -> Array:
        """Actions [batch, width] for normalised observations and noise of the same shape.

        The noise is standard normal for a Gaussian, uniform in [0, 1) for a categorical policy,
        whose action is found by inverting the cumulative distribution.
        """
        out = activations(x, self.network)[-1]
        if len(self.std):
            return out + self.std * noise
        p = np.exp(out - out.max(-1, keepdims=True))
        cumulative = p.cumsum(-1)
        return (noise * cumulative[:, -1:] >= cumulative[:, :-1]).sum(-1, keepdims=True)

    def best(self, x: Array) -> Array:
        """The mean, or the most probable action."""
        out = activations(x, self.network)[-1]
        return out if len(self.std) else out.argmax(-1, keepdims=True)
