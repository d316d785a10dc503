"""stable-baselines3's PPO and sb3-contrib's TRPO with our sizes and hyperparameters.

``python -m trpo_ppo.experiments.peers`` trains one and plays it in our evaluator: what
``make compare-ppo`` is made of. What a peer does its own way stays so: PPO standardises advantages
per minibatch, TRPO bounds KL(new || old) and does not clip the critic's gradient. TRPO also takes
the mean of the KL over a Gaussian's dimensions where the KL is their sum; it is given --delta and
--damping divided by their number, which is the same constraint.
"""

import importlib.util
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from shared import cli
from shared.config import Count, CountOrZero
from shared.errors import UserError
from shared.run.environment import describe
from shared.run.folder import write_json
from trpo_ppo.config import Config, presets
from trpo_ppo.envs import make
from trpo_ppo.evaluate import play

NAMES = {"ppo-clip": "stable-baselines3 PPO", "trpo": "sb3-contrib TRPO"}


@dataclass(frozen=True)
class Options:
    """Train a peer at the hyperparameters of our default preset, and play it."""

    env: str = "Hopper-v5"
    """Gymnasium environment."""
    algo: Literal["ppo-clip", "trpo"] = "ppo-clip"
    """stable-baselines3's PPO or sb3-contrib's TRPO."""
    steps: Count = 300_000
    """Environment steps, rounded up to whole rollouts."""
    seed: CountOrZero = 0
    """Of networks, environments and actions."""
    out: str = "runs/trpo-ppo-peer"
    """Folder that receives summary.json and env.json, at the end."""


def require() -> None:
    """UserError unless the peers are installed."""
    for package in ("stable_baselines3", "sb3_contrib"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{package} is not installed; the peers come with "
                f"`.venv/bin/pip install -r requirements-bench.txt -c constraints.txt`"
            )


def build(config: Config) -> tuple[Any, Any]:
    """Model and environments, as far as the peers' options go the same as ours."""
    from sb3_contrib import TRPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    env = make(config.env)  # silences MuJoCo, which would write a log here
    dimensions = math.prod(env.action_space.shape or ())  # 1 for choices
    env.close()
    envs: Any = make_vec_env(config.env, config.num_envs)
    if config.normalise:
        envs = VecNormalize(envs, gamma=config.gamma)
    rollouts = whole_rollouts(config)

    def annealed(left: float) -> float:
        """The peer's ``left`` is what is left after a rollout; our rate is what was before it."""
        return config.lr * (left + 1 / rollouts)

    same: dict[str, Any] = {
        "n_steps": config.rollout,
        "batch_size": config.minibatch,
        "gamma": config.gamma,
        "learning_rate": annealed if config.anneal else config.lr,
        "gae_lambda": config.lam,
        "device": "cpu",
        "seed": config.seed,
    }
    if config.algo == "trpo":
        model: Any = TRPO(
            "MlpPolicy",
            envs,
            target_kl=config.delta / dimensions,
            cg_max_steps=config.cg_iterations,
            cg_damping=config.damping / dimensions,
            n_critic_updates=config.epochs,
            line_search_max_iter=config.backtracks,
            **same,
        )
    else:
        model = PPO(
            "MlpPolicy",
            envs,
            n_epochs=config.epochs,
            clip_range=config.clip,
            vf_coef=config.value_coefficient,
            ent_coef=config.entropy,
            max_grad_norm=config.max_gradient,
            **same,
        )
    return model, envs


def whole_rollouts(config: Config) -> int:
    return -(-config.steps // (config.num_envs * config.rollout))


def train(config: Config) -> dict[str, Any]:
    """A summary like that of a run of ours: training score, seconds, deterministic evaluation."""
    model, envs = build(config)
    start = time.perf_counter()
    model.learn(whole_rollouts(config) * config.num_envs * config.rollout)
    seconds = time.perf_counter() - start
    envs.training = False

    def best(observation: Any, _: object) -> Any:
        seen = envs.normalize_obs(observation) if config.normalise else observation
        return model.predict(seen, deterministic=True)[0].reshape(1, -1)

    scores = play(best, config.env, config.evaluation_episodes, 0)
    episodes = [episode["r"] for episode in model.ep_info_buffer]  # the last hundred
    return {
        "steps": model.num_timesteps,
        "training_seconds": round(seconds, 1),
        "training": {"score": float(np.mean(episodes))},
        "evaluation": {
            "env": config.env,
            "episodes": len(scores),
            "deterministic": float(np.mean(scores)),
            "deterministic_sd": float(np.std(scores)),
            "deterministic_scores": scores,
        },
    }


def main() -> None:
    options = cli.read_options(Options, "trpo_ppo.experiments.peers")
    require()
    folder = Path(options.out)
    if folder.exists():
        raise UserError(f"--out {folder}: exists already")
    torch.set_num_threads(1)
    default = presets(options.env, options.algo)["default"]
    summary = train(replace(default, steps=options.steps, seed=options.seed))
    write_json(folder / "env.json", describe())
    write_json(folder / "summary.json", summary)
    print(f"{options.env}, {NAMES[options.algo]}: {summary['evaluation']['deterministic']:.1f}")


if __name__ == "__main__":
    cli.run(main, "trpo_ppo.experiments.peers")
