"""Time, memory and precision of a KL at vocabulary size: ``python -m shared.experiments.kl.bench``.

Value and gradient to the student. Every figure of time and memory is measured in a process of its
own, the rows in turn, round after round; ratios are of one round. On CPUs: CPU-seconds of one
thread, which other work on the machine disturbs less than the clock, and the peak of resident
memory. On a GPU: CUDA events, and the peak of what the allocator gave out.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from shared import cli
from shared.config import Count
from shared.experiments import bench
from shared.experiments.kl.bench_methods import HEADS, LIGER, LOGITS, METHODS, SCALES, precision

PROGRAM = "shared.experiments.kl.bench"


@dataclass(frozen=True)
class Options(bench.Rounds):
    """Time KL and gradient of language-model logits: ours, torch's, compiled."""

    positions: Count = 2048
    """Rows of logits."""
    vocabulary: Count = 49_152
    """Categories."""
    head_positions: Count = 1024
    """Positions where the logits are made from hidden states."""
    head_vocabulary: Count = 128_256
    """Categories there."""
    head_width: Count = 256
    """Width of the hidden states."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where. cuda also measures Liger's kernel, if liger_kernel is installed."""
    smoke: bool = False
    """Tiny sizes, one round in this process, nothing compiled: shows that it runs, nothing else."""
    results: str = ""
    """Folder that receives bench.json, heads.json and precision.json (or ..._cuda.json)."""

    def conflicts(self) -> list[str]:
        """A GPU or a folder that is not there."""
        missing = self.results and not Path(self.results).is_dir()
        problems = [f"--results {self.results}: no such folder"] if missing else []
        if self.device == "cuda" and not torch.cuda.is_available():
            problems.append("--device cuda: torch sees no GPU here")
        return problems


SMOKE = Options(
    positions=20, vocabulary=3000, head_positions=20, head_vocabulary=3000, head_width=16
)


def inputs(method: str, options: Options, positions: int) -> list[Tensor]:
    """Logits of teacher and student, or their hidden states and weights; the same for all rows."""
    rng = torch.Generator(options.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=options.device)

    if method in HEADS:
        n, v, d = positions, options.head_vocabulary, options.head_width
        p = [normal(n, d), normal(v, d).mul_(3 / d**0.5)]
        return [*p, p[0] + 0.3 * normal(n, d), p[1].clone()]
    teacher = normal(positions, options.vocabulary).mul_(3)
    return [teacher, normal(positions, options.vocabulary).add_(teacher)]


def step(method: str, tensors: Sequence[Tensor]) -> None:
    """Value and gradient. The student's logits are not a leaf, as a model's are not."""
    student_inputs = tensors[len(tensors) // 2 :]
    leaves = [tensor.requires_grad_() for tensor in student_inputs]
    student = [leaf.view(leaf.shape) for leaf in leaves]
    METHODS[method].loss(*tensors[: len(tensors) // 2], *student).backward()


def measure(method: str, options: Options) -> dict[str, float]:
    """CPU-seconds (or GPU-seconds) and the peak of extra memory in bytes, in this process."""
    heads = method in HEADS
    positions = options.head_positions if heads else options.positions
    tensors = inputs(method, options, positions)
    # Compilation is of one shape; everything else is warm after a few rows.
    warm_up = tensors if METHODS[method].compiles else inputs(method, options, 16)
    step(method, [tensor.clone() for tensor in warm_up])
    if options.device == "cuda":
        seconds, peak = _cuda(method, tensors)
    else:
        seconds, peak = bench.measured(lambda: step(method, tensors))
    vocabulary = options.head_vocabulary if heads else options.vocabulary
    elements = positions * vocabulary
    return {
        "seconds": seconds,
        "ns_per_element": 1e9 * seconds / elements,
        "extra_memory": peak / (4 * elements),
    }


def _cuda(method: str, tensors: Sequence[Tensor]) -> tuple[float, float]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    begin.record()
    step(method, tensors)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000, torch.cuda.max_memory_allocated() - before


Columns = tuple[tuple[str, str, str], ...]
COLUMNS: Columns = (
    ("name", "value and gradient by", ""),
    ("ns_per_element", "ns per logit", ".2f"),
    ("least", "least", ".2f"),
    ("most", "most", ".2f"),
    ("speed", "times as fast as the first", ".2f"),
    ("extra_memory", "extra memory / one logit tensor", ".2f"),
)
PRECISION_COLUMNS: Columns = (
    ("name", "method", ""),
    *((f"value_{scale:g}", f"KL {kl}: error", ".0e") for scale, kl in SCALES.items()),
    ("negative", "negative at the last", ".0%"),
    ("gradient", "gradient's error there", ".0e"),
)


def summary(methods: Sequence[str], rounds: Sequence[bench.Round]) -> list[dict[str, Any]]:
    """A row of the table per method: medians over the rounds, ratios within a round."""
    table = []
    for method in methods:
        ns, speed = "ns_per_element", bench.ratio(rounds, methods[0], method, "seconds")
        numbers = {ns: bench.median(rounds, method, ns)} | bench.spread(rounds, method, ns)
        numbers |= {"speed": speed, "extra_memory": bench.median(rounds, method, "extra_memory")}
        line = {"row": method, "name": METHODS[method].title, "n": len(rounds)}
        table.append(line | {name: round(number, 3) for name, number in numbers.items()})
    return table


def main() -> None:
    options = cli.read_options(Options, PROGRAM)
    if options.smoke:
        options = replace(SMOKE, smoke=True, device=options.device, results=options.results)
    liger = options.device == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    groups = {"bench": [*LOGITS, *(LIGER if liger else [])], "heads": [*HEADS]}
    if options.smoke:
        groups["bench"] = [method for method in groups["bench"] if not METHODS[method].compiles]
    methods = [method for group in groups.values() for method in group]
    if options.smoke:
        torch.set_num_threads(1)
        rounds = [{method: measure(method, options) for method in methods}]
    else:
        rounds = bench.measure_rounds(
            PROGRAM,
            options,
            methods,
            lambda method: measure(method, options),
            passed="positions vocabulary head_positions head_vocabulary head_width device",
            figure="{ns_per_element:.2f}",
            env=lambda _: bench.NO_GPU if options.device == "cpu" else {},
        )
    if not rounds:
        return
    tables: dict[str, tuple[Columns, list[dict[str, Any]]]] = {
        name: (COLUMNS, summary(group, rounds)) for name, group in groups.items()
    }
    tables["precision"] = (PRECISION_COLUMNS, precision(options.vocabulary, options.device))
    suffix = "" if options.device == "cpu" else f"_{options.device}"
    for name, (columns, table) in tables.items():
        path = f"{options.results}/{name}{suffix}.json" if options.results else ""
        bench.report(options, columns, table, path, rounds=rounds)


if __name__ == "__main__":
    cli.run(main, PROGRAM)
