"""The training loops that ``make bench-rl`` times: environment steps per CPU-second each."""

import tempfile
import time
from dataclasses import replace
from typing import Literal, NamedTuple

from shared.experiments.bench import Clock, Finished, on_every_step
from shared.run.run import Run
from trpo_ppo.config import Algorithm, Config, presets
from trpo_ppo.envs import Environments, columns
from trpo_ppo.experiments.peers import NAMES, build
from trpo_ppo.train import train

Kind = Literal["ours", "peer", "fast", "simulator"]


class Row(NamedTuple):
    """A timed loop; ``peer`` is the row that ours is compared with."""

    env: str
    algo: Algorithm
    kind: Kind
    name: str
    peer: str = ""


def _rows() -> dict[str, Row]:
    rows = {}
    for env in ("CartPole-v1", "Hopper-v5", "HalfCheetah-v5"):
        algos: list[Algorithm] = ["ppo-clip", "trpo"] if env == "Hopper-v5" else ["ppo-clip"]
        for algo in algos:
            ours = f"{env} {algo}"
            rows[ours] = Row(
                env, algo, "ours", f"ours, {algo}, the peer's settings", f"{ours} peer"
            )
            rows[f"{ours} peer"] = Row(env, algo, "peer", f"{NAMES[algo]}, the same settings")
            if env != "CartPole-v1" and algo == "ppo-clip":
                rows[f"{ours} fast"] = Row(
                    env, algo, "fast", "ours, 8 x 256, minibatch 512", f"{ours} peer"
                )
        rows[f"{env} simulator"] = Row(env, "ppo-clip", "simulator", "the simulator alone")
    return rows


ROWS = _rows()


def settings(row: Row) -> Config:
    """The default preset of the task; for the fast row fewer, larger minibatches."""
    config = presets(row.env, row.algo)["default"]
    config = replace(config, anneal=False, checkpoint_every=10**6)
    if row.kind == "fast":
        config = replace(config, num_envs=8, rollout=256, minibatch=512)
    return config


def measure(name: str, steps: int) -> float:
    """One row, in this process: environment steps per CPU-second."""
    row = ROWS[name]
    config = settings(row)
    match row.kind:
        case "ours" | "fast":
            return ours(config, steps)
        case "peer":
            return peer(config, steps)
        case "simulator":
            return simulator(row.env, steps)


def clock_of(config: Config, steps: int) -> Clock:
    """Times whole rollouts with their updates, from the end of the first one on."""
    return Clock(max(1, steps // (config.num_envs * config.rollout)))


def speed(clock: Clock, config: Config) -> float:
    return clock.steps * config.num_envs * config.rollout / clock.seconds


def ours(config: Config, steps: int) -> float:
    """``trpo_ppo.train``, with its metrics, without the final evaluation."""
    clock = clock_of(config, steps)

    def stepped(_: Run) -> None:
        if clock.tick() == 0:
            raise Finished

    with tempfile.TemporaryDirectory() as folder, on_every_step(stepped):
        train("bench", replace(config, steps=10**9, out=f"{folder}/run"))
    return speed(clock, config)


def peer(config: Config, steps: int) -> float:
    """stable-baselines3's PPO or sb3-contrib's TRPO with the same sizes and hyperparameters."""
    from stable_baselines3.common.callbacks import BaseCallback

    clock = clock_of(config, steps)

    class Ticks(BaseCallback):  # type: ignore[misc]
        """A rollout starts when the update of the one before is done."""

        def _on_rollout_start(self) -> None:
            if self.num_timesteps:
                clock.tick()

        def _on_step(self) -> bool:
            return True

    model, _ = build(config)
    model.learn((clock.steps + 2) * config.num_envs * config.rollout, callback=Ticks())
    return speed(clock, config)


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
