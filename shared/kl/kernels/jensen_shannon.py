"""The Jensen-Shannon divergence of a few rows of logits, with its gradients."""

import math

import torch
from torch import Tensor

from .job import SMALL, Job, excess, expectation, largest, part_of, put_back, rows_below
from .logits import compare, ratio, shifted_rows, softmax

_CLOSE = 0.25  # relative difference of all probabilities


def js(job: Job, weight: float) -> Tensor:
    """w D(p || m) + (1 - w) D(q || m) with m / p = 1 + (1 - w) (q - p) / p, and likewise m / q.

    The gradients are w p (log p/m - D(p || m)) and (1 - w) q (log q/m - D(q || m)). Rows where the
    divergence is small are computed again, without the difference of p and q.
    """
    limit = 0.5 * weight * (1 - weight) * (1e-7 if job.wide else SMALL)
    p, q, gap, log_m_p, log_m_q, *_ = job.buffers
    least = torch.finfo(p.dtype).tiny
    softmax(job.a, job.temperature, out=p, scratch=gap).clamp_(min=least)
    softmax(job.b, job.temperature, out=q, scratch=gap).clamp_(min=least)
    torch.sub(q, p, out=gap)
    torch.div(gap, p, out=log_m_p)
    if not job.wide and largest(log_m_p) < _CLOSE:
        return _small_js(job, weight)
    torch.log1p(log_m_p.mul_(1 - weight), out=log_m_p)
    torch.log1p(torch.div(gap, q, out=log_m_q).mul_(-weight), out=log_m_q)
    minus_p, minus_q = expectation(p, log_m_p, gap), expectation(q, log_m_q, gap)
    values = -weight * minus_p - (1 - weight) * minus_q
    few = rows_below(limit, values)
    if few is not None:
        part = part_of(job, few)
    values = values.squeeze(-1).clamp_(min=0)
    to_p, to_q = job.gradients
    if to_p is not None:
        torch.mul(log_m_p.sub_(minus_p), p, out=to_p).mul_(-weight * job.factor)
    if to_q is not None:
        torch.mul(log_m_q.sub_(minus_q), q, out=to_q).mul_((weight - 1) * job.factor)
    if few is not None:
        values[few] = _small_js(part, weight)
        put_back(job, few, part)
    return values


def _small_js(job: Job, weight: float, exact: bool = False) -> Tensor:
    """The same as w E_p[exp(l) - 1 - l] + (1 - w) E_q[exp(k) - 1 - k], l = log m/p, k = log m/q.

    No term is negative. With r = q / p - 1, l = log(1 + (1 - w) r) and k = l - log q/p.
    """
    p, x, r, log_m_p, q, scratch, spare = job.buffers
    compared = compare(job, p, x, scratch, exact)
    apart = compared.apart
    log_q_p_less_x = ratio(p, torch.expm1(x, out=r), apart, scratch)
    softmax(job.b, job.temperature, out=q, scratch=scratch)
    torch.log1p(r.mul_(1 - weight), out=log_m_p)
    log_m_q = torch.sub(log_m_p, x, out=x).sub_(log_q_p_less_x)
    p_mass: Tensor | float = 0.0
    q_mass: Tensor | float = 0.0
    if apart is not None:  # where p is next to nothing m is (1 - w) q, where q is 0 it is w p
        far = apart.q > 0
        log_m_q.masked_fill_(far, math.log1p(-weight)).masked_fill_(apart.p_only, 0.0)
        p_mass, q_mass = weight * apart.p_mass, (1 - weight) * apart.q_mass
    kl_p = excess(p, log_m_p, r, scratch, spare) + q_mass
    kl_q = excess(q, log_m_q, r, scratch, spare) + p_mass
    value = weight * kl_p + (1 - weight) * kl_q
    if shifted_rows(compared, value / (weight * (1 - weight))) is not None:
        return _small_js(job, weight, exact=True)
    to_p, to_q = job.gradients
    if to_p is not None:
        torch.mul(log_m_p.add_(kl_p), p, out=to_p).mul_(-weight * job.factor)
    if to_q is not None:
        torch.mul(log_m_q.add_(kl_q), q, out=to_q).mul_((weight - 1) * job.factor)
    return value.squeeze(-1)
