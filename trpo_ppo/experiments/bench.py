"""Speed of training against stable-baselines3.

``python -m trpo_ppo.experiments.bench [--json FILE]``

Environment steps per CPU-second of one thread, so other work on the machine hardly disturbs it.
Every figure is measured in a process of its own, the rows in turn, round after round; ratios are of
one round. Rows of one group have the same environment, sizes and hyperparameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared import cli
from shared.config import Count
from shared.experiments import bench
from trpo_ppo.experiments.bench_loops import ROWS, measure
from trpo_ppo.experiments.peers import require

PROGRAM = "trpo_ppo.experiments.bench"
SPEED = "steps_per_cpu_second"


@dataclass(frozen=True)
class Options(bench.Options):
    """Time our training, stable-baselines3's PPO and sb3-contrib's TRPO, and the bare simulator."""

    steps: Count = 20_480
    """Environment steps per measurement, after a first rollout that is not timed."""


COLUMNS = [
    ("task", "task", ""),
    ("name", "training loop", ""),
    ("value", "steps per CPU-second", ",.0f"),
    ("least", "least", ",.0f"),
    ("most", "most", ",.0f"),
    ("over_peer", "ours / peer", ".2f"),
    ("of_simulator", "of the bare simulator", ".0%"),
    ("n", "rounds", "d"),
]


def summary(rounds: Sequence[bench.Round]) -> list[dict[str, Any]]:
    """One table row for each loop: median, range, and medians of ratios within a round."""
    table = []
    for row, loop in ROWS.items():
        line: dict[str, Any] = {"row": row, "task": loop.env, "name": loop.name, "n": len(rounds)}
        line |= {"value": bench.median(rounds, row, SPEED)} | bench.spread(rounds, row, SPEED)
        if loop.peer:
            line["over_peer"] = bench.ratio(rounds, row, loop.peer, SPEED)
        if loop.kind != "simulator":
            line["of_simulator"] = bench.ratio(rounds, row, f"{loop.env} simulator", SPEED)
        table.append(line)
    return table


def main() -> None:
    options = cli.read_options(Options, PROGRAM)
    require()
    rounds = bench.measure_rounds(
        PROGRAM,
        options,
        [*ROWS],
        lambda row: {SPEED: measure(row, options.steps)},
        passed="steps",
        figure="{steps_per_cpu_second:,.0f}",
    )
    if rounds:
        flat = [{row: figures[SPEED] for row, figures in one.items()} for one in rounds]
        bench.report(options, COLUMNS, summary(rounds), options.json, rounds=flat)


if __name__ == "__main__":
    cli.run(main, PROGRAM)
