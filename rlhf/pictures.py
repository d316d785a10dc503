"""Pictures of a run: rewards and KL over training, and the metrics of a trainer."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from shared.figures import COLOURS, save


def training(records: Sequence[dict[str, Any]], proxies: Sequence[str], path: Path) -> None:
    """Gold and proxy reward against the square root of KL, and all of them over the steps."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    against, over, kl = figure.subplots(1, 3)
    steps = [r["step"] for r in records]
    root = [max(r["objective/kl"], 0.0) ** 0.5 for r in records]  # 0 up to rounding at first
    for colour, name in zip(cycle(COLOURS), ["gold", *proxies], strict=False):
        if f"rewards/{name}/mean" not in records[0]:
            continue
        rewards = [r[f"rewards/{name}/mean"] for r in records]
        label = "gold reward" if name == "gold" else f"proxy reward ({name})"
        against.plot(root, rewards, ".", color=colour, label=label, alpha=0.7)
        over.plot(steps, rewards, color=colour, label=label)
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
    """Metrics of a trainer over its steps, one in each panel."""
    figure = Figure(figsize=(3.7 * len(panels), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        points = [(r["step"], r[name]) for r in records if name in r]
        axes.plot(*zip(*points, strict=True), color=COLOURS[0])
        axes.set(xlabel="steps", ylabel=name)
        axes.grid(alpha=0.3)
    save(figure, path)
