"""The entropy of the softmaxes of a few rows of logits, with its gradient."""

import math

import torch
from torch import Tensor

from .job import Job, expectation, is_one

NEVER = -1e4  # exp of it is 0
_NEARLY_CERTAIN = 1.5


def log_of_total(weights: Tensor, z: Tensor, total: Tensor, nearly_certain: float) -> Tensor:
    """log Z of weights exp(z), the largest 1, and their total; below the limit 1 + rest is exact no
    more, and the rest is added up by itself."""
    if total.amin().item() > nearly_certain:
        return total.log()
    largest = z.argmax(-1, keepdim=True)
    return weights.scatter(-1, largest, 0.0).sum(-1, keepdim=True).log1p()


def entropy(job: Job) -> Tensor:
    """H = log Z - E z with z = a - max a, of which both are at least 0; gradient -p (z - E z)."""
    z, weights, scratch, *_ = job.buffers
    top = job.a.amax(-1, keepdim=True)
    torch.sub(job.a, top, out=z)
    if not is_one(job.temperature):
        z.mul_(1 / job.temperature)
    z.clamp_(min=NEVER)
    torch.mul(z, 1 / math.log(2), out=weights).exp2_()  # exp(z), four times as fast
    total = weights.sum(-1, keepdim=True)
    log_total = log_of_total(weights, z, total, _NEARLY_CERTAIN)
    mean = expectation(weights, z, scratch).div_(total)
    gradient = job.gradients[0]
    if gradient is not None:
        torch.mul(z.sub_(mean), weights, out=gradient).mul_(-job.factor / total)
    return (log_total - mean).squeeze(-1)
