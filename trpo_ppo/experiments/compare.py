"""Scores against stable-baselines3 and sb3-contrib at equal steps.

``python -m trpo_ppo.experiments.compare``

Our default preset of a task, and the peer with the same sizes and hyperparameters; every final
policy plays the same episodes with its best action. Runs that are finished are kept, one of ours
that was cut off is resumed, so that the command can be stopped and called again.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from shared import cli
from shared.config import Count
from shared.experiments.reproduce import complete, make_all_sure, recall
from shared.experiments.tables import write_result
from shared.run.environment import describe
from trpo_ppo.experiments.peers import NAMES, require

RUNS = Path("runs/compare-ppo")
RESULTS = Path("trpo_ppo/results")
RECORDS = RESULTS / "compared"
TASKS = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5")


@dataclass(frozen=True)
class Options:
    """Train ours and theirs on every task and write trpo_ppo/results/quality.json anew."""

    steps: Count = 300_000
    """Environment steps of a run."""
    seeds: Count = 3
    """Runs of each task and training loop."""
    jobs: Count = 2
    """Runs at a time, each on one thread."""
    missing: bool = False
    """Train only the runs that have no committed record."""
    collect: bool = False
    """Train nothing: write the results of the runs that are there or have a record; a row one of
    whose runs is missing is left out."""


class Row(NamedTuple):
    """A training loop on a task; its name in run folders is ``key``."""

    task: str
    algo: str
    ours: bool

    @property
    def key(self) -> str:
        return f"{self.task}-{self.algo}-{'ours' if self.ours else 'peer'}"

    @property
    def name(self) -> str:
        return f"ours, {self.algo}" if self.ours else NAMES[self.algo]

    def run(self, seed: int, steps: int) -> tuple[str, str, Path]:
        """Program, arguments and folder."""
        program, preset = (
            ("trpo_ppo.train", "default ") if self.ours else ("trpo_ppo.experiments.peers", "")
        )
        arguments = f"{preset}--env {self.task} --algo {self.algo} --seed {seed} --steps {steps}"
        return program, arguments, RUNS / str(steps) / f"{self.key}-seed{seed}"


ROWS = [Row(task, algo, ours) for task in TASKS for algo in NAMES for ours in (True, False)]
COLUMNS = [
    ("task", "task", ""),
    ("name", "training loop", ""),
    ("value", "mean score", ",.0f"),
    ("sd", "sd of the seeds", ",.0f"),
    ("each", "of each seed", ""),
    ("n", "seeds", "d"),
    ("over_peer", "ours less peer", "+,.0f"),
    ("spread", "sd of both", ",.0f"),
    ("steps", "steps", ",d"),
    ("seconds", "seconds a run", ",.0f"),
]


def known(row: Row, seed: int, steps: int) -> dict[str, Any] | None:
    """What a run came to, if it is finished or has a record."""
    return recall(*row.run(seed, steps), RECORDS / str(steps))


def table_row(row: Row, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each run's episodes, over seeds."""
    scores = [run["evaluation"]["deterministic"] for run in runs]
    seconds = [run["training_seconds"] for run in runs]
    return {
        "task": row.task,
        "name": row.name,
        "algo": row.algo,
        "ours": row.ours,
        "value": mean(scores),
        "sd": stdev(scores) if len(scores) > 1 else 0.0,
        "each": ", ".join(f"{score:,.0f}" for score in scores),
        "n": len(scores),
        "scores": scores,
        "training_scores": [run["training"]["score"] for run in runs],
        "steps": runs[0]["training"].get("environment_steps", runs[0]["steps"]),
        "seconds": mean(seconds),
        "seconds_each": seconds,
        "episodes": runs[0]["evaluation"]["episodes"],
        "commands": [run["command"] for run in runs],
    }


def beside_peer(rows: list[dict[str, Any]]) -> None:
    """Into our rows: difference of the means, and the root of both variances' mean."""
    peers = {(row["task"], row["algo"]): row for row in rows if not row["ours"]}
    for row in rows:
        if row["ours"] and (peer := peers.get((row["task"], row["algo"]))):
            row["over_peer"] = row["value"] - peer["value"]
            row["spread"] = math.sqrt((row["sd"] ** 2 + peer["sd"] ** 2) / 2)


def collect(options: Options) -> None:
    """quality.json, of the rows that have all their runs."""
    seeds, by_key = range(options.seeds), {row.key: row for row in ROWS}
    runs = {
        f"{row.key}-seed{seed}": known(row, seed, options.steps) for row in ROWS for seed in seeds
    }
    there = {name: run for name, run in runs.items() if run}
    wanted = {key: [f"{key}-seed{seed}" for seed in seeds] for key in by_key}
    whole = complete(wanted, RUNS / str(options.steps), there.__contains__)
    rows = [table_row(by_key[key], [there[name] for name in wanted[key]]) for key in whole]
    beside_peer(rows)
    write_result(
        RESULTS / "quality.json",
        COLUMNS,
        rows,
        steps=options.steps,
        seeds=options.seeds,
        environment=describe(),
    )


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m trpo_ppo.experiments.compare"))
    if not options.collect:
        require()
        runs = [
            row.run(seed, options.steps)
            for seed in range(options.seeds)
            for row in ROWS
            if not (options.missing and known(row, seed, options.steps))
        ]
        make_all_sure(runs, options.jobs)
    collect(options)
    print(f"results in {RESULTS / 'quality.json'}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "trpo_ppo.experiments.compare")
