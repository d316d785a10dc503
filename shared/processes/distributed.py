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
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def global_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes, any shape; its gradient reaches this process's ``x`` only."""
    return x if world_size() == 1 else x + (all_reduce_sum(x) - x.detach())


class _JoinRows(torch.autograd.Function):
    """all_gather of rows whose number differs between processes, with gradients."""

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
        return all_reduce_sum(grad.contiguous()).split(ctx.counts)[dist.get_rank()]


def global_rows(x: Tensor) -> Tensor:
    """Rows [n, ...] of all processes, any n each, joined; gradients flow back to their owner."""
    if world_size() == 1:
        return x
    joined: Tensor = _JoinRows.apply(x)
    return joined


def own_rows(x: Tensor, dim: int = 0) -> Tensor:
    """This process's part of a global batch; sizes differ by at most one, and may be zero."""
    if world_size() == 1:
        return x
    return x.tensor_split(world_size(), dim)[dist.get_rank()]


def any_process(value: int, device: torch.device) -> int:
    """The largest ``value`` of all processes, by which they agree on a flag or a signal number."""
    if world_size() == 1:
        return value
    return int(all_reduce_max(torch.tensor(value, device=device)))


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes without a gradient, any shape; bitwise equal on all of them."""
    return _all_reduce(x, dist.ReduceOp.SUM)


def all_reduce_max(x: Tensor) -> Tensor:
    """Elementwise maximum of ``x`` over processes, without a gradient."""
    return _all_reduce(x, dist.ReduceOp.MAX)


def _all_reduce(x: Tensor, operation: Any) -> Tensor:
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, operation)
    return x


def all_gather_rows(x: Tensor) -> Tensor:
    """Rows [n, ...] of all processes, with the same n, in the order of ranks; no gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def assert_equal_everywhere(x: Tensor) -> None:
    """Raise RuntimeError unless ``x`` has the same bits on every process."""
    if world_size() == 1:
        return
    first = x.detach().clone()
    dist.broadcast(first, 0)
    if all_reduce_sum((~torch.eq(first, x.detach())).sum()):
        raise RuntimeError("the processes' parameters differ")
