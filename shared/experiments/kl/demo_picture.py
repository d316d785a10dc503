"""The picture of ``make demo-kl``: what is fitted to two modes, and how divergences grow."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from shared.figures import COLOURS, save

BLUE, ORANGE, GREEN = COLOURS[:3]
GREY = "#777777"
SHOWN = (2.0, 2.5, 3.0)  # separations whose fits are drawn

Rows = Sequence[dict[str, Any]]


def draw(
    path: Path, fits: Rows, shifts: Rows, log_target: Callable[[Tensor, float], Tensor]
) -> None:
    """Fits at three separations above; all separations, and two distributions moved apart, below.

    Args:
        fits: rows of ``fit_table``, among them the separations 2, 2.5 and 3.
        shifts: rows of ``shift_table``.
        log_target: log-density of the target at points [n] for a separation.
    """
    figure = Figure(figsize=(11.5, 6.4), layout="constrained")
    above, below = figure.subplots(2, 3)
    for axes, s in zip(above, SHOWN, strict=True):
        _densities(axes, [row for row in fits if row["separation"] == s], s, log_target)
    _means(below[0], fits)
    _nats(below[1], fits)
    _shifts(below[2], shifts)
    for axes in (*above, *below):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set(xlabel=x, ylabel=y)
    axes.legend(fontsize=7.5, loc="upper left", frameon=False)


def _is_reverse(row: dict[str, Any]) -> bool:
    return bool(row["direction"].startswith("D(fit"))


def _densities(
    axes: Axes, rows: Rows, s: float, log_target: Callable[[Tensor, float], Tensor]
) -> None:
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)
    axes.fill_between(x, log_target(x, s).exp(), color="#d9d9d9", label="target")
    for row in rows:
        reverse, local = _is_reverse(row), row["minimum"] == "local"
        u = (x - row["mu"]) / row["sigma"]
        density = torch.exp(-u.square() / 2) / (row["sigma"] * math.sqrt(2 * math.pi))
        name = row["direction"] + (", a local minimum" if local else "")
        style: dict[str, Any] = {
            "color": ORANGE if reverse else BLUE,
            "ls": ":" if local else "-",
            "lw": 1.8,
        }
        axes.plot(x, density, label=f"{name}: {row['nats']:.3f} nats", **style)
        if row["mu"] > 1e-3:
            axes.plot(-x, density, **(style | {"lw": 0.9, "alpha": 0.6}))
    axes.set_ylim(0, 0.56)
    _label(axes, f"modes at ±{s:g}", "x", "density" if s == SHOWN[0] else "")


def _branches(rows: Rows, wide: bool) -> tuple[list[float], list[dict[str, Any]]]:
    """Separations and rows of the reverse fits that lie between the modes, or on one."""
    branch = [row for row in rows if _is_reverse(row) and (row["mu"] < 1e-3) == wide]
    return [row["separation"] for row in branch], branch


def _means(axes: Axes, rows: Rows) -> None:
    axes.axhline(0, color=BLUE, lw=5, alpha=0.5, label="D(target ‖ fit)")
    for wide in (True, False):
        s, branch = _branches(rows, wide)
        for local in (False, True):
            mu = [r["mu"] if (r["minimum"] == "local") == local else math.nan for r in branch]
            style: dict[str, Any] = {"color": ORANGE, "lw": 1.8, "ls": ":" if local else "-"}
            label = "a local minimum of it" if local else "D(fit ‖ target)"
            axes.plot(s, mu, label=label if wide else None, **style)
            if not wide:
                axes.plot(s, [-m for m in mu], **style)
    _label(axes, "where the fit is", "s, modes at ±s", "mean of the fit")


def _nats(axes: Axes, rows: Rows) -> None:
    forward = [row for row in rows if not _is_reverse(row)]
    axes.plot(
        [r["separation"] for r in forward],
        [r["nats"] for r in forward],
        color=BLUE,
        lw=1.8,
        label="D(target ‖ fit)",
    )
    for wide, style in ((True, "--"), (False, "-")):
        s, branch = _branches(rows, wide)
        name = "between the modes" if wide else "on one mode"
        axes.plot(
            s,
            [r["nats"] for r in branch],
            color=ORANGE,
            lw=1.8,
            ls=style,
            label=f"D(fit ‖ target), fit {name}",
        )
    axes.axhline(math.log(2), color=GREY, lw=1, ls=":", label="ln 2")
    axes.set_ylim(0, 2)
    _label(axes, "how far it stays from the target", "s, modes at ±s", "nats at the minimum")


def _shifts(axes: Axes, rows: Rows) -> None:
    shift = [row["shift"] for row in rows]
    width = rows[0]["width"]
    axes.plot(
        shift,
        [row["wasserstein"] / width for row in rows],
        "o-",
        color=GREEN,
        ms=4,
        label="W1 / 4 places",
    )
    axes.plot(
        shift, [row["js"] / math.log(2) for row in rows], "o-", color=BLUE, ms=4, label="JSD / ln 2"
    )
    axes.plot(shift[:1], [0], "o", color=ORANGE, ms=7, mfc="none", label="D(p ‖ q): 0 here, then ∞")
    axes.axvspan(width, shift[-1], color="#eeeeee", zorder=0)
    axes.text(shift[-1], 0.08, "no overlap ", fontsize=8, ha="right", color=GREY)
    _label(
        axes,
        "two blocks of four places, moved apart",
        "shift of q against p, places",
        "share of the value at no overlap",
    )
