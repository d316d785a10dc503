"""A mean with its standard error; moments of a stream of vectors, exact over processes."""

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.processes.distributed import all_reduce_sum

_LEAST_VARIANCE = 1e-8  # a component that never changes becomes zero, not huge


def mean_and_standard_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values [n], and its standard error, in float64."""
    wide = values.double()
    return wide.mean().item(), (wide.std() / math.sqrt(len(wide))).item()


class RunningMoments(nn.Module):
    """Moments of all vectors seen, in float64 buffers, so that a checkpoint holds them.

    A batch is merged by the pairwise formula of Chan, Golub and LeVeque 1979: the result is that of
    all batches of all processes concatenated.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))

    def update(self, rows: Tensor) -> None:
        """Add this process's rows [n, size]; every process calls this, with any n."""
        rows = rows.double()
        n = all_reduce_sum(torch.tensor(len(rows), dtype=torch.float64))
        mean = all_reduce_sum(rows.sum(0)) / n
        squares = all_reduce_sum((rows - mean).square().sum(0))  # about the mean: nothing cancels
        count = self.count + n
        delta = mean - self.mean
        self.squares += squares + delta.square() * self.count * n / count
        self.mean += delta * n / count
        self.count.copy_(count)

    @property
    def variance(self) -> Tensor:
        """[size], of the vectors so far (divided by their number, n); 1 before the first."""
        if self.count == 0:
            return torch.ones_like(self.mean)
        return self.squares / self.count

    def shift_and_scale(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Arrays s and t [size], copies, such that (x - s) * t has mean 0 and variance 1."""
        scale = (self.variance + _LEAST_VARIANCE).rsqrt()
        return self.mean.clone().numpy(), scale.numpy()
