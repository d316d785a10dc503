"""All runs behind the tables of rlhf/README.md: ``python -m rlhf.experiments.reproduce``.

A reward model, which becomes the committed one; PPO, DPO and RLOO over several beta; PPO with a
critic of its own, our loop's and TRL's; PPO without a penalty; best-of-n; the study of the
estimators. Runs that are finished are kept, one that was cut off is resumed, so that the command
can be stopped and called again.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlhf import policies, rewards
from rlhf.experiments import frontier, trl_ppo
from rlhf.experiments.publish import publish_policy, publish_reward
from shared import cli
from shared.config import Count
from shared.errors import UserError
from shared.experiments.reproduce import complete, is_finished, make_sure, recall
from shared.experiments.tables import write_result
from shared.run.checkpoint import is_complete
from shared.run.folder import read_metrics

RUNS = Path("runs/reproduce-rlhf")
RESULTS = Path("rlhf/results")
RECORDS = RESULTS / "runs"
REWARD = "reward-seed0"  # the run that teaches the reward model
PPO_BETAS = (0.05, 0.1, 0.2)
DPO_BETAS = (0.1, 0.3, 1.0)
RLOO_BETAS = (0.05, 0.1, 0.2)
SEPARATE_BETA = 0.1  # of PPO with a critic of its own, ours and TRL's
OVER_ITERATIONS = 100  # rollouts without a penalty, where the default has 40
OVER_SEEDS = 1
SAMPLES = 32  # completions of the reference per prompt: the largest n of best-of-n
PROMPTS = 64
STUDY = "study"  # no run: it takes seconds and writes its own tables
PUBLISHED = "ppo-beta0.1-seed0"  # the policy that is committed
SHOWN = (
    ("prompt", "held-out prompt", ""),
    ("reference", "reference", ""),
    ("policy", "policy", ""),
)


@dataclass(frozen=True)
class Options:
    """Train everything and write rlhf/results and rlhf/pretrained anew."""

    only: str = ""
    """Train only the runs whose names begin so, against the reward model that is committed; results
    are not written."""
    missing: bool = False
    """Train only the runs that have no committed record."""
    collect: bool = False
    """Train nothing: write the results of the runs that are there or have a record; a row one of
    whose runs is missing is left out."""
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
    against = "default --reward pretrained"
    many = f"--reward pretrained --count {PROMPTS} --samples {SAMPLES}"
    over = f"{against} --beta 0 --iterations {OVER_ITERATIONS}"
    found = {
        "reward": Row("rlhf.reward", "default", 1),
        "best-of-n": Row("rlhf.experiments.best_of_n", many, 1),
    }
    swept = (
        ("PPO", "ppo", against, PPO_BETAS),
        ("DPO", "dpo", "default", DPO_BETAS),
        ("RLOO", "rloo", against, RLOO_BETAS),
    )
    for method, program, arguments, betas in swept:
        for beta in betas:
            found[f"{program}-beta{beta:g}"] = Row(
                f"rlhf.{program}", f"{arguments} --beta {beta:g}", seeds, method, beta
            )
    separate = f"{against} --beta {SEPARATE_BETA:g} --critic separate"
    return found | {
        "separate": Row("rlhf.ppo", separate, seeds, "PPO, separate critic", SEPARATE_BETA),
        "trl": Row(
            "rlhf.experiments.trl_ppo",
            f"{against} --beta {SEPARATE_BETA:g}",
            seeds,
            f"PPO of TRL {trl_ppo.VERSION}",
            SEPARATE_BETA,
        ),
        "over": Row("rlhf.ppo", over, min(seeds, OVER_SEEDS)),
    }


def runs_of(name: str, row: Row) -> list[str]:
    return [f"{name}-seed{seed}" for seed in range(row.seeds)]


def known(row: Row, seed: int, run: str) -> dict[str, Any] | None:
    """What a run came to, its options and the KLs in training, if it is finished or has a record.

    The record keeps what the tables and pictures need of every rollout.
    """

    def more(folder: Path) -> dict[str, Any]:
        lines = [r for r in read_metrics(folder) if "objective/kl" in r]
        kept = [
            {k: x for k, x in r.items() if k == "objective/kl" or k.startswith("rewards/")}
            for r in lines
        ]
        config = json.loads((folder / "config.json").read_text())["config"]
        return {"config": config, "records": kept}

    return recall(row.program, row.command(seed), RUNS / run, RECORDS, more)


def train(rows: Mapping[str, Row], only: str, missing: bool = False) -> None:
    """Finish every run whose name begins with ``only``: all of a seed, then the next.

    Args:
        missing: leave out those that have a record.

    Raises:
        UserError: no name begins so, or a run failed.
    """
    chosen = [
        (row, seed, run)
        for seed in range(max(row.seeds for row in rows.values()))
        for name, row in rows.items()
        if seed < row.seeds
        for run in [runs_of(name, row)[seed]]
        if run.startswith(only)
    ]
    wants_study = STUDY.startswith(only)
    if not chosen and not wants_study:
        raise UserError(f"--only {only}: no run's name begins so; {', '.join([*rows, STUDY])}")
    if missing:
        chosen = [one for one in chosen if not known(*one)]
    there = is_complete(rewards.PRETRAINED) or any(run == REWARD for *_, run in chosen)
    if not there and any("--reward" in row.arguments for row, *_ in chosen):
        chosen.insert(0, (rows["reward"], 0, REWARD))
    for row, seed, run in chosen:
        env = (
            {"PYTHONPATH": str(trl_ppo.FOLDER)} if row.program == "rlhf.experiments.trl_ppo" else {}
        )
        make_sure(row.program, row.command(seed), RUNS / run, env=os.environ | env)
        if run == REWARD:  # the runs that follow are rewarded by it as it is committed
            publish_reward(RUNS / run)
    if wants_study:
        command = [sys.executable, "-m", "rlhf.experiments.study", "--results", str(RESULTS)]
        if code := subprocess.run(command, check=False).returncode:
            raise UserError(f"the study of the estimators ended with exit code {code}")


def collect(rows: Mapping[str, Row]) -> None:
    """The tables and pictures that have all their runs, and the policy to commit.

    Raises:
        UserError: no row has all its runs.
    """
    found = {
        run: known(row, seed, run)
        for name, row in rows.items()
        for seed, run in enumerate(runs_of(name, row))
    }
    there = {run: came_to for run, came_to in found.items() if came_to}
    wanted = {name: runs_of(name, row) for name, row in rows.items()}
    runs = {
        name: [there[run] for run in wanted[name]]
        for name in complete(wanted, RUNS, there.__contains__)
    }
    swept = [
        frontier.Swept(
            row.method, row.beta, f"python -m {row.program} {row.command('SEED')}", runs[name]
        )
        for name, row in rows.items()
        if row.method and name in runs
    ]
    samples = runs["best-of-n"][0] if "best-of-n" in runs else None
    frontier.write(swept, runs.get("over", []), samples, RESULTS)
    if is_finished(RUNS / PUBLISHED):
        publish_policy(RUNS / PUBLISHED)
        told = json.loads((policies.PRETRAINED / "metrics.json").read_text())
        shown = [{who: in_a_cell(said) for who, said in one.items()} for one in told["samples"]]
        write_result(RESULTS / "samples.json", SHOWN, shown, run=PUBLISHED)


def in_a_cell(text: str) -> str:
    """A text as a cell of a Markdown table holds it: on one line, marks as themselves."""
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(text.split()))


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m rlhf.experiments.reproduce"))
    rows = rows_of(options.seeds)
    if options.collect and options.only:
        raise UserError("--only: names what is trained, --collect trains nothing; drop one")
    if not options.collect:
        train(rows, options.only, options.missing)
    if not options.only:
        collect(rows)
        print(f"results in {RESULTS}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "rlhf.experiments.reproduce")
