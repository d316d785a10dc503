"""The picture of the estimator study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.figures import COLOURS, save

Rows = Sequence[dict[str, Any]]
ROUNDING = 1e-12  # errors below it are those of float64


def draw(schemes: Rows, values: Rows, best: float, path: Path) -> None:
    """Gradient errors, the bandit's objective over the steps, and the spread of the values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    gradient, objective, spread = figure.subplots(1, 3)
    _gradient(gradient, [row for row in schemes if "error" in row])
    _objective(objective, [row for row in schemes if "curve" in row], best)
    _spread(spread, values)
    for axes in (gradient, objective, spread):
        axes.grid(alpha=0.3)
    save(figure, path)


def _gradient(axes: Any, schemes: Rows) -> None:
    right, wrong = COLOURS[2], COLOURS[1]
    axes.barh(
        [f"{row['estimate']}: {row['place']}" for row in schemes],
        [row["error"] for row in schemes],
        color=[right if row["error"] < ROUNDING else wrong for row in schemes],
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1e-17, 10)
    axes.set_title("error of the expected gradient, two tokens", fontsize=10, loc="left")
    axes.set_xlabel("relative error, median of the instances")


def _objective(axes: Any, schemes: Rows, best: float) -> None:
    groups: dict[float, list[dict[str, Any]]] = {}  # what ends alike is one line
    for row in schemes:
        groups.setdefault(round(row["objective"], 6), []).append(row)
    for colour, group in zip((*COLOURS[:4], "#777777"), groups.values(), strict=True):
        steps, reached = zip(*group[0]["curve"], strict=True)
        names = [f"{row['estimate']}: {row['place']}" for row in group]
        title = ", ".join(names) if len(names) < 3 else f"{names[0]}, and {len(names) - 1} others"
        axes.plot(steps, reached, "-", color=colour, label=title)
    axes.axhline(best, color="black", lw=1, ls=":", label="best possible")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=0)
    axes.set_title("bandit: what ascent with it reaches", fontsize=10, loc="left")
    axes.set_xlabel("steps")
    axes.set_ylabel("expected reward - beta KL")
    axes.legend(frameon=False, fontsize=8)


def _spread(axes: Any, values: Rows) -> None:
    kinds = dict.fromkeys(row["estimate"] for row in values)
    for colour, kind in zip(COLOURS[:4], kinds, strict=True):
        kind_rows = [row for row in values if row["estimate"] == kind]
        nats = [row["nats"] for row in kind_rows]
        axes.plot(nats, [row["deviation"] for row in kind_rows], "o-", color=colour, label=kind)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("spread of one sequence's estimate, four tokens", fontsize=10, loc="left")
    axes.set_xlabel("KL(policy || reference), nats per sequence")
    axes.set_ylabel("standard deviation / KL")
    axes.legend(frameon=False, fontsize=8)
