"""Pictures: learning curve and KL trace of a run; constraints by score and by KL of an update."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared.figures import COLOURS, save
from trpo_ppo.config import Config

NAMES = {
    "kl": "KL(old ‖ new), exact",
    "kl_reverse": "KL(new ‖ old), exact",
    "kl_k1": "k1",
    "kl_k3": "k3",
}


def line(axes: Axes, records: Sequence[dict[str, Any]], name: str, **style: Any) -> None:
    """One metric over environment steps, where it was recorded."""
    points = [(r["environment_steps"], r[name]) for r in records if name in r]
    if points:
        axes.plot(*zip(*points, strict=True), **{"lw": 1} | style)


def curves(records: Sequence[dict[str, Any]], config: Config, path: Path) -> None:
    """Score, KL trace, and the algorithm's own quantities over environment steps."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    (score, kl), (own, critic) = figure.subplots(2, 2)
    line(score, records, "score", color=COLOURS[0])
    score.set_ylabel("score, mean of 100 episodes")
    score.set_title(f"{config.env}, {config.algo}", fontsize=9, loc="left")

    for (name, label), colour in zip(NAMES.items(), COLOURS, strict=False):
        # The exact one wide and below the others, which often lie upon it.
        wide = {"lw": 3, "alpha": 0.5} if name == "kl" else {"alpha": 0.8}
        line(kl, records, name, color=colour, label=label, **wide)
    line(kl, records, "kl_max", color="#999999", label="KL(old ‖ new), largest of a state")
    if config.algo in ("trpo", "ppo-kl-adaptive"):
        kl.axhline(config.delta, ls="--", lw=1, color="black", label="delta")
    kl.set_yscale("symlog", linthresh=1e-4)  # k1 goes below zero
    kl.axhline(0, lw=0.5, color="black")
    kl.set_ylabel("nats per state, after the update")
    kl.legend(fontsize=7, ncols=2)

    if config.algo == "trpo":
        line(own, records, "expected_improvement", color=COLOURS[0], label="expected improvement")
        line(own, records, "actual_improvement", color=COLOURS[1], label="actual improvement")
        right = own.twinx()
        line(right, records, "backtracks", color=COLOURS[2], alpha=0.5)
        right.set_ylabel("backtracks", color=COLOURS[2])
    elif config.algo == "ppo-kl-adaptive":
        line(own, records, "beta", color=COLOURS[0], label="beta")
        own.set_yscale("log")
    else:
        line(
            own,
            records,
            "clip_fraction",
            color=COLOURS[0],
            label=f"share of ratios off 1 by more than {config.clip:g}",
        )
    own.legend(fontsize=8)

    line(critic, records, "explained_variance", color=COLOURS[0])
    critic.set_ylim(-0.5, 1.05)
    critic.set_ylabel("explained variance of V", color=COLOURS[0])
    entropy = critic.twinx()
    line(entropy, records, "entropy", color=COLOURS[3])
    entropy.set_ylabel("entropy, nats", color=COLOURS[3])
    for axes in (own, critic):
        axes.set_xlabel("environment steps")
    for axes in (score, kl, own, critic):
        axes.spines["top"].set_visible(False)
    save(figure, path)


def constraints(
    rows: Sequence[dict[str, Any]], runs: Mapping[str, Sequence[tuple[float, float]]], path: Path
) -> None:
    """Normalised score against the KL of an update: a constraint's mean large, its runs small.

    Args:
        rows: of Table 1.
        runs: by what a row is called, (mean KL of its updates, normalised score) of every run.
    """
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        colour, marker = f"C{number}", "osD^vPX"[number % 7]
        kls, scores = zip(*runs[row["what"]], strict=True)
        axes.scatter(kls, scores, s=10, color=colour, alpha=0.35, lw=0)
        bars = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        axes.errorbar(
            row["kl"],
            row["value"],
            yerr=bars,
            color=colour,
            marker=marker,
            ms=8,
            capsize=3,
            label=row["what"],
        )
    axes.set(xscale="log", ylim=(-0.15, 1.05))
    axes.axhline(0, lw=0.5, color="black")
    axes.set(
        xlabel="KL(old ‖ new) of an update, nats per state, mean of a run's updates",
        ylabel="normalised score: 0 random, 1 best run of the task",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)
