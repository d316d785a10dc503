"""Gymnasium environments stepped side by side, whose state is a seed and a list of actions.

Autoreset is of the kind SAME_STEP: ``step`` returns the first observation of the next episode, and
the true last observation of the one that ended beside it, so no transition crosses an episode.

Every episode is reset with a seed of its own, a function of (seed, environment, episode). So where
an environment stands is known from the number of its episode and the actions since: that is what a
checkpoint holds, and ``restore`` plays them again: for any simulator that is deterministic.
"""

import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np

from shared.errors import UserError, first_line, nearest
from shared.training.seeding import ENVIRONMENT
from trpo_ppo.network import Array

_HINT = "; one of yours is MODULE:NAME, where importing the module registers it"


class Interface(NamedTuple):
    """The sizes that an agent takes from an environment."""

    observations: int
    actions: int  # numbers of a Box, choices of a Discrete
    kind: Literal["categorical", "gaussian"]
    limit: int  # steps of the longest episode

    @property
    def width(self) -> int:
        """Numbers that name one action."""
        return self.actions if self.kind == "gaussian" else 1


class Ended(NamedTuple):
    """An episode that ended in this step: which environment, its last observation, its score."""

    env: int
    observation: Array
    total: float
    length: int


def make(name: str, **options: Any) -> gym.Env[Any, Any]:
    """``gym.make`` with errors for people; renders without a display, and silently.

    ``module:Name-v0`` imports the module first, which registers the environment.

    Raises:
        UserError: no such module or environment, what it needs is not installed, or it cannot be
            made; the message names it.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")  # read once, when mujoco is imported
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws too, and says if it cannot
    module, _, registered = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the module does when it is imported
            raise UserError(
                f"--env {name}: cannot import {module} ({first_line(error)})"
            ) from error
    try:
        if "mujoco" in str(gym.spec(registered).entry_point):
            import mujoco

            mujoco.set_mju_user_warning(lambda _: None)  # it would write MUJOCO_LOG.TXT
        with warnings.catch_warnings(action="ignore"):  # Box2D's modules warn when imported
            return gym.make(registered, disable_env_checker=True, **options)
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv, gym.error.Error) as error:
        if isinstance(error, gym.error.DependencyNotInstalled):
            raise UserError(f"--env {name}: {first_line(error)}") from error
        hint = nearest(registered, gym.registry) or ("" if module else _HINT)
        raise UserError(f"--env {name}: Gymnasium has no such environment{hint}") from error
    except ImportError as error:
        raise UserError(f"--env {name}: {first_line(error)}; `make setup` installs it") from error
    except Exception as error:  # of the environment's own code
        raise UserError(f"--env {name}: cannot be made ({first_line(error)})") from error


def interface(env: gym.Env[Any, Any], name: str) -> Interface:
    """The observation and action spaces of an environment, as sizes.

    Raises:
        UserError: observations that are no numbers or an image, actions that are neither numbers
            nor one choice, or episodes without a limit.
    """
    seen, done = env.observation_space, env.action_space
    if isinstance(seen, gym.spaces.Box) and len(seen.shape) == 3 and seen.dtype == np.uint8:
        raise UserError(f"--env {name}: observations are images, the policy takes vectors: {seen}")
    try:
        numbers = gym.spaces.flatdim(seen)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"--env {name}: observations cannot be made a vector: {seen}") from error
    limit = env.spec.max_episode_steps if env.spec else None
    if not limit:
        raise UserError(
            f"--env {name}: its episodes must have a limit; register it with max_episode_steps"
        )
    if isinstance(done, gym.spaces.Discrete):
        return Interface(numbers, int(done.n), "categorical", limit)
    if isinstance(done, gym.spaces.Box) and np.issubdtype(done.dtype, np.floating):
        return Interface(numbers, gym.spaces.flatdim(done), "gaussian", limit)
    raise UserError(f"--env {name}: actions must be numbers or one choice, they are {done}")


def to_vector(space: gym.Space[Any], observation: Any) -> Array:
    """An observation as numbers: parts one after the other, choices as 0 and 1 (one-hot)."""
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return np.asarray(observation)
    return np.asarray(gym.spaces.flatten(space, observation), dtype=np.float64)


def to_action(space: gym.Space[Any], action: Array) -> Any:
    """One row of actions as the environment takes it; numbers are clipped to the bounds."""
    if isinstance(space, gym.spaces.Box):
        return np.minimum(np.maximum(action.reshape(space.shape), space.low), space.high)
    return int(action[0]) + int(space.start)  # type: ignore[attr-defined]


class Environments:
    """Several copies of one environment; ``indices`` are their numbers among all processes'."""

    def __init__(self, name: str, seed: int, indices: Sequence[int], gamma: float) -> None:
        self.name, self.seed, self.indices, self.gamma = name, seed, list(indices), gamma
        self.envs = [make(name) for _ in self.indices]
        self.interface = interface(self.envs[0], name)
        self.seen, self.space = self.envs[0].observation_space, self.envs[0].action_space
        n, spaces = len(self.indices), self.interface
        self.observations = np.zeros((n, spaces.observations))
        self.episodes = np.full(n, -1)
        self.elapsed = np.zeros(n, dtype=np.int64)
        self.actions = np.zeros(
            (n, spaces.limit, spaces.width), dtype=np.float32
        )  # of this episode
        self.totals = np.zeros(n)  # rewards of this episode so far
        self.discounted = np.zeros(n)  # the same, each new one discounting those before it
        for i in range(n):
            self._reset(i)

    def _reset(self, i: int) -> None:
        self.episodes[i] += 1
        key = (self.seed, ENVIRONMENT, self.indices[i], int(self.episodes[i]) + 1)
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        with self._its_own_errors():
            observation, _ = self.envs[i].reset(seed=seed)
        self._see(i, observation)
        self.elapsed[i], self.totals[i], self.discounted[i], self.actions[i] = 0, 0.0, 0.0, 0.0

    def _step(self, i: int, action: Array) -> tuple[float, bool, bool]:
        with self._its_own_errors():
            step = self.envs[i].step(to_action(self.space, action))
        seen, reward, terminated, truncated, _ = step
        self._see(i, seen)
        self.actions[i, self.elapsed[i]] = action
        self.elapsed[i] += 1
        self.totals[i] += reward
        self.discounted[i] = self.discounted[i] * self.gamma + reward
        return reward, terminated, truncated  # type: ignore[return-value]

    @contextmanager
    def _its_own_errors(self) -> Iterator[None]:
        """What the environment's own code raises, in one line that names it."""
        try:
            yield
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"--env {self.name}: failed in a step ({what})") from error

    def _see(self, i: int, observation: Any) -> None:
        try:
            self.observations[i] = to_vector(self.seen, observation)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(
                f"--env {self.name}: gave an observation that is not of its space {self.seen}"
            ) from error

    def step(self, actions: Array, out: "Columns", t: int) -> list[Ended]:
        """One step of every environment into column ``t`` of ``out``; the episodes that ended."""
        ended = []
        for i, action in enumerate(actions):
            reward, terminated, truncated = self._step(i, action)
            out.rewards[t, i], out.discounted[t, i] = reward, self.discounted[i]
            # Terminated and out of time at once: terminated, there is nothing to bootstrap.
            out.terminated[t, i], out.truncated[t, i] = terminated, truncated and not terminated
            if terminated or truncated:
                last = self.observations[i].copy()
                ended.append(Ended(i, last, float(self.totals[i]), int(self.elapsed[i])))
                self._reset(i)
        return ended

    def state(self) -> dict[str, Array]:
        """Episode, steps in it and their actions: all it takes to come back here."""
        return {
            "episodes": self.episodes,
            "elapsed": self.elapsed,
            "actions": self.actions,
            "observations": self.observations,
        }

    def restore(self, episodes: Array, elapsed: Array, actions: Array, observations: Array) -> None:
        """Play the actions of every unfinished episode again.

        Raises:
            UserError: that ended elsewhere than where the checkpoint's environments stood.
        """
        for i, env in enumerate(self.indices):
            self.episodes[i] = episodes[i] - 1
            self._reset(i)
            over = False
            for action in actions[i, : int(elapsed[i])]:
                _, terminated, truncated = self._step(i, action)
                over = over or terminated or truncated
            if over or not np.array_equal(self.observations[i], observations[i]):
                raise UserError(
                    f"--resume: environment {env} of {self.name} went another way than when the "
                    f"checkpoint was written; is it another version of the simulator, or one whose "
                    f"chance does not come from the seed of its reset?"
                )

    def close(self) -> None:
        for env in self.envs:
            env.close()


class Columns(NamedTuple):
    """Records of the environments in a rollout: arrays [time, environments]."""

    rewards: Array
    discounted: Array
    terminated: Array
    truncated: Array


def columns(time: int, environments: int) -> Columns:
    shape = (time, environments)
    return Columns(np.zeros(shape), np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool))
