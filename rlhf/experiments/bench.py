"""Speed of PPO against TRL's last PPO trainer: ``python -m rlhf.experiments.bench [--json FILE]``.

Completions per CPU-second of one thread, so other work on the machine hardly disturbs it, and peak
memory. Every figure is measured in a process of its own, the rows in turn, round after round;
ratios are of one round.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlhf.config import Config
from rlhf.experiments.bench_loops import PHASES, figures, ours, trl_ppo, trl_rloo, write_inputs
from rlhf.experiments.trl_ppo import FOLDER, VERSION
from shared import cli
from shared.config import Count
from shared.errors import UserError
from shared.experiments import bench

PROGRAM = "rlhf.experiments.bench"
PEER = "trl-1.12"
ENVIRONMENT = bench.NO_GPU | {"HF_HUB_DISABLE_TELEMETRY": "1", "ACCELERATE_USE_CPU": "true"}
SIZES = "iterations model data batch_size micro_batch completion"  # options of every row
NOTE = (
    "One iteration is a rollout, its reference pass and two passes of one optimiser step each; the "
    "first one is not timed. Same model, adapter, prompts, sizes, reward. Not the same algorithm: "
    "our critic is a head on the policy's trunk, which it does not train; TRL's is a second model "
    "of the policy's size, all of it trained. With `--critic separate` ours is a second trunk, of "
    "which the adapter is trained. RLOO has no critic."
)


class Loop(NamedTuple):
    """A timed loop: its title, and the settings that differ from the common ones."""

    name: str
    changes: dict[str, Any]


ROWS = {  # in the order of a round
    "ours": Loop("ours, float32", {}),
    "ours-separate": Loop("ours, float32, `--critic separate`", {"critic": "separate"}),
    "ours-bf16": Loop("ours, bf16 autocast", {"mixed_precision": "bf16"}),
    "trl-1.12": Loop(f"TRL {VERSION} `PPOTrainer`, float32", {}),
    "rloo": Loop("TRL 1.16 `RLOOTrainer`, float32, no critic", {}),
}


@dataclass(frozen=True)
class Options(bench.Options):
    """Time an iteration of our PPO, of TRL 1.12's and of TRL 1.16's RLOO, all with an adapter."""

    iterations: Count = 2
    """Iterations per measurement, after a first one that is not timed."""
    model: str = "smollm2"
    """As in rlhf.ppo."""
    batch_size: Count = 16
    """Completions of an iteration."""
    micro_batch: Count = 16
    """Completions computed at a time; must divide --batch-size and be a multiple of 4."""
    completion: Count = 24
    """Tokens of a completion at most."""
    data: str = "data"
    """Folder of the data sets and of SmolLM2."""

    def conflicts(self) -> list[str]:
        """Sizes that do not fit."""
        if self.batch_size % self.micro_batch or self.micro_batch % 4:
            problem = f"must divide --batch-size {self.batch_size} and be a multiple of 4"
            return [*super().conflicts(), f"--micro-batch {self.micro_batch}: {problem}"]
        return super().conflicts()


def config_of(options: Options) -> Config:
    """The settings that all rows have in common; the rest are the defaults of rlhf.ppo."""
    return Config(**{name: getattr(options, name) for name in SIZES.split()})


def measure(row: str, config: Config) -> bench.Figures:
    """One row in this process; ``config.iterations`` are timed, after one that is not."""
    with tempfile.TemporaryDirectory() as name:
        folder, (_, changes) = Path(name), ROWS[row]
        prompts, reward = write_inputs(folder, config)
        config = replace(
            config,
            **changes,
            prompts=str(prompts),
            reward=(str(reward),),
            gold="",
            checkpoint_every=10**6,
            out=str(folder / "run"),
        )
        clock = bench.Clock(config.iterations)
        config = replace(config, iterations=1 + config.iterations)
        torch.set_flush_denormal(True)  # shared.processes.launch does so for ours
        loops = {"trl-1.12": trl_ppo, "rloo": trl_rloo}
        trained = loops.get(row, ours)(config, clock)
        return figures(clock, config.batch_size, trained)


COLUMNS = (
    ("name", "training loop", ""),
    ("samples_per_cpu_second", "completions per CPU-second", ".2f"),
    ("least", "least", ".2f"),
    ("most", "most", ".2f"),
    ("over_peer", f"over TRL {VERSION}", ".2f"),
    ("peak_gigabytes", "peak memory, GB", ".1f"),
    ("memory_of_peer", f"of TRL {VERSION}", ".0%"),
    ("trained", "trained parameters", ",d"),
    ("seconds", "CPU-s per iteration", ".1f"),
    ("sampling", "sampling", ".0%"),
    ("judging", "reference pass", ".0%"),
    ("update", "update", ".0%"),
)


def summary(rounds: Sequence[bench.Round]) -> list[dict[str, Any]]:
    """One table row for each loop: medians over the rounds, ratios within a round.

    The phases are shares of the iteration.
    """
    speed, table = "samples_per_cpu_second", []
    for row, loop in ROWS.items():
        speeds = {speed: bench.median(rounds, row, speed)} | bench.spread(rounds, row, speed)
        line: dict[str, Any] = {"row": row, "name": loop.name, "n": len(rounds)}
        line |= {key: round(value, 3) for key, value in speeds.items()}
        line["over_peer"] = round(bench.ratio(rounds, row, PEER, speed), 3)
        line["peak_gigabytes"] = round(bench.median(rounds, row, "peak_bytes") / 1e9, 2)
        line["memory_of_peer"] = round(bench.ratio(rounds, row, PEER, "peak_bytes"), 3)
        line["trained"] = int(rounds[0][row]["trained"])
        line["seconds"] = round(bench.median(rounds, row, "seconds"), 2)
        phases = [phase for phase in PHASES if phase in rounds[0][row]]
        line |= {
            phase: round(bench.ratio(rounds, row, row, phase, "seconds"), 3) for phase in phases
        }
        table.append(line)
    return table


def main() -> None:
    options = cli.read_options(Options, PROGRAM)
    if not options.only and not (FOLDER / "trl").is_dir():
        raise UserError(f"{FOLDER}: TRL {VERSION} is missing; `make bench-rlhf` fetches it")
    rounds = bench.measure_rounds(
        PROGRAM,
        options,
        [*ROWS],
        lambda row: measure(row, config_of(options)),
        passed=SIZES,
        figure="{samples_per_cpu_second:.2f}",
        env=lambda row: ENVIRONMENT | ({"PYTHONPATH": str(FOLDER)} if row == PEER else {}),
    )
    if rounds:
        bench.report(options, COLUMNS, summary(rounds), options.json, note=NOTE, rounds=rounds)


if __name__ == "__main__":
    cli.run(main, PROGRAM)
