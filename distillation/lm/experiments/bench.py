"""The loss from hidden states against the naive path and TRL's:
``python -m distillation.lm.experiments.bench [--json FILE]``.

KL(teacher || student) of two language models' last hidden states, and its gradient to the
student's hidden states and output weights. CPU-seconds of one thread and peak extra memory; every
figure in a process of its own, the rows in turn, round after round; ratios are of one round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distillation.lm.objective import LazyLogits, chunked
from shared import cli
from shared.config import Count
from shared.experiments import bench
from shared.language_models.head import OutputHead

PROGRAM = "distillation.lm.experiments.bench"
METHODS = {  # in the order of a round
    "naive": "naive: two logit tensors, log-softmax, `F.kl_div`",
    "ours": "ours: `fused_linear_kl`",
    "trl": "TRL 1.16: chunked divergence",
}
VOCABULARIES = (49_152, 131_072)


@dataclass(frozen=True)
class Options(bench.Options):
    """Time and memory of the distillation loss from hidden states, forward and backward."""

    positions: Count = 2048
    """Tokens."""
    width: Count = 576
    """Width of the hidden states of both models."""
    vocabularies: tuple[Count, ...] = VOCABULARIES
    """Sizes of the vocabulary."""


def heads(positions: int, vocabulary: int, width: int) -> tuple[LazyLogits, LazyLogits]:
    """Teacher and student whose predictions are a few tenths of a nat apart."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    states, weight = normal(positions, width), normal(vocabulary, width).mul_(3 / width**0.5)
    hidden = (states + 0.3 * normal(positions, width)).requires_grad_()
    student = LazyLogits(hidden, OutputHead(weight.clone().requires_grad_()))
    return LazyLogits(states, OutputHead(weight)), student


def loss(method: str, teacher: LazyLogits, student: LazyLogits) -> Tensor:
    """KL(teacher || student) in nats, the mean over positions."""
    n = len(teacher.hidden)
    match method:
        case "naive":
            with torch.no_grad():
                p = teacher.logits()
            q = student.logits()
            return F.kl_div(
                q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean"
            )
        case "ours":
            return chunked("forward", teacher, student, temperature=1.0, skew=0.0) / n
        case _:
            from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

            values, _ = ChunkedDivergenceFunction.apply(
                student.hidden,
                student.head.weight,
                None,
                teacher.hidden,
                teacher.head.weight,
                None,
                0.0,
            )
            return values.sum() / n


def measure(method: str, vocabulary: int, positions: int, width: int) -> bench.Figures:
    """One method in this process, after a first pass over a few positions."""
    loss(method, *heads(8, 1024, width)).backward()
    teacher, student = heads(positions, vocabulary, width)
    values = []

    def step() -> None:
        value = loss(method, teacher, student)
        value.backward()
        values.append(value.item())

    seconds, peak = bench.measured(step)
    tensors = (student.hidden, student.head.weight)
    gradients = sum(4.0 * tensor.numel() for tensor in tensors)  # kept, whatever the method
    return {"seconds": seconds, "extra_bytes": max(0.0, peak - gradients), "value": values[0]}


COLUMNS = (
    ("name", "KL(teacher ‖ student) and gradient from hidden states", ""),
    ("vocabulary", "vocabulary", ",d"),
    ("seconds", "CPU-s", ".2f"),
    ("time_of_naive", "time / naive", ".2f"),
    ("extra_mebibytes", "extra memory, MiB", ",.0f"),
    ("memory_of_naive", "memory / naive", ".3f"),
    ("value", "value, nats", ".5f"),
)


def summary(rounds: Sequence[bench.Round], vocabularies: Sequence[int]) -> list[dict[str, Any]]:
    """A row of the table per vocabulary and method: medians over rounds, ratios within one."""
    table = []
    for vocabulary in vocabularies:
        naive = name_of("naive", vocabulary)
        for method, title in METHODS.items():
            row = name_of(method, vocabulary)
            seconds = {"seconds": bench.median(rounds, row, "seconds")}
            seconds |= bench.spread(rounds, row, "seconds")
            line: dict[str, Any] = {"row": method, "name": title, "vocabulary": vocabulary}
            line |= {"n": len(rounds)} | {key: round(x, 3) for key, x in seconds.items()}
            line["time_of_naive"] = round(bench.ratio(rounds, row, naive, "seconds"), 3)
            line["extra_mebibytes"] = round(bench.median(rounds, row, "extra_bytes") / 2**20, 1)
            line["memory_of_naive"] = round(bench.ratio(rounds, row, naive, "extra_bytes"), 4)
            line["value"] = rounds[0][row]["value"]
            table.append(line)
    return table


def name_of(method: str, vocabulary: int) -> str:
    return f"{method}-{vocabulary}"


def main() -> None:
    options = cli.read_options(Options, PROGRAM)
    sizes = {name_of(m, size): (m, size) for size in options.vocabularies for m in METHODS}
    rounds = bench.measure_rounds(
        PROGRAM,
        options,
        [*sizes],
        lambda row: measure(*sizes[row], options.positions, options.width),
        passed="positions width vocabularies",
        figure="{seconds:.1f} s",
    )
    if rounds:
        bench.report(options, COLUMNS, summary(rounds, options.vocabularies), options.json)


if __name__ == "__main__":
    cli.run(main, PROGRAM)
