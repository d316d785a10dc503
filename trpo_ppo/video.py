"""A film of one episode, without a display: GIF or MP4."""

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from shared.errors import UserError
from shared.training.seeding import EVALUATION
from trpo_ppo.envs import make, to_action, to_vector
from trpo_ppo.policy import Agent

WIDTH = 240  # pixels of a frame: at least this, less than twice as many
LONGEST = 4.0  # seconds of a film
FRAMES = 90  # of a film, at most


def film(agent: Agent, name: str, path: Path, seed: int) -> int:
    """The first deterministic episode of ``evaluate`` into ``path``; the number of frames.

    Raises:
        UserError: nothing to render with.
    """
    try:
        import imageio
    except ImportError as error:
        raise UserError(f"--video {path}: {error}; pip install imageio[ffmpeg]") from error
    frames, per_second = _frames(agent, name, path, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        imageio.mimsave(path, frames, duration=1000 / per_second, loop=0)
    else:
        imageio.mimsave(path, frames, fps=per_second, macro_block_size=1)
    return len(frames)


def _frames(agent: Agent, name: str, path: Path, seed: int) -> tuple[list[Any], float]:
    """At most FRAMES frames of the first LONGEST seconds, and how many are shown per second."""
    try:
        env = make(name, render_mode="rgb_array")
        key = (seed, EVALUATION, 1)
        observation, _ = env.reset(seed=int(np.random.SeedSequence(key).generate_state(1)[0]))
        _follow(env)
        first = env.render()
    except UserError:
        raise
    except Exception as error:  # GL, EGL, pygame and mujoco each raise their own
        raise UserError(
            f"--video {path}: {name} cannot be rendered here ({type(error).__name__}: {error}); "
            f"MUJOCO_GL=egl needs the system packages libegl1 and libgl1-mesa-dri"
        ) from error
    actor = agent.actor_arrays()
    rate = float(env.metadata.get("render_fps", 30))
    every = math.ceil(rate * LONGEST / FRAMES)
    frames, over, t = [_small(first)], False, 0
    while not over and t < rate * LONGEST:
        seen = to_vector(env.observation_space, observation)
        action = actor.best(actor.normalised(seen[None]))[0].astype(np.float32)
        observation, _, terminated, truncated, _ = env.step(to_action(env.action_space, action))
        over, t = terminated or truncated, t + 1
        if t % every == 0:
            frames.append(_small(env.render()))
    env.close()
    return frames, rate / every


def _follow(env: gym.Env[Any, Any]) -> None:
    """MuJoCo's camera that goes with the body, where there is one; Gymnasium's stands still."""
    if renderer := getattr(env.unwrapped, "mujoco_renderer", None):
        import mujoco

        renderer.camera_id = mujoco.mj_name2id(
            renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track"
        )  # -1: none


def _small(frame: object) -> Any:
    """Every n-th pixel, so that films stay small."""
    image = np.asarray(frame)
    n = max(1, image.shape[1] // WIDTH)
    return image[::n, ::n]
