"""Learning-rate schedules as pure functions of the step, and setting them on optimisers."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the peak rate: linear from 1/warmup to 1, then a half cosine to 0 at ``total``.

    Loshchilov and Hutter 2017, eq. 5, without restarts.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_rates(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every group's learning rate to its peak rate (``peak_lr``) times ``factor``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def muon_and_adam(
    model: nn.Module, matrices: Sequence[Tensor], muon_lr: float, lr: float
) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for ``matrices`` and Adam for all other parameters.

    Without matrices, Adam alone. No weight decay.
    """
    taken = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    optimizers: list[Optimizer] = [torch.optim.Adam(rest, lr=lr, fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
