"""The rows of a step, and their division into parts that fit in memory."""

import math

import torch
from torch import Tensor

from shared.processes.distributed import own_rows, world_size
from shared.training.seeding import permutation


def stream(n: int, seed: int, start: int, count: int) -> Tensor:
    """``count`` rows from position ``start`` of an endless sequence of permutations of n rows."""
    first, last = start // n, (start + count - 1) // n
    joined = torch.cat([permutation(n, seed, number) for number in range(first, last + 1)])
    return joined[start - first * n : start - first * n + count]


def micro_batches(count: int, size: int) -> list[tuple[Tensor, bool]]:
    """This process's rows of a batch of ``count``, in parts of at most ``size``.

    Every process has equally many parts, so that none waits for another: where rows are too few,
    a part is row 0 with True, and must not count.
    """
    parts = math.ceil(math.ceil(count / world_size()) / size)
    split = own_rows(torch.arange(count)).tensor_split(parts)
    return [(rows if len(rows) else torch.tensor([0]), not len(rows)) for rows in split]
