"""Divergences of a few rows of logits, with their gradient, in buffers that stay in the cache.

The innermost part of ``vocabulary.logits`` and ``vocabulary.hidden_states``. Passes over fresh
memory are what a KL of language-model logits costs, so that every step here writes into a buffer.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BUFFERS = 5
_FAR = 60.0  # nats; beyond, exp may overflow, or multiply a p that has lost its digits
_LARGE = 20.0  # nats; from here on no digits are lost in differences of logarithms


class Job(NamedTuple):
    """A few rows: logits [rows, vocabulary], float32 or float64, and where results go."""

    p_logits: Tensor
    q_logits: Tensor
    temperature: float
    student: int  # 0: the gradient is to p_logits, 1: to q_logits
    gradient: Tensor | None  # to logits / T; may be the student's logits: read these first
    buffers: list[Tensor]  # BUFFERS times [rows, vocabulary], content undefined


# With u = (p_logits - q_logits) / T, c = E_p u and x = c - u, as in
# ``pairs.pair_from_logits``, q / p = exp(x) / E_p exp(x); and E_p x = 0 but for rounding.


class Apart(NamedTuple):
    """Cases that exp(x) does not cover: categories where p or q is 0, or q more than e^60 times p.

    The others are near. Rows whose KL is large lose nothing in a difference of logarithms: they are
    marked plain, and x is log(q / p) itself.
    """

    q: Tensor  # [rows, vocabulary]: q at categories where it is more than e^60 times p, else 0
    q_mass: Tensor  # [rows, 1], their sum
    log_near: Tensor  # [rows, 1]: log(1 - q_mass)
    p_only: Tensor  # [rows, vocabulary], bool: q = 0 < p
    p_mass: Tensor  # [rows, 1], the sum of p over these
    plain: Tensor  # [rows, 1], bool
    kl: Tensor  # [rows]: D(p || q) where it is infinite or the row plain, else NaN


def _softmax(logits: Tensor, temperature: float, out: Tensor, scratch: Tensor) -> Tensor:
    if temperature != 1:
        logits = torch.mul(logits, 1 / temperature, out=scratch)
    return torch.softmax(logits, -1, out=out)


def _difference(job: Job, out: Tensor) -> Tensor:
    """u; the logits are subtracted before they are scaled: that is exact where they are close."""
    torch.sub(job.p_logits, job.q_logits, out=out)
    return out if job.temperature == 1 else out.mul_(1 / job.temperature)


def _expectation(p: Tensor, u: Tensor, scratch: Tensor) -> Tensor:
    """E_p u, [rows, 1], by ``sum``: a matrix product would lose three digits over a vocabulary."""
    return torch.mul(p, u, out=scratch).sum(-1, keepdim=True)


def _compare(job: Job, p: Tensor, x: Tensor, e: Tensor) -> Apart | None:
    """Softmax p, x and e = exp(x) - 1; x and e are 0 at categories that are apart."""
    _softmax(job.p_logits, job.temperature, out=p, scratch=e)
    u = _difference(job, out=x)
    c = _expectation(p, u, scratch=e)
    if not bool(c.isfinite().all()):  # most often categories that both exclude: -inf + inf
        u.masked_fill_((job.p_logits == -torch.inf) & (job.q_logits == -torch.inf), 0.0)
        c = _expectation(p, u, scratch=e)
    torch.sub(c, u, out=x)
    apart = None
    if not bool(x.amax() < _FAR):  # NaN is not
        apart = _set_apart(job, p, x, scratch=e)
    torch.expm1(x, out=e)
    return apart


def _set_apart(job: Job, p: Tensor, x: Tensor, scratch: Tensor) -> Apart:
    """x again, centred over the near categories and 0 at the others."""
    log_p, log_q = (
        torch.log_softmax(a / job.temperature, -1) for a in (job.p_logits, job.q_logits)
    )
    not_p, not_q = log_p == -torch.inf, log_q == -torch.inf
    far, p_only = not_p | (log_q - log_p > _FAR), not_q & ~not_p
    apart = far | not_q
    u = _difference(job, out=x).masked_fill_(apart, 0.0)
    near_p = p.masked_fill(apart, 0.0).sum(-1, keepdim=True)
    c = _expectation(p, u, scratch) / near_p
    log_q_p = (log_q - log_p).masked_fill_(apart, 0.0)
    kl = -_expectation(p, log_q_p, scratch)
    plain = ~((kl < _LARGE) & (near_p > 0.5))
    torch.where(plain, log_q_p, torch.sub(c, u, out=scratch).masked_fill_(apart, 0.0), out=x)
    q = log_q.masked_fill(~far, -torch.inf).exp_()
    q_mass = q.sum(-1, keepdim=True)
    log_near = log_q.masked_fill_(apart, -torch.inf).logsumexp(-1, keepdim=True)
    log_near = torch.where(q_mass < 0.5, torch.log1p(-q_mass), log_near)
    kl = torch.where(p_only.any(-1, keepdim=True), torch.inf, torch.where(plain, kl, torch.nan))
    p_mass = p.masked_fill(~p_only, 0.0).sum(-1, keepdim=True)
    return Apart(q, q_mass, log_near, p_only, p_mass, plain, kl.squeeze(-1))


def _ratio(p: Tensor, e: Tensor, apart: Apart | None, scratch: Tensor) -> Tensor:
    """Turns e into r = q / p - 1, meaningless where apart.q > 0; returns log(q/p) - x, [rows, 1].

    At near categories q / p = (1 - q_mass) exp(x) / sum p exp(x).
    """
    mean = _expectation(p, e, scratch)
    if apart is None:
        e.sub_(mean).mul_(1 / (1 + mean))
        return -mean.log1p()
    excess = torch.where(apart.plain, 0.0, mean - apart.p_mass)
    q_mass = torch.where(apart.plain, 0.0, apart.q_mass)
    log_near = torch.where(apart.plain, 0.0, apart.log_near)
    e.mul_(log_near.exp()).sub_(excess + q_mass).div_(1 + excess)
    e.masked_fill_(apart.p_only, -1.0)
    return log_near - excess.log1p()


def kl(job: Job) -> Tensor:
    """D(p || q) = log1p(E_p[e - x]), no term negative; gradients p (-x) and q - p = p r."""
    p, x, e, scratch, *_ = job.buffers
    apart = _compare(job, p, x, e)
    value = torch.sub(e, x, out=scratch).mul_(p).sum(-1).log1p()
    if apart is not None:
        centred = value - apart.log_near.squeeze(-1)
        value = torch.where(apart.kl.isnan(), centred, apart.kl)
    if job.gradient is not None and job.student == 0:
        mean = _expectation(p, x, scratch)  # what rounding left of 0
        torch.mul(torch.sub(mean, x, out=x), p, out=job.gradient)
    elif job.gradient is not None:
        _ratio(p, e, apart, scratch)
        torch.mul(e, p, out=job.gradient)
        if apart is not None:
            job.gradient.add_(apart.q)
    return value.clamp(min=0)


def kl_fast(job: Job) -> Tensor:
    """D(p || q) = E_p u - log Z_p + log Z_q, and the gradient q - p, as differences."""
    p, u, q, scratch, *_ = job.buffers
    _softmax(job.p_logits, job.temperature, out=p, scratch=scratch)
    _difference(job, out=u)
    c = _expectation(p, u, scratch)
    p_only = None
    if not bool(c.isfinite().all()):
        p_only = (job.q_logits == -torch.inf) & (job.p_logits > -torch.inf)
        u.masked_fill_((job.p_logits == -torch.inf) | p_only, 0.0)
        c = _expectation(p, u, scratch)
    top = (job.p_logits.amax(-1) - job.q_logits.amax(-1)) / job.temperature
    _softmax(job.q_logits, job.temperature, out=q, scratch=scratch)
    value = c.squeeze(-1) - top + (p.amax(-1) / q.amax(-1)).log()  # Z = exp(largest) / its share
    if p_only is not None:
        value = torch.where(p_only.any(-1), torch.inf, value)
    if job.gradient is not None and job.student == 1:
        torch.sub(q, p, out=job.gradient)
    elif job.gradient is not None:
        torch.mul(u.sub_(c), p, out=job.gradient)
    return value.clamp(min=0)


def js(job: Job, weight: float) -> Tensor:
    """With r = q / p - 1: m / p = 1 + (1 - w) r and K_p = D(p || m) = E_p[(1 - w) r - log m/p].

    No term is negative, and K_q = D(q || m) likewise; the gradients are w p (log p/m - K_p) and
    (1 - w) q (log q/m - K_q).
    """
    p, x, r, log_m_p, q = job.buffers
    apart = _compare(job, p, x, r)
    log_q_p = x.add_(_ratio(p, r, apart, scratch=q))
    torch.mul(r, 1 - weight, out=log_m_p).log1p_()
    kl_p = torch.mul(r, 1 - weight, out=q).sub_(log_m_p).mul_(p).sum(-1, keepdim=True)
    r.mul_(p)  # q - p
    torch.add(p, r, out=q)
    log_q_m = log_q_p.sub_(log_m_p)
    if apart is not None:
        far = apart.q > 0  # there m = (1 - w) q, the term of K_p
        kl_p.add_(apart.q_mass, alpha=1 - weight)
        torch.where(far, apart.q, q, out=q)
        r.masked_fill_(far, 0.0).add_(apart.q)
        log_q_m.masked_fill_(far, -math.log1p(-weight)).masked_fill_(apart.p_only, 0.0)
    spare = x if job.student == 0 else log_m_p
    kl_q = torch.mul(log_q_m, q, out=spare).sub_(r, alpha=weight).sum(-1, keepdim=True)
    if job.gradient is not None and job.student == 0:
        torch.mul(log_m_p.add_(kl_p).mul_(p), -weight, out=job.gradient)
    elif job.gradient is not None:
        torch.mul(log_q_m.sub_(kl_q).mul_(q), 1 - weight, out=job.gradient)
    return (weight * kl_p + (1 - weight) * kl_q).squeeze(-1).clamp(min=0)
