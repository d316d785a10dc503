"""The training loops that ``make bench-rl`` times: environment steps per CPU-second each."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

from shared.run.run import Run
from trpo_ppo import train
from trpo_ppo.config import Algorithm, Config, presets
from trpo_ppo.envs import Environments, columns
from trpo_ppo.experiments.peers import NAMES, build

Loop = Literal["ours", "peer", "fast", "simulator"]


class Row(NamedTuple):
    """What is timed; ``peer`` is the row that an own one is compared with."""

    env: str
    algo: Algorithm
    loop: Loop
    name: str
    peer: str = ""


def _rows() -> dict[str, Row]:
    found = {}
    for env in ("CartPole-v1", "Hopper-v5", "HalfCheetah-v5"):
        algos: list[Algorithm] = ["ppo-clip", "trpo"] if env == "Hopper-v5" else ["ppo-clip"]
        for algo in algos:
            own = f"{env} {algo}"
            found[own] = Row(env, algo, "ours", f"ours, {algo}, the peer's settings", f"{own} peer")
            found[f"{own} peer"] = Row(env, algo, "peer", f"{NAMES[algo]}, the same settings")
            if env != "CartPole-v1" and algo == "ppo-clip":
                found[f"{own} fast"] = Row(
                    env, algo, "fast", "ours, 8 x 256, minibatch 512", f"{own} peer"
                )
        found[f"{env} simulator"] = Row(env, "ppo-clip", "simulator", "the simulator alone")
    return found


ROWS = _rows()


def settings(row: Row) -> Config:
    """The default preset of the task; for the fast row fewer, larger minibatches."""
    config = presets(row.env, row.algo)["default"]
    config = replace(config, anneal=False, checkpoint_every=10**6)
    if row.loop == "fast":
        config = replace(config, num_envs=8, rollout=256, minibatch=512)
    return config


def measure(name: str, steps: int) -> float:
    """One row, in this process: environment steps per CPU-second."""
    row = ROWS[name]
    config = settings(row)
    match row.loop:
        case "ours" | "fast":
            return ours(config, steps)
        case "peer":
            return peer(config, steps)
        case "simulator":
            return simulator(row.env, steps)


class Clock:
    """CPU time of whole rollouts with their updates, from the end of the first one on."""

    def __init__(self, config: Config, steps: int) -> None:
        self.size = config.num_envs * config.rollout
        self.rollouts = max(1, steps // self.size)
        self.ticks, self.start, self.speed = 0, 0.0, 0.0

    def tick(self) -> None:
        """A rollout and its update are done."""
        self.ticks += 1
        if self.ticks == 1:
            self.start = time.process_time()
        if self.ticks == 1 + self.rollouts:
            self.speed = self.rollouts * self.size / (time.process_time() - self.start)


def ours(config: Config, steps: int) -> float:
    """``trpo_ppo.train``, with its metrics, without the final evaluation."""
    clock = Clock(config, steps)
    stepped = Run.stepped

    def counted(run: Run, **metrics: Any) -> None:
        stepped(run, **metrics)
        clock.tick()

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(Run, "stepped", counted),
        patch.object(train, "finish", lambda *_: None),
    ):
        whole = (clock.rollouts + 1) * clock.size
        train.train("bench", replace(config, steps=whole, out=str(Path(folder) / "run")))
    return clock.speed


def peer(config: Config, steps: int) -> float:
    """stable-baselines3's PPO or sb3-contrib's TRPO with the same sizes and hyperparameters."""
    from stable_baselines3.common.callbacks import BaseCallback

    clock = Clock(config, steps)

    class Ticks(BaseCallback):  # type: ignore[misc]
        """A rollout starts when the update of the one before is done."""

        def _on_rollout_start(self) -> None:
            if self.num_timesteps:
                clock.tick()

        def _on_step(self) -> bool:
            return True

    model, _ = build(config)
    model.learn((clock.rollouts + 2) * clock.size, callback=Ticks())
    return clock.speed


def simulator(name: str, steps: int) -> float:
    """The environments with random actions drawn beforehand: nothing is learned or chosen."""
    envs = Environments(name, 0, [0, 1], 0.99)
    for env in envs.envs:
        env.action_space.seed(0)
    time_steps = steps // 2
    spaces, out = envs.interface, columns(time_steps, 2)
    actions = [[env.action_space.sample() for env in envs.envs] for _ in range(time_steps)]
    if spaces.kind == "categorical":
        actions = [[[one] for one in both] for both in actions]
    start = time.process_time()
    for t, both in enumerate(actions):
        envs.step(both, out, t)  # type: ignore[arg-type]
    return 2 * time_steps / (time.process_time() - start)
