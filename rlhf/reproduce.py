"""All runs behind the tables of rlhf/README.md: ``python -m rlhf.reproduce``.

A reward model; PPO, DPO and RLOO over several beta; PPO without a penalty; best-of-n; the study of
the estimators. Runs that are finished are kept, one that was cut off is resumed, so that the
command can be stopped and called again.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlhf import frontier
from rlhf.publish import publish
from shared import cli
from shared.config import Count
from shared.errors import UserError
from shared.folder import read_metrics
from shared.reproduce import complete, make_sure, read_run

RUNS = Path("runs/reproduce-rlhf")
RESULTS = Path("rlhf/results")
REWARD = RUNS / "reward-seed0" / "model"
PPO_BETAS = (0.01, 0.05, 0.2)
DPO_BETAS = (0.03, 0.1, 0.3)
RLOO_BETAS = (0.05,)
OVER_ITERATIONS = 200  # rollouts without a penalty, where the default has 60
OVER_SEEDS = 1
SAMPLES = 32  # completions of the reference per prompt: the largest n of best-of-n
PROMPTS = 64
STUDY = "study"  # no run: it takes seconds and writes its own tables
PUBLISHED = "ppo-beta0.05-seed0"  # the policy that is committed


@dataclass(frozen=True)
class Options:
    """Train everything and write rlhf/results and rlhf/pretrained anew."""

    only: str = ""
    """Train only the runs whose names begin so, and the reward model if they need it; results are
    not written."""
    collect: bool = False
    """Train nothing: write the results of the runs that are there; a row one of whose runs is
    missing is left out."""
    seeds: Count = 2
    """Runs of each row of the frontier."""


class Row(NamedTuple):
    """Runs that differ by their seed alone."""

    program: str
    arguments: str  # without the seed
    seeds: int
    method: str = ""  # of the frontier's
    beta: float = 0.0

    def command(self, seed: int | str) -> str:
        return f"{self.arguments} --seed {seed}"


def rows_of(seeds: int) -> dict[str, Row]:
    """Every row, by the name that its runs begin with; what others need comes first."""
    against = f"default --reward {REWARD}"
    many = f"--reward {REWARD} --count {PROMPTS} --samples {SAMPLES}"
    over = f"{against} --beta 0 --iterations {OVER_ITERATIONS}"
    found = {
        "reward": Row("rlhf.reward", "default", 1),
        "best-of-n": Row("rlhf.best_of_n", many, 1),
    }
    swept = (("PPO", "ppo", against, PPO_BETAS), ("DPO", "dpo", "default", DPO_BETAS),
             ("RLOO", "rloo", against, RLOO_BETAS))  # fmt: skip
    for method, program, arguments, betas in swept:
        for beta in betas:
            found[f"{program}-beta{beta:g}"] = Row(
                f"rlhf.{program}", f"{arguments} --beta {beta:g}", seeds, method, beta
            )
    return found | {"over": Row("rlhf.ppo", over, min(seeds, OVER_SEEDS))}


def runs_of(name: str, row: Row) -> list[str]:
    return [f"{name}-seed{seed}" for seed in range(row.seeds)]


def read(name: str, row: Row) -> list[dict[str, Any]]:
    """The finished runs of a row, each with its options and the records of KLs in training."""
    return [
        read_run(row.program, row.command(seed), RUNS / run)
        | {
            "config": json.loads((RUNS / run / "config.json").read_text())["config"],
            "records": [r for r in read_metrics(RUNS / run) if "objective/kl" in r],
        }
        for seed, run in enumerate(runs_of(name, row))
    ]


def train(rows: Mapping[str, Row], only: str) -> None:
    """Finish every run whose name begins with ``only``: all of a seed, then the next.

    Raises:
        UserError: no name begins so, or a run failed.
    """
    chosen = [
        (row, seed, run)
        for seed in range(max(row.seeds for row in rows.values()))
        for name, row in rows.items() if seed < row.seeds
        for run in [runs_of(name, row)[seed]] if run.startswith(only)
    ]  # fmt: skip
    wants_study = STUDY.startswith(only)
    if not chosen and not wants_study:
        raise UserError(f"--only {only}: no run's name begins so; {', '.join([*rows, STUDY])}")
    reward = REWARD.parent.name
    if not reward.startswith(only) and any(str(REWARD) in row.arguments for row, *_ in chosen):
        chosen.insert(0, (rows["reward"], 0, reward))
    for row, seed, run in chosen:
        make_sure(row.program, row.command(seed), RUNS / run)
    if wants_study:
        command = [sys.executable, "-m", "rlhf.study", "--results", str(RESULTS)]
        if code := subprocess.run(command, check=False).returncode:
            raise UserError(f"the study of the estimators ended with exit code {code}")


def collect(rows: Mapping[str, Row]) -> None:
    """The tables and pictures that have all their runs, and the models to commit.

    Raises:
        UserError: no row has all its runs.
    """
    there = complete({name: runs_of(name, row) for name, row in rows.items()}, RUNS)
    runs = {name: read(name, rows[name]) for name in there if name != "reward"}
    swept = [
        frontier.Swept(row.method, row.beta, f"python -m {row.program} {row.command('SEED')}",
                       runs[name])
        for name, row in rows.items() if row.method and name in runs
    ]  # fmt: skip
    samples = runs["best-of-n"][0] if "best-of-n" in runs else None
    frontier.write(swept, runs.get("over", []), samples, RESULTS)
    if "reward" in there:
        policy = RUNS / PUBLISHED
        publish(REWARD.parent, policy if (policy / "summary.json").is_file() else None)


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m rlhf.reproduce"))
    rows = rows_of(options.seeds)
    if options.collect and options.only:
        raise UserError("--only: names what is trained, --collect trains nothing; drop one")
    if not options.collect:
        train(rows, options.only)
    if not options.only:
        collect(rows)
        print(f"results in {RESULTS}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "rlhf.reproduce")
