"""Speed of the training step against two peers: ``python -m vae.bench [--json FILE]``.

Images per CPU-second of one thread, so other work on the machine hardly disturbs it. Every figure
is measured in a process of its own, the rows in turn, round after round; ratios are of one round.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from shared import cli
from shared.config import Count
from shared.data.mnist import load_mnist
from shared.environment import describe
from shared.errors import UserError
from shared.folder import write_json
from vae.bench_loops import DIGITS, SAME, example, ours, pythae
from vae.config import PRESETS

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
    """One measurement on one thread; importing and loading are outside its clock."""
    command = [sys.executable, "-m", "vae.bench", "--only", row, "--images", str(options.images)]
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.run(
        [*command, "--data", options.data], env=os.environ | alone, capture_output=True, text=True
    )
    if child.returncode:
        said = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        raise UserError(f"{row}: {said[-1].removeprefix('vae.bench: error: ')}")
    measured: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return measured


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median, smallest and largest."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def summary(rounds: Sequence[dict[Row, dict[str, float]]]) -> list[dict[str, Any]]:
    """A row of the table for each of ROWS: every figure of the rounds with its spread.

    ``products_alone_over_this`` is what the ratio would be if all of our step but its matrix
    products were free.
    """
    table = []
    for row, name in ROWS.items():
        measured = {
            key: spread([one[row][key] for one in rounds], 0 if "images" in key else 3)
            for key in rounds[0][row]
        }
        speeds: dict[str, tuple[Row, str]] = {
            "ours_grey_over_this": ("ours-grey", "images_per_cpu_second"),
            "ours_binarised_over_this": ("ours-binarised", "images_per_cpu_second"),
            "products_alone_over_this": ("ours-grey", "products_images_per_cpu_second"),
        }
        ratios = {
            name: spread([one[own][key] / one[row]["images_per_cpu_second"] for one in rounds], 2)
            for name, (own, key) in speeds.items()
            if row in PEERS
        }
        table.append({"row": row, "name": name, "n": len(rounds)} | measured | ratios)
    return table


def told(table: Sequence[dict[str, Any]]) -> str:
    """The table as text."""

    columns = {
        "images/CPU-s": ("images_per_cpu_second", ",.0f"),
        "ours grey / this": ("ours_grey_over_this", ".2f"),
        "products alone / this": ("products_alone_over_this", ".2f"),
        "products' share": ("products_share", ".0%"),
    }

    def cell(row: dict[str, Any], key: str, form: str) -> str:
        if key not in row:
            return "-"
        low, middle, high = (format(row[key][name], form) for name in ("min", "median", "max"))
        return f"{middle} ({low}..{high})"

    lines = [f"{'median (min..max)':40}" + "".join(f"{title:>26}" for title in columns)]
    for row in table:
        cells = (f"{cell(row, *column):>26}" for column in columns.values())
        lines.append(f"{row['name']:40}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m vae.bench"))
    if importlib.util.find_spec("pythae") is None:
        raise UserError("pythae is not installed: `make bench-vae` installs requirements-bench.txt")
    if options.json and not Path(options.json).parent.is_dir():
        raise UserError(f"--json {options.json}: {Path(options.json).parent} is no folder")
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
    print(f"\n{told(table)}")
    if options.json:
        write_json(Path(options.json), {
            "rows": table, "load_average": os.getloadavg(), "rounds": rounds,
            "options": asdict(options), "environment": describe(),
        })  # fmt: skip


if __name__ == "__main__":
    cli.run(main, "vae.bench")
