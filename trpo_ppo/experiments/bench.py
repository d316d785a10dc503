"""Speed of training against stable-baselines3.

``python -m trpo_ppo.experiments.bench [--json FILE]``

Environment steps per CPU-second of one thread, so other work on the machine hardly disturbs it.
Every figure is measured in a process of its own, the rows in turn, round after round; ratios are of
one round. Rows of one group have the same environment, sizes and hyperparameters.
"""

import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shared import cli
from shared.config import Count
from shared.errors import UserError
from shared.experiments.bench import check_json, measure_alone
from shared.experiments.tables import describe_columns, markdown, write_result
from shared.run.environment import describe
from trpo_ppo.experiments.bench_loops import ROWS, measure
from trpo_ppo.experiments.peers import require


@dataclass(frozen=True)
class Options:
    """Time our training, stable-baselines3's PPO and sb3-contrib's TRPO, and the bare simulator."""

    repetitions: Count = 3
    """Rounds; each measures every row once, in a new process."""
    steps: Count = 20_480
    """Environment steps per measurement, after a first rollout that is not timed."""
    json: str = ""
    """File that receives every figure, with the environment."""
    only: str = ""
    """Measure this row once, in this process, and print it as JSON: what every round is made of."""


def in_new_process(row: str, steps: int) -> float:
    return measure_alone("trpo_ppo.experiments.bench", row, {"steps": steps})[
        "steps_per_cpu_second"
    ]


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


def summary(rounds: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """One table row for each loop: median, range, and medians of ratios within a round."""
    table = []
    for row, about in ROWS.items():
        speeds = [one[row] for one in rounds]
        line: dict[str, Any] = {"row": row, "task": about.env, "name": about.name, "n": len(rounds)}
        line |= {"value": statistics.median(speeds), "least": min(speeds), "most": max(speeds)}
        if about.peer:
            line["over_peer"] = statistics.median(one[row] / one[about.peer] for one in rounds)
        if about.loop != "simulator":
            bare = f"{about.env} simulator"
            line["of_simulator"] = statistics.median(one[row] / one[bare] for one in rounds)
        table.append(line)
    return table


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m trpo_ppo.experiments.bench"))
    require()
    if options.only and options.only not in ROWS:
        raise UserError(f"--only {options.only}: no row's name; {', '.join(ROWS)}")
    check_json(options.json)
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps({"steps_per_cpu_second": measure(options.only, options.steps)}))
        return
    rounds: list[dict[str, float]] = []
    for count in range(1, options.repetitions + 1):
        rounds.append({row: in_new_process(row, options.steps) for row in ROWS})
        told = ", ".join(f"{row} {speed:,.0f}" for row, speed in rounds[-1].items())
        print(f"round {count}/{options.repetitions}: {told}", flush=True)
    table = summary(rounds)
    print("\n" + markdown({"columns": describe_columns(COLUMNS), "rows": table}))
    if options.json:
        write_result(
            Path(options.json),
            COLUMNS,
            table,
            rounds=rounds,
            load_average=os.getloadavg(),
            options=asdict(options),
            environment=describe(),
        )


if __name__ == "__main__":
    cli.run(main, "trpo_ppo.experiments.bench")
