"""The entropy of the softmaxes of a few rows of logits, with its gradient."""

import torch
from torch import Tensor

from .job import Job, expectation

_NEVER = -1e4  # exp of it is 0
_NEARLY_CERTAIN = 1.5  # sum of exp(z), which is at least 1


def entropy(job: Job) -> Tensor:
    """H = log Z - E z with z = a - max a, of which both are at least 0; gradient -p (z - E z)."""
    z, weights, scratch, *_ = job.buffers
    top = job.a.amax(-1, keepdim=True)
    torch.sub(job.a, top, out=z)
    if job.temperature != 1:
        z.mul_(1 / job.temperature)
    z.clamp_(min=_NEVER)
    torch.exp(z, out=weights)
    total = weights.sum(-1, keepdim=True)
    log_total = total.log()
    if not total.amin().item() > _NEARLY_CERTAIN:  # 1 + rest has lost digits of the rest
        rest = weights.scatter(-1, z.argmax(-1, keepdim=True), 0.0).sum(-1, keepdim=True)
        log_total = rest.log1p()
    mean = expectation(weights, z, scratch).div_(total)
    gradient = job.gradients[0]
    if gradient is not None:
        torch.mul(z.sub_(mean), weights, out=gradient).mul_(-job.factor / total)
    return (log_total - mean).squeeze(-1)
