"""Pictures of the frontier of reward against KL, of over-optimisation, and of the estimators."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from shared.figures import COLOURS, save

Rows = Sequence[dict[str, Any]]
ROUNDING = 1e-12  # errors of a gradient below it are those of float64


def frontier(
    rows: Rows, traces: Mapping[str, Sequence[tuple[float, float]]], best: Rows, path: Path
) -> None:
    """Gold reward against KL: a line for each method, its training as faint dots, best of n.

    Args:
        rows: of frontier.json; error bars are the standard deviations over seeds.
        traces: KL and gold reward during training, by method.
        best: of best_of_n.json; it may be empty.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    methods = dict.fromkeys(row["method"] for row in rows)
    for colour, method in zip(cycle(COLOURS), methods, strict=False):
        method_rows = sorted((r for r in rows if r["method"] == method), key=lambda r: r["kl"])
        kl, gold = ([r[name] for r in method_rows] for name in ("kl", "gold"))
        dx, dy = ([r[f"{name}_spread"] or 0.0 for r in method_rows] for name in ("kl", "gold"))
        axes.errorbar(kl, gold, xerr=dx, yerr=dy, fmt="o-", color=colour, label=method)
        for row in method_rows:
            axes.annotate(
                f"{row['beta']:g}",
                (row["kl"], row["gold"]),
                fontsize=8,
                xytext=(4, -10),
                textcoords="offset points",
                color=colour,
            )
        seen = torch.tensor(traces[method]).reshape(-1, 2).T  # TRL's PPO has none
        axes.plot(*seen, ".", color=colour, markersize=3, alpha=0.25, zorder=0)
    if best:
        kl = [row["kl"] for row in best]
        for key, line, what in (("gold", "--", "proxy"), ("gold_by_gold", ":", "gold reward")):
            axes.plot(
                kl,
                [row[key] for row in best],
                line,
                color="0.35",
                label=f"best of 1 to {best[-1]['best_of']} by {what}",
            )
    axes.plot(0, rows[0]["reference_gold"], "k*", markersize=10, label="reference")
    axes.set(xlabel="KL(policy || reference), nats per sequence", ylabel="mean gold reward")
    axes.legend(frameon=False, fontsize=8, title="numbers: beta", title_fontsize=8)
    axes.grid(alpha=0.3)
    save(figure, path)


def overoptimisation(series: Sequence[Any], path: Path) -> None:
    """Gold and proxy reward against d = sqrt(KL) with their fits, a panel for each series.

    Args:
        series: of ``rlhf.experiments.frontier.Series``.
    """
    figure = Figure(figsize=(5 * len(series), 3.8), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(series), squeeze=False)[0], series, strict=True):
        d = torch.linspace(0, panel.d.max().item(), 200, dtype=torch.float64)
        for colour, name in zip(COLOURS[:2], ("gold", "proxy"), strict=True):
            fitted = panel.fits[name]
            axes.plot(panel.d, panel.rewards[name], ".", color=colour, alpha=0.6)
            axes.plot(
                d,
                fitted.reward(d),
                color=colour,
                label=f"{name}: alpha {fitted.alpha:.2f}, beta {fitted.beta:.2f}, "
                f"R² {fitted.r_squared:.2f}",
            )
        form = "d (alpha - beta ln d)" if panel.method == "rl" else "d (alpha - beta d)"
        axes.set_title(f"{panel.what}: R(d) = {form}", fontsize=10, loc="left")
        axes.set(
            xlabel="d = sqrt of KL(policy || reference)",
            ylabel="reward above the reference, its sd",
        )
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
    save(figure, path)


def study(schemes: Rows, values: Rows, best: float, path: Path) -> None:
    """Gradient errors, the bandit's objective over the steps, and the spread of the values."""
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
    axes.set(xscale="log", xlim=(1e-17, 10))
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
    axes.set(xlabel="steps", ylabel="expected reward - beta KL")
    axes.legend(frameon=False, fontsize=8)


def _spread(axes: Any, values: Rows) -> None:
    kinds = dict.fromkeys(row["estimate"] for row in values)
    for colour, kind in zip(COLOURS[:4], kinds, strict=True):
        kind_rows = [row for row in values if row["estimate"] == kind]
        nats = [row["nats"] for row in kind_rows]
        axes.plot(nats, [row["deviation"] for row in kind_rows], "o-", color=colour, label=kind)
    axes.set(xscale="log", yscale="log")
    axes.set_title("spread of one sequence's estimate, four tokens", fontsize=10, loc="left")
    axes.set(xlabel="KL(policy || reference), nats per sequence", ylabel="standard deviation / KL")
    axes.legend(frameon=False, fontsize=8)
