"""Curves of a training, as PNG."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from shared.figures import save

NAMES = {
    "forward": "KL(teacher ‖ student)",
    "reverse": "KL(student ‖ teacher)",
    "js": "Jensen-Shannon",
    "skew": "skew KL",
    "ce": "cross-entropy with the text",
}


def curves(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Held-out KL in both directions over training tokens, a line for each objective."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, constrained_layout=True)
    quantities = {
        "kl_teacher_student": "KL(teacher ‖ student)",
        "kl_student_teacher": "KL(student ‖ teacher)",
    }
    for axis, (key, title) in zip(axes, quantities.items(), strict=True):
        for objective, records in runs.items():
            steps = [0, *(record["step"] for record in records)]
            tokens = [0.0]
            for i, record in enumerate(records, 1):
                tokens.append(tokens[-1] + (steps[i] - steps[i - 1]) * record["tokens"] / 1000)
            values = [record[f"unseen_{key}"] for record in records]
            axis.plot(tokens[1:], values, ".-", label=NAMES[objective])
        axis.set(
            title=f"{title} on held-out text",
            xlabel="thousand training tokens",
            ylabel="nats per token",
            yscale="log",
        )
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(title="trained to minimise", fontsize=8, title_fontsize=8)
    save(figure, path)
    plt.close(figure)
