"""Divergences to a mixture, Jensen-Shannon and skew KL, of a few rows of logits."""

import math

import torch
from torch import Tensor

from .job import (
    Job,
    excess,
    expectation,
    in_place,
    is_one,
    largest,
    part_of,
    put_back,
    rows_below,
    rows_of,
)
from .logits import Apart, compare, ratio, shifted, softmax

_CLOSE = 0.25  # q / p - 1, to which the divergence is surely small
_SMALL = 0.0025  # nats for equal weights; below, it is not a difference
_SMALL_SKEW = 0.06
_FAR = 60.0  # nats; beyond, exp may overflow


def js(job: Job, weight: float, positive: bool = False) -> Tensor:
    """w D(p || m) + (1 - w) D(q || m) with m / p = 1 + (1 - w) (q - p) / p, and likewise m / q.

    The gradients are w p (log p/m - D(p || m)) and (1 - w) q (log q/m - D(q || m)). Rows where the
    divergence is small are computed again by ``careful_js``, without the difference of p and q.
    """
    if _first_is_close(job):
        return careful_js(job, weight)
    p, q, gap, *more = job.buffers
    log_m_p, log_m_q = (in_place(job, side, more[side]) for side in (0, 1))
    _softmaxes(job, p, q, gap, positive)
    torch.div(gap, p, out=log_m_p).mul_(1 - weight).log1p_()
    torch.div(gap, q, out=log_m_q).mul_(-weight).log1p_()
    minus_p, minus_q = expectation(p, log_m_p, gap), expectation(q, log_m_q, gap)
    values = -weight * minus_p - (1 - weight) * minus_q
    if not (positive or math.isfinite(values.sum().item())):  # a p or q is 0
        return js(job, weight, positive=True)
    few = rows_below(_SMALL * 4 * weight * (1 - weight), values)
    part = None if few is None else part_of(job, few)
    values = values.squeeze(-1)
    to_p, to_q = job.gradients
    if positive:
        p.sub_(_least(p))  # what is excluded gets a gradient of exactly 0
        q.sub_(_least(q))
    if to_p is not None:
        torch.mul(log_m_p.sub_(minus_p), p, out=to_p).mul_(-weight * job.factor)
    if to_q is not None:
        torch.mul(log_m_q.sub_(minus_q), q, out=to_q).mul_((weight - 1) * job.factor)
    if few is not None and part is not None:
        values[few] = careful_js(part, weight)
        put_back(job, few, part)
    return values


def _softmaxes(job: Job, p: Tensor, q: Tensor, gap: Tensor, positive: bool) -> None:
    """p, q, and q - p; with ``positive`` the least number of the type takes the place of 0."""
    softmax(job.a, job.temperature, out=p, scratch=gap)
    softmax(job.b, job.temperature, out=q, scratch=gap)
    if positive:
        p.clamp_(min=_least(p))
        q.clamp_(min=_least(q))
    torch.sub(q, p, out=gap)


def _least(p: Tensor) -> float:
    return torch.finfo(p.dtype).tiny


def _first_is_close(job: Job) -> bool:
    """A guess which way is the faster, from one row; both are right."""
    gap = job.b[0] - job.a[0]
    if not is_one(job.temperature):
        gap = gap / rows_of(job.temperature, slice(0, 1))
    return gap.amax().item() - gap.amin().item() < 2 * _CLOSE  # NaN is not


def careful_js(job: Job, weight: float, exact: bool = False) -> Tensor:
    """The same from r = q / p - 1, of which no digit is lost: sums of which no term is negative."""
    p, x, r, log_m_p, q, scratch, spare = job.buffers
    compared = compare(job, p, x, scratch, exact)
    log_q_p_less_x = ratio(p, torch.expm1(x, out=r), compared.apart, scratch)
    limit = largest(r) if compared.apart is None else torch.inf
    torch.log1p(torch.mul(r, 1 - weight, out=log_m_p), out=log_m_p)
    log_m_q = torch.sub(log_m_p, x, out=x).sub_(log_q_p_less_x)
    if limit < _CLOSE:
        torch.addcmul(p, p, r, out=q)
        values = expectation(p, _js_series(r, limit, weight, out=scratch), scratch)
        kl_p, kl_q = (-expectation(*each, scratch) for each in ((p, log_m_p), (q, log_m_q)))
    else:
        softmax(job.b, job.temperature, out=q, scratch=scratch)
        p_mass, q_mass = _set_apart(compared.apart, p, log_m_q, weight)
        # E_p[exp(l) - 1 - l] with l = log m/p, and the same of q
        kl_p = excess(p, log_m_p, r, scratch, spare) + q_mass
        kl_q = excess(q, log_m_q, r, scratch, spare) + p_mass
        values = weight * kl_p + (1 - weight) * kl_q
    doubt = shifted(compared, values / (weight * (1 - weight)))
    if doubt is not None and doubt.amin().item() < 0:
        return careful_js(job, weight, exact=True)
    to_p, to_q = job.gradients
    if to_p is not None:
        torch.mul(log_m_p.add_(kl_p), p, out=to_p).mul_(-weight * job.factor)
    if to_q is not None:
        torch.mul(log_m_q.add_(kl_q), q, out=to_q).mul_((weight - 1) * job.factor)
    return values.squeeze(-1).clamp_(min=0)


