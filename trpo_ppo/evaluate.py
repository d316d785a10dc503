"""Evaluate or film a policy: ``python -m trpo_ppo.evaluate [--model FOLDER] [--video FILE]``."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import cli
from shared.config import Count, CountOrZero
from shared.errors import UserError
from shared.run.checkpoint import check_architecture, read_model
from shared.run.report import write_evaluation
from shared.training.seeding import EVALUATION, generator
from trpo_ppo.envs import interface, make, to_action, to_vector
from trpo_ppo.network import Array
from trpo_ppo.policy import Agent
from trpo_ppo.video import film

PRETRAINED = "trpo_ppo/pretrained/cartpole"
# observation [1, observations] and noise [1, width] -> action [1, width]
Choose = Callable[[Array, Array], Array]
ARCHITECTURE = ("width", "depth", "log_std", "normalise")


@dataclass(frozen=True)
class Options:
    """Play episodes with a trained policy; its observation moments stay as they are."""

    model: str = PRETRAINED
    """Model folder, or a run folder (its model, or its newest checkpoint while it is training)."""
    env: str = ""
    """Play in this environment instead of the one the policy was trained in; same spaces."""
    episodes: Count = 20
    """Episodes with the best action (the mean, or the most probable), and as many with samples."""
    seed: CountOrZero = 0
    """Seed of the episodes and of the sampled actions."""
    video: str = ""
    """File that receives the first deterministic episode: .gif or .mp4."""
    json: str = ""
    """File that receives every metric, with the environment."""


def play(choose: Choose, name: str, episodes: int, seed: int) -> list[float]:
    """Scores of ``episodes`` episodes; the same seeds and noise whoever plays."""
    env = make(name)
    spaces = interface(env, name)
    scores = []
    for episode in range(episodes):
        key = (seed, EVALUATION, episode + 1)
        observation, _ = env.reset(seed=int(np.random.SeedSequence(key).generate_state(1)[0]))
        draw = torch.randn if spaces.kind == "gaussian" else torch.rand
        noise = draw(spaces.limit, spaces.width, generator=generator("cpu", *key)).numpy()
        score, over, t = 0.0, False, 0
        while not over:
            seen = to_vector(env.observation_space, observation)
            action = choose(seen[None], noise[t, None])
            observation, reward, terminated, truncated, _ = env.step(
                to_action(env.action_space, action[0].astype(np.float32))
            )
            score, over, t = score + float(reward), terminated or truncated, t + 1
        scores.append(score)
    env.close()
    return scores


def evaluate(agent: Agent, name: str, episodes: int, seed: int = 0) -> dict[str, Any]:
    """Mean and standard deviation of the scores, with the best action and with samples."""
    metrics: dict[str, Any] = {"env": name, "episodes": episodes}
    actor = agent.actor_arrays()
    ways: dict[str, Choose] = {
        "deterministic": lambda x, _: actor.best(actor.normalised(x)),
        "stochastic": lambda x, noise: actor.sample(actor.normalised(x), noise),
    }
    for what, choose in ways.items():
        scores = play(choose, name, episodes, seed)
        metrics |= {
            what: float(np.mean(scores)),
            f"{what}_sd": float(np.std(scores)),
            f"{what}_scores": scores,
        }
    return metrics


def headline(metrics: dict[str, Any]) -> str:
    """The metrics as lines for people."""
    return "\n".join(
        f"{what:<22}{metrics[what]:.1f} +- {metrics[f'{what}_sd']:.1f} "
        f"(sd over {metrics['episodes']} episodes of {metrics['env']})"
        for what in ("deterministic", "stochastic")
    )


def load(path: str, env: str = "") -> tuple[Agent, str, dict[str, Any]]:
    """Agent, environment and what it was trained with, from a model folder or a run folder.

    Raises:
        UserError: nothing there, damaged files, or an environment with other spaces.
    """
    weights, about = read_model(Path(path))
    trained = {n.removeprefix("agent."): w for n, w in weights.items() if n.startswith("agent.")}
    weights = trained or weights  # a checkpoint holds more than the agent
    try:
        config = about["config"]
        name = env or config["env"]
        options = {key: config[key] for key in ARCHITECTURE}
        width, depth = int(config["width"]), int(config["depth"])
        sizes = (len(weights["moments.mean"]), *[width] * depth)
        outputs = (len(weights["actor.flat"]) - _parameters(sizes)) // (width + 1)
        gaussian = len(weights["log_std"]) > 0
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not say which policy it holds ({error!r})") from error
    tried = make(name)
    spaces = interface(tried, name)
    tried.close()
    theirs = (sizes[0], outputs, "gaussian" if gaussian else "categorical")
    if theirs != spaces[:3]:
        raise UserError(
            f"{path} was trained for {_spaces(*theirs)}; {name} has {_spaces(*spaces[:3])}"
        )
    agent = Agent(*spaces[:3], **options)
    check_architecture(agent, weights, Path(path))
    agent.load_state_dict(weights)
    return agent.eval(), name, about


def _parameters(sizes: tuple[int, ...]) -> int:
    return sum((i + 1) * o for i, o in pairwise(sizes))


def _spaces(observations: int, actions: int, kind: str) -> str:
    what = "numbers an action" if kind == "gaussian" else "choices"
    return f"{observations} observations and {actions} {what}"


def main() -> None:
    options = cli.read_options(Options, "trpo_ppo.evaluate")
    if options.video and Path(options.video).suffix not in (".gif", ".mp4"):
        raise UserError(f"--video {options.video}: must end in .gif or .mp4")
    agent, name, _ = load(options.model, options.env)
    metrics = evaluate(agent, name, options.episodes, options.seed)
    print(headline(metrics))
    if options.video:
        frames = film(agent, name, Path(options.video), options.seed)
        print(f"{frames} frames in {options.video}")
    write_evaluation(options.json, options.model, metrics=metrics)


if __name__ == "__main__":
    cli.run(main, "trpo_ppo.evaluate")
