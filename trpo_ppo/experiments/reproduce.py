"""The PPO paper's Table 1 on MuJoCo v5, with TRPO beside it.

``python -m trpo_ppo.experiments.reproduce``

Seven tasks, the paper's constraints and TRPO's, some seeds. Runs that are finished are kept, one
that was cut off is resumed, so that the command can be stopped and called again. A run of a million
steps takes five to eight minutes of one core; --jobs of them are trained at a time.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared import cli
from shared.config import Count
from shared.experiments import reproduce
from shared.experiments.reproduce import Record, Reproduction, Row
from shared.experiments.tables import write_result
from shared.run.folder import read_metrics
from trpo_ppo import pictures
from trpo_ppo.envs import Environments, columns
from trpo_ppo.network import Array

RUNS = Path("runs/reproduce-ppo")
RESULTS = Path("trpo_ppo/results")
TASKS = """HalfCheetah-v5 Hopper-v5 InvertedDoublePendulum-v5 InvertedPendulum-v5 Reacher-v5
    Swimmer-v5 Walker2d-v5""".split()
# name: what it is, arguments, and the paper's normalised score (Schulman et al. 2017, Table 1)
VARIANTS: dict[str, tuple[str, str, float | None]] = {
    "none": ("no clipping or penalty", "paper --algo ppo-kl --beta 0", -0.39),
    "clip": ("clipping, eps = 0.2", "paper --algo ppo-clip --clip 0.2", 0.82),
    "adaptive": ("adaptive KL, target 0.01", "paper --algo ppo-kl-adaptive --delta 0.01", 0.74),
    "fixed1": ("fixed KL, beta = 1", "paper --algo ppo-kl --beta 1", 0.71),
    "fixed3": ("fixed KL, beta = 3", "paper --algo ppo-kl --beta 3", 0.72),
    "trpo": ("TRPO, delta = 0.01", "paper --algo trpo --delta 0.01", None),
    "trpo-zoo": ("TRPO, rl-baselines3-zoo's delta", "default --algo trpo", None),
}
RANDOM_EPISODES = 100


@dataclass(frozen=True)
class Options(reproduce.Options):
    """Train every constraint on every task and write trpo_ppo/results."""

    steps: Count = 1_000_000
    """Environment steps of a run (the paper's: one million)."""
    seeds: Count = 3
    """Runs of each task and constraint (the paper's: 3)."""
    jobs: Count = 2
    """Runs at a time, each on one thread."""


def reproduction(options: Options) -> Reproduction:
    """A row of runs for every task and constraint."""
    rows = {
        f"{task}-{variant}": Row(
            "trpo_ppo.train",
            f"{arguments} --env {task} --seed SEED --steps {options.steps}",
            range(options.seeds),
        )
        for task in TASKS
        for variant, (_, arguments, _) in VARIANTS.items()
    }
    steps = str(options.steps)
    return Reproduction(rows, RUNS / steps, RESULTS / "runs" / steps, reduced)


def reduced(folder: Path) -> dict[str, float]:
    """One run: mean score of the last 100 episodes, KL of its updates, what it cost."""
    records = read_metrics(folder)
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "score": records[-1]["score"],
        "deterministic": summary["evaluation"]["deterministic"],
        "kl": float(np.mean([r["kl"] for r in records])),
        "kl_largest_update": max(r["kl"] for r in records),
        "clip_fraction": float(np.mean([r["clip_fraction"] for r in records])),
        "failed_steps": sum(r.get("failed_steps", 0.0) for r in records),
        "seconds": summary["training_seconds"],
    }


def random_score(task: str) -> float:
    """Mean score of uniformly drawn actions, the zero of the normalised scale."""
    envs = Environments(task, 0, [0], 1.0)
    space, out = envs.space, columns(1, 1)
    scores: list[float] = []
    space.seed(0)
    while len(scores) < RANDOM_EPISODES:
        scores += [episode.total for episode in envs.step(np.stack([space.sample()]), out, 0)]
    envs.close()
    return float(np.mean(scores))


