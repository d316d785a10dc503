"""Pictures: rewards and KL over training, rewards against KL, and what a trainer reports."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from shared.figures import COLOURS, save


def training(records: Sequence[dict[str, Any]], proxies: Sequence[str], path: Path) -> None:
    """Gold and proxy reward against the square root of KL, and all of them over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    against, over, kl = figure.subplots(1, 3)
    steps = [r["step"] for r in records]
    root = [max(r["objective/kl"], 0.0) ** 0.5 for r in records]  # 0 up to rounding at first
    for colour, name in zip(cycle(COLOURS), ["gold", *proxies], strict=False):
        if f"rewards/{name}/mean" not in records[0]:
            continue
        rewards = [r[f"rewards/{name}/mean"] for r in records]
        what = "gold reward" if name == "gold" else f"proxy reward ({name})"
        against.plot(root, rewards, ".", color=colour, label=what, alpha=0.7)
        over.plot(steps, rewards, color=colour, label=what)
    against.set(xlabel="sqrt of KL(policy || reference), nats per sequence", ylabel="mean reward")
    over.set(xlabel="steps", ylabel="mean reward")
    kl.plot(steps, [r["objective/kl"] for r in records], color=COLOURS[0], label="exact, by state")
    kl.plot(
        steps, [r["objective/kl_k1"] for r in records], color=COLOURS[1], label="k1", linewidth=0.8
    )
    kl.set(xlabel="steps", ylabel="KL(policy || reference), nats per sequence")
    for axes in (against, over, kl):
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
    save(figure, path)


def curves(records: Sequence[dict[str, Any]], panels: Sequence[str], path: Path) -> None:
    """Metrics of a trainer over its steps, a panel each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7 * len(panels), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        found = [(r["step"], r[name]) for r in records if name in r]
        axes.plot(*zip(*found, strict=True), color=COLOURS[0])
        axes.set(xlabel="steps", ylabel=name)
        axes.grid(alpha=0.3)
    save(figure, path)


def frontier(
    rows: Sequence[dict[str, Any]],
    traces: Mapping[str, Sequence[tuple[float, float]]],
    best: Sequence[dict[str, Any]],
    path: Path,
) -> None:
    """Gold reward against KL: a line a method, its runs' training as faint dots, best-of-n.

    Args:
        rows: of frontier.json; error bars are the standard deviations over seeds.
        traces: KL and gold reward during training, by method.
        best: of best_of_n.json, may be empty.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    methods = dict.fromkeys(row["method"] for row in rows)
    for colour, method in zip(cycle(COLOURS), methods, strict=False):
        own = sorted((r for r in rows if r["method"] == method), key=lambda r: r["kl"])
        kl, gold = ([r[name] for r in own] for name in ("kl", "gold"))
        dx, dy = ([r[f"{name}_spread"] or 0.0 for r in own] for name in ("kl", "gold"))
        axes.errorbar(kl, gold, xerr=dx, yerr=dy, fmt="o-", color=colour, label=method)
        for row in own:
            axes.annotate(
                f"{row['beta']:g}",
                (row["kl"], row["gold"]),
                fontsize=8,
                xytext=(4, -10),
                textcoords="offset points",
                color=colour,
            )
        seen = torch.tensor(traces[method]).reshape(-1, 2).T  # none of TRL's PPO
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
    """Gold and proxy reward against d = sqrt(KL) with their fits, a panel a series.

    Args:
        series: of ``rlhf.experiments.frontier.Series``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(series), 3.8), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(series), squeeze=False)[0], series, strict=True):
        d = torch.linspace(0, one.d.max().item(), 200, dtype=torch.float64)
        for colour, name in zip(COLOURS[:2], ("gold", "proxy"), strict=True):
            found = one.fits[name]
            axes.plot(one.d, one.rewards[name], ".", color=colour, alpha=0.6)
            axes.plot(
                d,
                found.reward(d),
                color=colour,
                label=f"{name}: alpha {found.alpha:.2f}, beta {found.beta:.2f}, "
                f"R² {found.r_squared:.2f}",
            )
        form = "d (alpha - beta ln d)" if one.method == "rl" else "d (alpha - beta d)"
        axes.set_title(f"{one.what}: R(d) = {form}", fontsize=10, loc="left")
        axes.set_xlabel("d = sqrt of KL(policy || reference)")
        axes.set_ylabel("reward above the reference, its sd")
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
    save(figure, path)
