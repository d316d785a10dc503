"""Sums over all processes that gradients flow through; the identity on one process.

The pattern: a loss is a function f of sums over the global batch. Each process computes
``f(global_sum(own rows))``, which has the same value everywhere, and calls backward on it times the
number of processes; DistributedDataParallel's average over processes is then the gradient of f.
So any f, also one that is not additive over rows, gives on N processes what it gives on one.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def global_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes, any shape; its gradient reaches this process's ``x`` only."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return x + (total - x.detach())


class _JoinRows(torch.autograd.Function):
    """all_gather for rows that differ in number; a batch seldom divides evenly."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        counts = [torch.tensor(0, device=x.device) for _ in range(world_size())]
        dist.all_gather(counts, torch.tensor(len(x), device=x.device))
        ctx.counts = [int(count) for count in counts]
        padded = torch.cat([x, x.new_zeros(max(ctx.counts) - len(x), *x.shape[1:])])
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, ctx.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.split(ctx.counts)[dist.get_rank()]


def global_rows(x: Tensor) -> Tensor:
    """All processes' rows [n, ...], any n each, joined; gradients flow back to the owners."""
    if world_size() == 1:
        return x
    joined: Tensor = _JoinRows.apply(x)
    return joined


def own_rows(x: Tensor, dim: int = 0) -> Tensor:
    """This process's part of a global batch: sizes differ by one at most, and may be zero."""
    if world_size() == 1:
        return x
    return x.tensor_split(world_size(), dim)[dist.get_rank()]


def any_process(value: int, device: torch.device) -> int:
    """The largest ``value`` of all processes: how they agree on a flag or a signal number."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes, any shape; bitwise equal on all of them."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def all_reduce_max(x: Tensor) -> Tensor:
    """Elementwise maximum of ``x`` over processes."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def all_gather_rows(x: Tensor) -> Tensor:
    """The processes' rows [n, ...], one n for all of them, in the order of their ranks."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def assert_equal_everywhere(x: Tensor) -> None:
    """RuntimeError unless ``x`` has the same bits on every process: a bug, not bad input."""
    if world_size() == 1:
        return
    first = x.detach().clone()
    dist.broadcast(first, 0)
    if all_reduce_sum((~torch.eq(first, x.detach())).sum()):
        raise RuntimeError("the processes' parameters differ")
