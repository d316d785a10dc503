"""D(p || q) of a few rows of probabilities, with its gradients."""

import torch
from torch import Tensor

from .job import SERIES_BELOW, Job, expectation, rows_below, series

_CLOSE = 0.25  # relative difference of all probabilities
_SMALL = 0.02  # nats; below, exp(x) - 1 - x is not a difference
_NOTHING = 1e-30  # q where both are 0: nothing to the value, much more than the least p


def kl_of_probs(job: Job) -> Tensor:
    """sum p log(p / q) - p + q; gradients log(p / q), and 0 where p is 0, and 1 - p / q.

    |log(p / q)| is log(1 + |q - p| / min(p, q)). Where p is 0 it is computed as the least number of
    its type, and a term is q. NaN or inf if q is 0 where p is not.
    """
    p, q, gap, log_ratio, scratch, sign, exact = job.buffers
    torch.clamp(job.a, min=torch.finfo(p.dtype).tiny, out=p)
    q_used, has_zeros = job.b, not job.a.amin().item() > 0
    if has_zeros:
        torch.sign(job.a, out=sign).clamp_(min=0)
        torch.mul(sign, -_NOTHING, out=q).add_(_NOTHING)
        q_used = torch.maximum(q, job.b, out=q)
    torch.sub(q_used, p, out=gap)
    quotient = torch.div(gap, torch.minimum(p, q_used, out=scratch), out=scratch).abs_()
    limit = quotient.amax().item()
    torch.copysign(quotient.log1p_(), gap, out=log_ratio)  # log(q / p)
    if limit < _CLOSE:
        values = expectation(p, series(log_ratio, limit, out=scratch), scratch)
    else:
        exact_gap = gap
        if has_zeros:  # back to 0, so that equal distributions are at 0
            exact_gap = torch.sub(job.b, p.mul_(sign), out=exact)
        values = exact_gap.sum(-1, keepdim=True) - expectation(p, log_ratio, scratch)
        if (few := rows_below(_SMALL, values)) is not None:
            values[few] = _small(p[few], exact_gap[few], log_ratio[few])
    to_p, to_q = job.gradients
    if to_p is not None:
        torch.mul(log_ratio, -job.factor, out=to_p)
        if has_zeros:
            to_p.mul_(sign)
    if to_q is not None:
        torch.div(gap, q_used, out=to_q).mul_(job.factor)
    return values.squeeze(-1).clamp_(min=0)


def _small(p: Tensor, gap: Tensor, log_ratio: Tensor) -> Tensor:
    """sum p (exp(l) - 1 - l), l = log(q / p), or sum q - p - p l where l is large."""
    near = log_ratio.clamp(-SERIES_BELOW, SERIES_BELOW)
    close = series(near, SERIES_BELOW, out=torch.empty_like(p)).mul_(p)
    return torch.where(near == log_ratio, close, gap - p * log_ratio).sum(-1, keepdim=True)