def normalise(scores: Mapping[str, Array], random: Array) -> dict[str, Array]:
    """0 for the random policy and 1 for the best run of a task: [tasks, seeds] each, as the paper.

    ``random`` is [tasks].
    """
    best = np.max([score.max(1) for score in scores.values()], axis=0)
    return {
        name: (score - random[:, None]) / (best - random)[:, None] for name, score in scores.items()
    }


def interval(scores: Array, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over tasks; seeds are resampled within each task.

    Agarwal et al. 2021 (arXiv 2108.13264), stratified bootstrap.
    """
    rng = np.random.default_rng(0)
    tasks, seeds = scores.shape
    picked = rng.integers(0, seeds, (draws, tasks, seeds))
    means = scores[np.arange(tasks)[:, None], picked].mean((1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def collect(options: Options) -> None:
    """Both tables, of the constraints that have all their runs: as the paper's, and every task's.

    Raises:
        UserError: none has all its runs.
    """
    all_runs = reproduction(options)
    complete = all_runs.complete_rows(
        {v: [run for task in TASKS for run in all_runs.names(f"{task}-{v}")] for v in VARIANTS}
    )
    runs: dict[str, list[list[Record]]] = {  # [tasks][seeds] of each constraint
        variant: [records[i : i + options.seeds] for i in range(0, len(records), options.seeds)]
        for variant, records in complete.items()
    }
    scores = {
        name: np.array([[r["score"] for r in task] for task in of]) for name, of in runs.items()
    }
    random = np.array([random_score(task) for task in TASKS])
    normalised = normalise(scores, random)
    about = {
        "steps": options.steps,
        "seeds": options.seeds,
        "environment": next(iter(complete.values()))[0]["environment"],
        "random": dict(zip(TASKS, random.tolist(), strict=True)),
    }
    rows, tasks, points = [], [], {}
    for name in runs:
        what, arguments, paper = VARIANTS[name]
        flat = [run for task in runs[name] for run in task]
        low, high = interval(normalised[name])
        points[what] = [
            (run["kl"], float(x)) for run, x in zip(flat, normalised[name].flat, strict=True)
        ]
        rows.append(
            {
                "what": what,
                "value": float(normalised[name].mean()),
                "low": low,
                "high": high,
                "paper": paper,
                "n": len(flat),
                "kl": float(np.mean([r["kl"] for r in flat])),
                "kl_largest": max(r["kl_largest_update"] for r in flat),
                "seconds": float(np.mean([r["seconds"] for r in flat])),
                "command": f"python -m trpo_ppo.train {arguments} --env ENV --seed SEED "
                f"--steps {options.steps}",
            }
        )
        spread = scores[name].std(1, ddof=1) if options.seeds > 1 else np.zeros(len(TASKS))
        tasks.append(
            {"what": what, "runs": runs[name]}
            | {
                task: f"{mean:.0f} ± {sd:.0f}" if abs(mean) >= 100 else f"{mean:.1f} ± {sd:.1f}"
                for task, mean, sd in zip(TASKS, scores[name].mean(1), spread, strict=True)
            }
        )
    pictures.constraints(rows, points, RESULTS / "table1.png")
    titles = [
        ("what", "constraint", ""),
        ("value", "normalised score", ".2f"),
        ("low", "95 % from", ".2f"),
        ("high", "to", ".2f"),
        ("paper", "paper, v1 tasks", ".2f"),
        ("n", "runs", "d"),
        ("kl", "mean KL(old ‖ new)", ".4f"),
        ("kl_largest", "largest of an update", ".3f"),
        ("seconds", "seconds a run", ".0f"),
    ]
    write_result(RESULTS / "table1.json", titles, rows, **about)
    titles = [("what", "constraint", ""), *((task, task, "") for task in TASKS)]
    write_result(RESULTS / "tasks.json", titles, tasks, **about)


def main() -> None:
    options = cli.read_options(Options, "trpo_ppo.experiments.reproduce")
    runs = reproduction(options)
    names = runs.chosen(options)
    if not options.collect:
        runs.train_in_parallel(names, options.jobs)
    if not options.only:
        collect(options)
        print(f"results in {RESULTS}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "trpo_ppo.experiments.reproduce")
