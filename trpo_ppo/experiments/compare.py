"""Scores against stable-baselines3 and sb3-contrib at equal steps.

``python -m trpo_ppo.experiments.compare``

Our default preset of a task, and the peer with the same sizes and hyperparameters; every final
policy plays the same episodes with its best action. Runs that are finished are kept, one of ours
that was cut off is resumed, so that the command can be stopped and called again.
"""

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from shared import cli
from shared.config import Count
from shared.experiments import reproduce
from shared.experiments.reproduce import Record, Reproduction, Row
from shared.experiments.tables import write_result
from trpo_ppo.experiments.peers import NAMES, require

RUNS = Path("runs/compare-ppo")
RESULTS = Path("trpo_ppo/results")
TASKS = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5")


@dataclass(frozen=True)
class Options(reproduce.Options):
    """Train ours and theirs on every task and write trpo_ppo/results/quality.json."""

    steps: Count = 300_000
    """Environment steps of a run."""
    seeds: Count = 3
    """Runs of each task and training loop."""
    jobs: Count = 2
    """Runs at a time, each on one thread."""


@dataclass(frozen=True)
class LoopRow(Row):
    """A training loop on a task."""

    task: str = ""
    algo: str = ""
    ours: bool = True

    @property
    def name(self) -> str:
        return f"ours, {self.algo}" if self.ours else NAMES[self.algo]


def reproduction(options: Options) -> Reproduction:
    """A row of runs for every task, algorithm and training loop."""
    rows, steps = {}, str(options.steps)
    for task, algo in product(TASKS, NAMES):
        same = f"--env {task} --algo {algo} --seed SEED --steps {steps}"
        for name, program, arguments in (
            ("ours", "trpo_ppo.train", f"default {same}"),
            ("peer", "trpo_ppo.experiments.peers", same),
        ):
            rows[f"{task}-{algo}-{name}"] = LoopRow(
                program, arguments, range(options.seeds), {}, task, algo, name == "ours"
            )
    return Reproduction(rows, RUNS / steps, RESULTS / "compared" / steps)


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


def table_row(row: LoopRow, runs: list[Record]) -> dict[str, Any]:
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


def collect(runs: Reproduction, options: Options) -> None:
    """quality.json, of the rows that have all their runs."""
    complete = runs.complete_rows({row: runs.names(row) for row in runs.rows})
    rows = [
        table_row(row, complete[name])
        for name, row in runs.rows.items()
        if isinstance(row, LoopRow) and name in complete
    ]
    beside_peer(rows)
    environment = next(iter(complete.values()))[0]["environment"]
    about = {"steps": options.steps, "seeds": options.seeds, "environment": environment}
    write_result(RESULTS / "quality.json", COLUMNS, rows, **about)


def main() -> None:
    options = cli.read_options(Options, "trpo_ppo.experiments.compare")
    runs = reproduction(options)
    names = runs.chosen(options)
    if not options.collect:
        require()
        runs.train_in_parallel(names, options.jobs)
    if not options.only:
        collect(runs, options)
        print(f"results in {RESULTS / 'quality.json'}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "trpo_ppo.experiments.compare")
