"""Speed of the training step against two peers: ``python -m vae.experiments.bench [--json FILE]``.

Images per CPU-second of one thread, so other work on the machine hardly disturbs it. Every figure
is measured in a process of its own, the rows in turn, round after round; ratios are of one round.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared import cli
from shared.config import Count
from shared.data.mnist import load_mnist
from shared.errors import UserError
from shared.experiments import bench
from vae.config import PRESETS
from vae.experiments.bench_loops import DIGITS, SAME, example, ours, pythae

PROGRAM = "vae.experiments.bench"
ROWS = {  # in the order of a round; the first three compute the same
    "ours-grey": "ours, the example's network, grey pixels",
    "example": "PyTorch example's loop",
    "pythae": "pythae 0.1.2, BaseTrainer",
    "ours-binarised": "ours, the example's network, binarised",
    "ours-default": "ours, preset default",
}
PEERS = ("example", "pythae")


@dataclass(frozen=True)
class Options(bench.Options):
    """Time our training loop, the PyTorch example's and pythae's: images per CPU-second."""

    repetitions: Count = 5
    """Rounds; each measures every row once, in a new process."""
    images: Count = DIGITS
    """Images per measurement, rounded up to whole batches. 60000: one pass."""
    data: str = "data"
    """Folder of the data sets."""


def measure(row: str, images: int, data: str) -> dict[str, float]:
    """One row, in this process."""
    if row in PEERS:
        return (example if row == "example" else pythae)(images, data)
    config = PRESETS["default"] if row == "ours-default" else SAME
    return ours(replace(config, pixels="grey") if row == "ours-grey" else config, images, data)


COLUMNS = (
    ("name", "training loop", ""),
    ("images_per_cpu_second", "images per CPU-second", ",.0f"),
    ("least", "least", ",.0f"),
    ("most", "most", ",.0f"),
    ("ours_over_this", "ours, grey / this", ".2f"),
    ("products_alone_over_this", "our products alone / this", ".2f"),
    ("products_share", "products' share of the time", ".0%"),
)


def summary(rounds: Sequence[bench.Round]) -> list[dict[str, Any]]:
    """A row of the table for each of ROWS: medians over the rounds, ratios within a round.

    ``products_alone_over_this`` is what the ratio would be if all of our step but its matrix
    products were free.
    """
    speed, table = "images_per_cpu_second", []
    for row, name in ROWS.items():
        line: dict[str, Any] = {"row": row, "name": name, "n": len(rounds)}
        line |= {key: round(bench.median(rounds, row, key), 3) for key in rounds[0][row]}
        line |= {key: round(value) for key, value in bench.spread(rounds, row, speed).items()}
        if row in PEERS:
            products = f"products_{speed}"
            line["ours_over_this"] = round(bench.ratio(rounds, "ours-grey", row, speed), 3)
            alone = bench.ratio(rounds, "ours-grey", row, products, speed)
            line["products_alone_over_this"] = round(alone, 3)
        table.append(line)
    return table


def main() -> None:
    options = cli.read_options(Options, PROGRAM)
    if importlib.util.find_spec("pythae") is None:
        raise UserError("pythae is not installed: `make bench-vae` installs requirements-bench.txt")
    load_mnist(Path(options.data))  # fetched or refused before anything is timed
    rounds = bench.measure_rounds(
        PROGRAM,
        options,
        [*ROWS],
        lambda row: measure(row, options.images, options.data),
        passed="images data",
        figure="{images_per_cpu_second:,.0f}",
    )
    if rounds:
        bench.report(options, COLUMNS, summary(rounds), options.json, rounds=rounds)


if __name__ == "__main__":
    cli.run(main, PROGRAM)
