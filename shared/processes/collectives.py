"""Sums over processes without gradients, with the same bits on every process."""

import torch
import torch.distributed as dist
from torch import Tensor

from shared.processes.distributed import world_size


def total(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes, any shape; bitwise equal on all of them."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def largest(x: Tensor) -> Tensor:
    """Elementwise maximum of ``x`` over processes."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def joined(x: Tensor) -> Tensor:
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
    if total((~torch.eq(first, x.detach())).sum()):
        raise RuntimeError("the processes' parameters differ")
