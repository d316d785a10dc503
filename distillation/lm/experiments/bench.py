"""The loss from hidden states against the naive path and TRL's:
``python -m distillation.lm.experiments.bench [--json FILE]``.

KL(teacher || student) of two language models' last hidden states, and its gradient to the
student's hidden states and output weights. CPU-seconds of one thread and peak extra memory; every
figure in a process of its own, the rows in turn, round after round; ratios are of one round.
"""

import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distillation.lm.objective import LazyLogits, chunked
from shared import cli
from shared.config import Count
from shared.experiments.bench import check_json, measure_alone
from shared.experiments.measured import measured
from shared.experiments.tables import describe_columns, markdown, write_result
from shared.run.environment import describe

Row = Literal["naive", "ours", "trl"]
ROWS: dict[Row, str] = {  # in the order of a round
    "naive": "naive: two logit tensors, log-softmax, `F.kl_div`",
    "ours": "ours: `fused_linear_kl`",
    "trl": "TRL 1.16: chunked divergence",
}
VOCABULARIES = (49_152, 131_072)


@dataclass(frozen=True)
class Options:
    """Time and memory of the distillation loss from hidden states, forward and backward."""

    repetitions: Count = 3
    """Rounds; each measures every row once for each vocabulary, in a new process."""
    positions: Count = 2048
    """Tokens."""
    width: Count = 576
    """Width of the hidden states of both models."""
    vocabularies: tuple[Count, ...] = VOCABULARIES
    """Sizes of the vocabulary."""
    json: str = ""
    """File that receives every figure, with the environment."""
    only: Literal["", Row] = ""
    """Measure this row once, at the first vocabulary, in this process, and print it as JSON."""


def heads(positions: int, vocabulary: int, width: int) -> tuple[LazyLogits, LazyLogits]:
    """Teacher and student whose predictions are a few tenths of a nat apart."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    teacher = LazyLogits(normal(positions, width), normal(vocabulary, width).mul_(3 / width**0.5))
    hidden = teacher.hidden + 0.3 * normal(positions, width)
    return teacher, LazyLogits(hidden.requires_grad_(), teacher.weight.clone().requires_grad_())


def loss(row: Row, teacher: LazyLogits, student: LazyLogits) -> Tensor:
    """KL(teacher || student) in nats, the mean over positions."""
    n = len(teacher.hidden)
    match row:
        case "naive":
            with torch.no_grad():
                p = F.linear(*teacher)
            q = F.linear(*student)
            return F.kl_div(
                q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean"
            )
        case "ours":
            return chunked("forward", teacher, student, temperature=1.0, skew=0.0) / n
        case "trl":
            from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

            values, _ = ChunkedDivergenceFunction.apply(
                student.hidden, student.weight, None, teacher.hidden, teacher.weight, None, 0.0
            )
            return values.sum() / n


def measure(row: Row, options: Options) -> dict[str, float]:
    """One row in this process, after a first pass over a few positions."""
    vocabulary = options.vocabularies[0]
    loss(row, *heads(8, 1024, options.width)).backward()
    teacher, student = heads(options.positions, vocabulary, options.width)
    values = []

    def step() -> None:
        value = loss(row, teacher, student)
        value.backward()
        values.append(value.item())

    seconds, peak = measured(step)
    # The gradients themselves are owed, whatever the method.
    owed = sum(4.0 * tensor.numel() for tensor in student)
    return {"seconds": seconds, "extra_bytes": max(0.0, peak - owed), "value": values[0]}


def in_new_process(row: Row, vocabulary: int, options: Options) -> dict[str, float]:
    given = {"vocabularies": vocabulary, "positions": options.positions, "width": options.width}
    return measure_alone("distillation.lm.experiments.bench", row, given)


COLUMNS = (
    ("name", "KL(teacher ‖ student) and gradient from hidden states", ""),
    ("vocabulary", "vocabulary", ",d"),
    ("seconds", "CPU-s", ".2f"),
    ("time_of_naive", "time / naive", ".2f"),
    ("extra_mebibytes", "extra memory, MiB", ",.0f"),
    ("memory_of_naive", "memory / naive", ".3f"),
    ("value", "value, nats", ".5f"),
)
Round = dict[tuple[int, Row], dict[str, float]]


def summary(rounds: Sequence[Round], vocabularies: Sequence[int]) -> list[dict[str, Any]]:
    """A row of the table per vocabulary and method: medians over rounds, ratios within one."""
    table = []
    for vocabulary in vocabularies:
        for row, name in ROWS.items():
            own = [one[vocabulary, row] for one in rounds]
            naive = [one[vocabulary, "naive"] for one in rounds]

            def ratio(key: str, own: Any = own, naive: Any = naive) -> float:
                return statistics.median(a[key] / b[key] for a, b in zip(own, naive, strict=True))

            seconds = [one["seconds"] for one in own]
            table.append(
                {
                    "row": row,
                    "name": name,
                    "vocabulary": vocabulary,
                    "n": len(rounds),
                    "seconds": round(statistics.median(seconds), 3),
                    "least": round(min(seconds), 3),
                    "most": round(max(seconds), 3),
                    "time_of_naive": round(ratio("seconds"), 3),
                    "extra_mebibytes": round(
                        statistics.median(one["extra_bytes"] for one in own) / 2**20, 1
                    ),
                    "memory_of_naive": round(ratio("extra_bytes"), 4),
                    "value": own[0]["value"],
                }
            )
    return table


def main() -> None:
    options = cli.check(
        cli.parse(Options, sys.argv[1:], "python -m distillation.lm.experiments.bench")
    )
    check_json(options.json)
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    rounds: list[Round] = []
    for count in range(1, options.repetitions + 1):
        rounds.append(
            {
                (vocabulary, row): in_new_process(row, vocabulary, options)
                for vocabulary in options.vocabularies
                for row in ROWS
            }
        )
        told = (f"{row} {v:,}: {one['seconds']:.1f} s" for (v, row), one in rounds[-1].items())
        print(f"round {count}/{options.repetitions}: {', '.join(told)}", flush=True)
    table = summary(rounds, options.vocabularies)
    print("\n" + markdown({"columns": describe_columns(COLUMNS), "rows": table}))
    if options.json:
        write_result(
            Path(options.json),
            COLUMNS,
            table,
            load_average=os.getloadavg(),
            options=asdict(options),
            environment=describe(),
        )


if __name__ == "__main__":
    cli.run(main, "distillation.lm.experiments.bench")
