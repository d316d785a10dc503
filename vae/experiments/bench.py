"""Speed of the training step against two peers: ``python -m vae.experiments.bench [--json FILE]``.

Images per CPU-second of one thread, so other work on the machine hardly disturbs it. Every figure
is measured in a process of its own, the rows in turn, round after round; ratios are of one round.
"""

import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from shared import cli
from shared.config import Count
from shared.data.mnist import load_mnist
from shared.errors import UserError
from shared.experiments.bench import check_json, measure_alone
from shared.experiments.tables import describe_columns, markdown, write_result
from shared.run.environment import describe
from vae.config import PRESETS
from vae.experiments.bench_loops import DIGITS, SAME, example, ours, pythae

Row = Literal["ours-grey", "example", "pythae", "ours-binarised", "ours-default"]
ROWS: dict[Row, str] = {  # in the order of a round; the first three compute the same
    "ours-grey": "ours, the example's network, grey pixels",
    "example": "PyTorch example's loop",
    "pythae": "pythae 0.1.2, BaseTrainer",
    "ours-binarised": "ours, the example's network, binarised",
    "ours-default": "ours, preset default",
}
PEERS: tuple[Row, ...] = ("example", "pythae")


@dataclass(frozen=True)
class Options:
    """Time our training loop, the PyTorch example's and pythae's: images per CPU-second."""

    repetitions: Count = 5
    """Rounds; each measures every row once, in a new process."""
    images: Count = DIGITS
    """Images per measurement, rounded up to whole batches. 60000: one pass."""
    data: str = "data"
    """Folder of the data sets."""
    json: str = ""
    """File that receives every figure, with the environment."""
    only: Literal["", Row] = ""
    """Measure this row once, in this process, and print it as JSON: what every round is made of."""


def measure(row: Row, images: int, data: str) -> dict[str, float]:
    """One row, in this process."""
    match row:
        case "ours-grey":
            return ours(replace(SAME, pixels="grey"), images, data)
        case "ours-binarised":
            return ours(SAME, images, data)
        case "ours-default":
            return ours(PRESETS["default"], images, data)
        case "example":
            return example(images, data)
        case "pythae":
            return pythae(images, data)


def in_new_process(row: Row, options: Options) -> dict[str, float]:
    given = {"images": options.images, "data": options.data}
    return measure_alone("vae.experiments.bench", row, given)


COLUMNS = (
    ("name", "training loop", ""),
    ("images_per_cpu_second", "images per CPU-second", ",.0f"),
    ("least", "least", ",.0f"),
    ("most", "most", ",.0f"),
    ("ours_over_this", "ours, grey / this", ".2f"),
    ("products_alone_over_this", "our products alone / this", ".2f"),
    ("products_share", "products' share of the time", ".0%"),
)


def summary(rounds: Sequence[dict[Row, dict[str, float]]]) -> list[dict[str, Any]]:
    """A row of the table for each of ROWS: medians over the rounds, ratios within a round.

    ``products_alone_over_this`` is what the ratio would be if all of our step but its matrix
    products were free.
    """

    def ratio(row: Row, key: str) -> float:
        speed = "images_per_cpu_second"
        return round(statistics.median(r["ours-grey"][key] / r[row][speed] for r in rounds), 3)

    table = []
    for row, name in ROWS.items():
        speeds = [one[row]["images_per_cpu_second"] for one in rounds]
        line: dict[str, Any] = {"row": row, "name": name, "n": len(rounds)}
        line |= {
            key: round(statistics.median(one[row][key] for one in rounds), 3)
            for key in rounds[0][row]
        }
        line |= {"least": round(min(speeds)), "most": round(max(speeds))}
        if row in PEERS:
            line["ours_over_this"] = ratio(row, "images_per_cpu_second")
            line["products_alone_over_this"] = ratio(row, "products_images_per_cpu_second")
        table.append(line)
    return table


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m vae.experiments.bench"))
    if importlib.util.find_spec("pythae") is None:
        raise UserError("pythae is not installed: `make bench-vae` installs requirements-bench.txt")
    check_json(options.json)
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(measure(options.only, options.images, options.data)))
        return
    load_mnist(Path(options.data))  # fetched or refused before anything is timed
    rounds: list[dict[Row, dict[str, float]]] = []
    for count in range(1, options.repetitions + 1):
        rounds.append({row: in_new_process(row, options) for row in ROWS})
        speeds = (f"{row} {rounds[-1][row]['images_per_cpu_second']:,.0f}" for row in ROWS)
        print(f"round {count}/{options.repetitions}: {', '.join(speeds)}", flush=True)
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
    cli.run(main, "vae.experiments.bench")
