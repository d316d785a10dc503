"""All runs behind the tables of rlhf/README.md: ``python -m rlhf.experiments.reproduce``.

A reward model, which becomes the committed one; PPO, DPO and RLOO over several beta; PPO with a
critic of its own, our loop's and TRL's; PPO without a penalty; best-of-n; the study of the
estimators. Runs that are finished are kept, one that was cut off is resumed, so that the command
can be stopped and called again.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rlhf import policies, rewards
from rlhf.experiments import frontier, trl_ppo
from rlhf.experiments.frontier import SweptRow
from rlhf.experiments.publish import publish_policy, publish_reward
from shared import cli
from shared.config import Count
from shared.errors import UserError
from shared.experiments import reproduce
from shared.experiments.reproduce import Record, Reproduction, Row, is_finished, read_config
from shared.experiments.tables import write_result
from shared.run.checkpoint import is_complete
from shared.run.folder import read_metrics

RUNS = Path("runs/reproduce-rlhf")
RESULTS = Path("rlhf/results")
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
class Options(reproduce.Options):
    """Train all runs and write rlhf/results and rlhf/pretrained; with --only, against the reward
    model that is committed."""

    seeds: Count = 2
    """Runs of each row of the frontier."""


def rows_of(seeds: int) -> dict[str, Row]:
    """Every row, by the name that its runs begin with; the reward model comes first."""
    against, every_seed = "default --reward pretrained", range(seeds)
    sampled = f"--reward pretrained --count {PROMPTS} --samples {SAMPLES} --seed SEED"
    over = f"{against} --beta 0 --iterations {OVER_ITERATIONS} --seed SEED"
    rows = {
        "reward": Row("rlhf.reward", "default --seed SEED", [0]),
        "best-of-n": Row("rlhf.experiments.best_of_n", sampled, [0]),
    }
    swept = (
        ("PPO", "ppo", against, PPO_BETAS),
        ("DPO", "dpo", "default", DPO_BETAS),
        ("RLOO", "rloo", against, RLOO_BETAS),
    )

    def row(
        method: str, program: str, start: str, beta: float, end: str = "", **variables: str
    ) -> SweptRow:
        arguments = f"{start} --beta {beta:g}{end} --seed SEED"
        return SweptRow(program, arguments, every_seed, variables, method, beta)

    for method, name, arguments, betas in swept:
        for beta in betas:
            rows[f"{name}-beta{beta:g}"] = row(method, f"rlhf.{name}", arguments, beta)
    beta, peer, path = SEPARATE_BETA, f"PPO of TRL {trl_ppo.VERSION}", str(trl_ppo.FOLDER)
    return rows | {
        "separate": row("PPO, separate critic", "rlhf.ppo", against, beta, " --critic separate"),
        "trl": row(peer, "rlhf.experiments.trl_ppo", against, beta, PYTHONPATH=path),
        "over": Row("rlhf.ppo", over, range(min(seeds, OVER_SEEDS))),
    }


def _details(folder: Path) -> Record:
    """The options, and of every rollout what the tables and pictures need."""
    records = [
        {k: x for k, x in line.items() if k == "objective/kl" or k.startswith("rewards/")}
        for line in read_metrics(folder)
        if "objective/kl" in line
    ]
    return {"config": read_config(folder), "records": records}


def reproduction(rows: dict[str, Row]) -> Reproduction:
    return Reproduction(rows, RUNS, RESULTS / "runs", _details)


def train(runs: Reproduction, options: Options) -> None:
    """Finish the chosen runs, after the reward model if they need it and none is committed.

    Raises:
        UserError: ``--only`` is in no name, or a run failed.
    """
    names = runs.chosen(options, STUDY)
    rewarded = any("--reward" in runs.runs[name].arguments for name in names)
    if rewarded and REWARD not in names and not is_complete(rewards.PRETRAINED):
        names.insert(0, REWARD)
    runs.train(names, after=publish_first)
    if options.only in STUDY:
        command = [sys.executable, "-m", "rlhf.experiments.study", "--results", str(RESULTS)]
        if code := subprocess.run(command, check=False).returncode:
            raise UserError(f"the study of the estimators ended with exit code {code}")


def publish_first(run: str) -> None:
    """Commit the reward model once it is trained: the runs that follow are rewarded by it."""
    if run == REWARD:
        publish_reward(RUNS / run)


def collect(runs: Reproduction) -> None:
    """The tables and pictures that have all their runs, and the policy to commit.

    Raises:
        UserError: no row has all its runs.
    """
    complete = runs.complete_rows({row: runs.names(row) for row in runs.rows})
    swept = [
        (row, complete[name])
        for name, row in runs.rows.items()
        if isinstance(row, SweptRow) and name in complete
    ]
    samples = complete["best-of-n"][0] if "best-of-n" in complete else None
    frontier.write(swept, complete.get("over", []), samples, RESULTS)
    if is_finished(RUNS / PUBLISHED):
        publish_policy(RUNS / PUBLISHED)
        metrics = json.loads((policies.PRETRAINED / "metrics.json").read_text())
        shown = [{who: in_a_cell(text) for who, text in s.items()} for s in metrics["samples"]]
        write_result(RESULTS / "samples.json", SHOWN, shown, run=PUBLISHED)


def in_a_cell(text: str) -> str:
    """A text as a cell of a Markdown table holds it: on one line, marks as themselves."""
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(text.split()))


def main() -> None:
    options = cli.read_options(Options, "rlhf.experiments.reproduce")
    runs = reproduction(rows_of(options.seeds))
    if options.collect:
        runs.chosen(options)
    else:
        train(runs, options)
    if not options.only:
        collect(runs)
        print(f"results in {RESULTS}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "rlhf.experiments.reproduce")