def _js_series(r: Tensor, limit: float, weight: float, out: Tensor) -> Tensor:
    """(1 - w) (1 + r) log(1 + r) - (1 + y) log(1 + y), y = (1 - w) r, for |r| <= limit < 1.

    (1 + t) log(1 + t) = t + t^2 / 2 - t^3 / 6 + ..., the sum of (-t)^k / (k (k - 1)).
    """
    terms, rounding = 2, torch.finfo(r.dtype).eps / 8
    while limit ** (terms - 1) > rounding:
        terms += 1
    shares = [(1 - weight) - (1 - weight) ** k for k in range(terms + 1)]
    out.fill_((-1) ** terms * shares[terms] / (terms * (terms - 1)))
    for k in range(terms - 1, 1, -1):
        out.mul_(r).add_((-1) ** k * shares[k] / (k * (k - 1)))
    return out.mul_(r).mul_(r)


def _set_apart(
    apart: Apart | None, p: Tensor, log_m_q: Tensor, weight: float
) -> tuple[Tensor | float, Tensor | float]:
    """Masses of m where q, and where p, is next to nothing; log m/q is made finite there."""
    p_mass: Tensor | float = 0.0
    q_mass: Tensor | float = 0.0
    if apart is not None:  # where p is next to nothing m is (1 - w) q, where q is 0 it is w p
        log_m_q.masked_fill_(apart.q > 0, math.log1p(-weight)).masked_fill_(apart.p_only, 0.0)
        p_mass, q_mass = weight * apart.p_mass, (1 - weight) * apart.q_mass
    if log_m_q.amax().item() > _FAR:
        far = log_m_q > _FAR  # there m is w p
        p_mass = p_mass + weight * p.masked_fill(~far, 0.0).sum(-1, keepdim=True)
        log_m_q.masked_fill_(far, 0.0)
    return p_mass, q_mass


def skew_kl(job: Job, weight: float) -> Tensor:
    """D(p || m) = -E_p l, m = w p + (1 - w) q and l = log m/p. With s = p / m - 1 the gradients are

    p (g - E_p g), g = -l - w s, to p, and (w - 1) q (s - E_q s) to q. Rows where the divergence is
    small are computed again by ``_careful_skew_kl``.
    """
    if _first_is_close(job):
        return _careful_skew_kl(job, weight)
    p, q, gap, log_m_p, s, *_ = job.buffers
    _softmaxes(job, p, q, gap, positive=True)
    gap.mul_(1 - weight)
    torch.log1p(torch.div(gap, p, out=log_m_p), out=log_m_p)
    torch.div(gap, gap.add(p), out=s).neg_()
    values = -expectation(p, log_m_p, gap)
    few = rows_below(_SMALL_SKEW, values)
    part = None if few is None else part_of(job, few)
    values = values.squeeze(-1)
    _skew_gradients(job, weight, p.sub_(_least(p)), q.sub_(_least(q)), log_m_p, s, gap)
    if few is not None and part is not None:
        values[few] = _careful_skew_kl(part, weight)
        put_back(job, few, part)
    return values


def _careful_skew_kl(job: Job, weight: float, exact: bool = False) -> Tensor:
    """The same from r = q / p - 1, as E_p[exp(l) - 1 - l]."""
    p, x, r, log_m_p, q, scratch, spare = job.buffers
    compared = compare(job, p, x, scratch, exact)
    ratio(p, torch.expm1(x, out=r), compared.apart, scratch)
    softmax(job.b, job.temperature, out=q, scratch=scratch)
    torch.log1p(r.mul_(1 - weight), out=log_m_p)
    values = excess(p, log_m_p, r, scratch, spare)
    doubt = shifted(compared, values / (1 - weight) ** 2)
    if doubt is not None and doubt.amin().item() < 0:
        return _careful_skew_kl(job, weight, exact=True)
    s = torch.expm1(torch.neg(log_m_p, out=r), out=r)
    if compared.apart is not None:
        values = values + (1 - weight) * compared.apart.q_mass
        s.masked_fill_(compared.apart.q > 0, -1.0)
    _skew_gradients(job, weight, p, q, log_m_p, s, scratch)
    return values.squeeze(-1).clamp_(min=0)


def _skew_gradients(
    job: Job, weight: float, p: Tensor, q: Tensor, log_m_p: Tensor, s: Tensor, scratch: Tensor
) -> None:
    to_p, to_q = job.gradients
    if to_p is not None:
        log_m_p.add_(s, alpha=weight)
        mean = expectation(p, log_m_p, scratch)
        torch.mul(log_m_p.sub_(mean), p, out=to_p).mul_(-job.factor)
    if to_q is not None:
        mean = expectation(q, s, scratch)
        torch.mul(s.sub_(mean), q, out=to_q).mul_((weight - 1) * job.factor)
