"""Time of functions beside what people write: ``shared.experiments.kl.bench_functions``.

Value and gradients to both arguments, CPU time of one thread; ours and theirs in turn in one
process, round after round, and ratios of one round.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Normal
from torch.distributions import kl_divergence as torch_kl_divergence

from shared import cli, kl
from shared.config import Count
from shared.experiments import bench

SHAPES = [(1, 2), (32, 10), (128, 1000), (16, 32_000)]
SMOKE_SHAPES = [(1, 2), (4, 50)]
DIAGONAL = (500, 50)
ENOUGH = 0.02  # seconds of a measurement
PROGRAM = "shared.experiments.kl.bench_functions"
COLUMNS = (
    ("name", "value and gradients of", ""),
    ("peer", "times the time of", ""),
    *((f"{rows}x{columns}", f"[{rows}, {columns}]", ".2f") for rows, columns in SHAPES),
    ("500x50", "[500, 50]", ".2f"),
)


@dataclass(frozen=True)
class Options(bench.Options):
    """Time functions of the KL toolbox beside what people write."""

    repetitions: Count = 15
    """Rounds; each measures ours and theirs once."""
    smoke: bool = False
    """Tiny sizes, single steps: shows that it runs, nothing else."""


class Row(NamedTuple):
    """``loss`` and ``peer`` of leaves -> [batch]."""

    name: str
    peer_name: str
    loss: Callable[..., Tensor]
    peer: Callable[..., Tensor]
    leaves: Callable[[tuple[int, int]], list[Tensor]]
    shapes: Sequence[tuple[int, int]] = SHAPES


def _normal(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _logits(shape: tuple[int, int]) -> list[Tensor]:
    p = 3 * _normal(shape, 0)
    return [p, p + _normal(shape, 1)]


def _close_logits(shape: tuple[int, int]) -> list[Tensor]:
    p = 3 * _normal(shape, 0)
    return [p, p + 0.1 * _normal(shape, 1)]


def _probs(shape: tuple[int, int]) -> list[Tensor]:
    return [logits.softmax(-1) for logits in _logits(shape)]


def _means_and(positive: Callable[[Tensor], Tensor], pairs: int) -> Callable[..., list[Tensor]]:
    def make(shape: tuple[int, int]) -> list[Tensor]:
        return [
            make(_normal(shape, 2 * pair + i))
            for pair in range(pairs)
            for i, make in enumerate((torch.clone, positive))
        ]

    return make


def _kl_div(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _kl_div_of_probs(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q.log(), p.log(), reduction="batchmean", log_target=True)


def _js_by_kl_div(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - 0.6931471805599453
    to_p, to_q = (
        F.kl_div(log_m, log, reduction="batchmean", log_target=True) for log in (log_p, log_q)
    )
    return 0.5 * (to_p + to_q)


def _standard(mu: Tensor, logvar: Tensor) -> Tensor:
    return (0.5 * (mu**2 + logvar.exp() - 1 - logvar)).sum(-1).mean()


def _two_normals(mu_p: Tensor, v_p: Tensor, mu_q: Tensor, v_q: Tensor) -> Tensor:
    each = v_q - v_p + (v_p.exp() + (mu_p - mu_q) ** 2) / v_q.exp() - 1
    return (0.5 * each).sum(-1).mean()


def _of(make: Callable[..., Any], divergence: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def loss(*leaves: Tensor) -> Tensor:
        half = len(leaves) // 2
        value = divergence(make(*leaves[:half]), make(*leaves[half:]))
        return value.sum() / len(leaves[0])

    return loss


def _batchmean(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *leaves: function(*leaves, reduction="batchmean")


def _summed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *leaves: function(*leaves).sum(-1).mean()


def _normal_of(mu: Tensor, scale: Tensor) -> Normal:
    return Normal(mu, scale, validate_args=False)


def _categorical_of(logits: Tensor) -> Categorical:
    return Categorical(logits=logits, validate_args=False)


_KL_DIV = "`F.kl_div`, `log_target=True`"
_TORCH = "`torch.distributions.kl_divergence`"
_EXPRESSION = "the expression"
_SCALES = _means_and(lambda x: x.exp(), 2)
ROWS = [
    Row("`kl_from_logits`", _KL_DIV, _batchmean(kl.kl_from_logits), _kl_div, _logits),
    Row("`js_from_logits`", _KL_DIV, _batchmean(kl.js_from_logits), _kl_div, _logits),
    Row(
        "`js_from_logits`",
        "two `F.kl_div` to the mixture",
        _batchmean(kl.js_from_logits),
        _js_by_kl_div,
        _logits,
    ),
    Row(
        "`kl_from_logits`, 0.1 apart",
        _KL_DIV,
        _batchmean(kl.kl_from_logits),
        _kl_div,
        _close_logits,
    ),
    Row(
        "`js_from_logits`, 0.1 apart",
        "two `F.kl_div` to the mixture",
        _batchmean(kl.js_from_logits),
        _js_by_kl_div,
        _close_logits,
    ),
    Row(
        "`entropy_from_logits`",
        _KL_DIV,
        lambda p, _: kl.entropy_from_logits(p, reduction="batchmean"),
        _kl_div,
        _logits,
    ),
    Row(
        "`kl_from_probs`",
        "`F.kl_div` of logarithms",
        _batchmean(kl.kl_from_probs),
        _kl_div_of_probs,
        _probs,
    ),
    Row(
        "`kl_divergence(Categorical)`",
        _TORCH,
        _of(_categorical_of, kl.kl_divergence),
        _of(_categorical_of, torch_kl_divergence),
        _logits,
    ),
    Row(
        "`kl_standard_normal`",
        _EXPRESSION,
        _summed(kl.kl_standard_normal),
        _standard,
        _means_and(torch.clone, 1),
        [DIAGONAL],
    ),
    Row(
        "`kl_normal`",
        _EXPRESSION,
        _summed(kl.kl_normal),
        _two_normals,
        _means_and(torch.clone, 2),
        [DIAGONAL],
    ),
    Row(
        "`kl_divergence(Normal)`",
        _TORCH,
        _of(_normal_of, kl.kl_divergence),
        _of(_normal_of, torch_kl_divergence),
        _SCALES,
        [DIAGONAL],
    ),
]


def _step(loss: Callable[..., Tensor], leaves: Sequence[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None
    loss(*leaves).backward()


def _seconds(step: Callable[[], object], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - start) / count


def _ratios(row: Row, shape: tuple[int, int], options: Options) -> list[float]:
    leaves = [leaf.requires_grad_() for leaf in row.leaves(shape)]

    def ours() -> None:
        _step(row.loss, leaves)

    def theirs() -> None:
        _step(row.peer, leaves)

    for step in (ours, theirs):
        _seconds(step, 3)
    count = 1 if options.smoke else max(1, round(ENOUGH / _seconds(theirs, 3)))
    return [_seconds(ours, count) / _seconds(theirs, count) for _ in range(options.repetitions)]


def table(options: Options) -> list[dict[str, Any]]:
    """A row per function: medians of the ratios, with the least and the most."""
    lines: list[dict[str, Any]] = []
    for row in ROWS:
        line: dict[str, Any] = {"name": row.name, "peer": row.peer_name, "n": options.repetitions}
        shapes = SMOKE_SHAPES if options.smoke and row.shapes is SHAPES else row.shapes
        for shape in shapes:
            ratios = _ratios(row, shape, options)
            key = f"{shape[0]}x{shape[1]}"
            line[key] = round(statistics.median(ratios), 3)
            line[f"{key}_least"], line[f"{key}_most"] = round(min(ratios), 3), round(max(ratios), 3)
        lines.append(line)
    return lines


def main() -> None:
    options = cli.read_options(Options, PROGRAM)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    bench.report(options, COLUMNS, table(options), options.json)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    cli.run(main, PROGRAM)
