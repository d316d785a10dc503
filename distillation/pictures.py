"""Pictures of a teacher's soft targets and of trainings; each function writes one PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from distillation.metrics import class_resemblance
from shared.figures import COLOURS, save


def dark_knowledge(
    images: Tensor, labels: Tensor, logits: Tensor, temperature: float, path: Path
) -> None:
    """The teacher's soft targets: the mean of each class, and of single digits at temperatures.

    The digits are, of each class, the one that the teacher gets right with the least confidence.

    Args:
        images: [n, 784] grey levels; labels: [n]; logits: the teacher's, [n, 10].
    """
    classes = [label for label in range(10) if (labels == label).any()]
    right = logits.argmax(-1) == labels
    sure = logits.softmax(-1).gather(1, labels[:, None])[:, 0].masked_fill(~right, 2.0)
    chosen = [int(sure.masked_fill(labels != label, 3.0).argmin()) for label in classes]

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    grid = GridSpec(1, 2, figure, width_ratios=(1, 1.15))
    left, right_side = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    axes = left.subplots()
    matrix = class_resemblance(logits, labels, temperature)
    wrong = matrix.clone().fill_diagonal_(float("nan"))
    low, high = wrong.nan_to_num(float("inf")).min().item(), wrong.nan_to_num(0.0).max().item()
    drawn = axes.imshow(wrong.cpu(), cmap="Blues", vmin=low, vmax=high)
    for row in classes:
        for column in range(10):
            share = matrix[row, column].item()
            dark = row != column and share > (low + 2 * high) / 3
            text = f"{100 * share:.0f}" if row == column else f"{100 * share:.1f}"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=6,
                color="white" if dark else "black",
            )
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.set(xlabel="class of the soft target", ylabel="digit")
    axes.set_title(f"Mean soft target at T = {temperature:g}, %", fontsize=9, loc="left")
    left.colorbar(drawn, ax=axes, shrink=0.8, format=lambda v, _: f"{100 * v:.0f} %")

    shown = list(dict.fromkeys((1.0, 4.0, temperature)))
    tiles = right_side.subplots(
        len(classes), 1 + len(shown), width_ratios=(1, *[3] * len(shown)), squeeze=False
    )
    for row, (label, index) in enumerate(zip(classes, chosen, strict=True)):
        picture, *bars = tiles[row]
        picture.imshow(images[index].reshape(28, 28).cpu(), cmap="gray_r")
        picture.set_axis_off()
        colours = [COLOURS[1] if k == label else COLOURS[0] for k in range(10)]
        for axes, t in zip(bars, shown, strict=True):
            axes.bar(range(10), (logits[index] / t).softmax(-1).cpu(), color=colours)
            axes.set_yticks([])
            axes.set_xticks(range(10) if row == len(classes) - 1 else [])
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right", "left"]].set_visible(False)
            if row == 0:
                axes.set_title(f"soft target at T = {t:g}", fontsize=9, loc="left")
    save(figure, path)


def curves(records: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Training error, and errors on unseen digits, over the epochs of each network."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, lines), colour in zip(records.items(), COLOURS, strict=False):
        epochs = range(1, len(lines) + 1)
        left.plot(
            epochs, [max(100 * line["error"], 1e-3) for line in lines], color=colour, label=name
        )
        counted = [
            (e, line["unseen_errors"])
            for e, line in zip(epochs, lines, strict=True)
            if "unseen_errors" in line
        ]
        right.plot(*zip(*counted, strict=True), "o-", ms=3, color=colour, label=name)
        right.annotate(f" {counted[-1][1]}", counted[-1], fontsize=8, va="center")
    left.set_ylabel("training error, %")
    right.set_ylabel("errors on unseen digits")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def temperatures(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Errors over T, one panel a student; the dashed line is the student trained on labels."""
    sizes = list(dict.fromkeys(row["layers"] for row in rows))
    figure = Figure(figsize=(3.3 * len(sizes), 3), layout="constrained")
    for axes, layers, colour in zip(
        figure.subplots(1, len(sizes), squeeze=False)[0], sizes, COLOURS, strict=False
    ):
        layer_rows = [row for row in rows if row["layers"] == layers]
        soft = [row for row in layer_rows if row["temperature"]]
        axes.errorbar(
            [row["temperature"] for row in soft],
            [row["value"] for row in soft],
            [row["spread"] or 0 for row in soft],
            fmt="o-",
            capsize=3,
            color=colour,
            label="distilled",
        )
        for row in layer_rows:
            if row["temperature"] is None:
                axes.axhline(row["value"], ls="--", lw=1, color="#777777", label="labels alone")
        ticks = [row["temperature"] for row in soft]
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_xlabel("temperature T")
        axes.set_title(f"student {layers}", fontsize=9, loc="left")
        axes.legend(fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("errors of 10,000")
    save(figure, path)
