"""Divergences of the softmaxes of a few rows of logits, with their gradients."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..conventions import Temperature
from .job import Job, excess, expectation, fast_expm1, is_one, part_of, put_back, rows_below, series

_FAR = 60.0  # nats; beyond, exp may overflow, or multiply a p that has lost its digits
_LARGE = 20.0  # nats; from here on no digits are lost in differences of logarithms
_SHIFTED = 64.0  # c^2 in units of the KL, which is about half the variance of u
_MANY = 4096  # categories; the softmax of more is normalised again
_MUCH = 8.0  # |x|; from here on p exp(x) has fewer digits than a softmax of its own
_CLOSE = 1.0  # |x|, up to where the series is the fastest that keeps the digits

# With v = (b - a) / T, c = E_p v and x = v - c, as in ``pairs.pair_of_logits``,
# q / p = exp(x) / E_p exp(x); and E_p x = 0 but for rounding.


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
    kl: Tensor  # [rows, 1]: D(p || q) where it is infinite or the row plain, else NaN


class Compared(NamedTuple):
    """What is known of rows once p and x are in their buffers."""

    apart: Apart | None
    most: float  # the largest x
    shift: Tensor | None  # [rows, 1]: c, unless it was taken out exactly

    def limit(self, x: Tensor) -> float:
        """The largest |x|, or inf where that is above 1."""
        return max(-x.amin().item(), self.most) if self.most < 1 else torch.inf


def softmax(logits: Tensor, temperature: Temperature, out: Tensor, scratch: Tensor) -> Tensor:
    if not is_one(temperature):
        logits = torch.mul(logits, 1 / temperature, out=scratch)
    torch.softmax(logits, -1, out=out)
    if logits.shape[-1] > _MANY:  # torch's running sums lose a digit
        out.mul_(1 / out.sum(-1, keepdim=True))
    return out


def _difference(job: Job, out: Tensor) -> Tensor:
    """v; the logits are subtracted before they are scaled: that is exact where they are close."""
    torch.sub(job.b, job.a, out=out)
    return out if is_one(job.temperature) else out.mul_(1 / job.temperature)


def _exact_difference(job: Job, p: Tensor, out: Tensor) -> Tensor:
    """v less its value where p is largest, with what the subtraction rounded off (two-sum)."""
    a, b = job.b, job.a
    torch.sub(a, b, out=out)
    minus_b = out - a
    lost = (a - (out - minus_b)) - (b + minus_b)
    index = p.argmax(-1, keepdim=True)
    out.sub_(out.gather(-1, index)).add_(lost - lost.gather(-1, index))
    return out.mul_(1 / job.temperature)


def compare(job: Job, p: Tensor, x: Tensor, scratch: Tensor, exact: bool = False) -> Compared:
    """Softmax p, and x, which is 0 at categories that are apart."""
    softmax(job.a, job.temperature, out=p, scratch=scratch)
    v = _exact_difference(job, p, out=x) if exact else _difference(job, out=x)
    c = expectation(p, v, scratch)
    if not math.isfinite(c.sum().item()):  # most often what both exclude: -inf + inf
        v.masked_fill_((job.a == -torch.inf) & (job.b == -torch.inf), 0.0)
        c = expectation(p, v, scratch)
    v.sub_(c)
    most = x.amax().item()
    if most < _FAR:  # NaN is not
        return Compared(None, most, None if exact else c)
    return Compared(_set_apart(job, p, x, scratch), most, None)


def _set_apart(job: Job, p: Tensor, x: Tensor, scratch: Tensor) -> Apart:
    """x again, centred over the near categories and 0 at the others."""
    log_p, log_q = (torch.log_softmax(a / job.temperature, -1) for a in (job.a, job.b))
    not_p, not_q = log_p == -torch.inf, log_q == -torch.inf
    far, p_only = not_p | (log_q - log_p > _FAR), not_q & ~not_p
    apart = far | not_q
    v = _exact_difference(job, p, out=x).masked_fill_(apart, 0.0)
    near_p = p.masked_fill(apart, 0.0).sum(-1, keepdim=True)
    c = expectation(p, v, scratch) / near_p
    log_q_p = (log_q - log_p).masked_fill_(apart, 0.0)
    kl = -expectation(p, log_q_p, scratch)
    plain = ~((kl < _LARGE) & (near_p > 0.5))
    torch.where(plain, log_q_p, v.sub_(c).masked_fill_(apart, 0.0), out=x)
    q = log_q.masked_fill(~far, -torch.inf).exp_()
    q_mass = q.sum(-1, keepdim=True)
    log_near = log_q.masked_fill_(apart, -torch.inf).logsumexp(-1, keepdim=True)
    log_near = torch.where(q_mass < 0.5, torch.log1p(-q_mass), log_near)
    kl = torch.where(p_only.any(-1, keepdim=True), torch.inf, torch.where(plain, kl, torch.nan))
    p_mass = p.masked_fill(~p_only, 0.0).sum(-1, keepdim=True)
    return Apart(q, q_mass, log_near, p_only, p_mass, plain, kl)


def shifted(compared: Compared, kl: Tensor) -> Tensor | None:
    """[rows, 1] below 0 where the rounding of v, which grows with c, is seen in its variation."""
    return None if compared.shift is None else _SHIFTED * kl - compared.shift.square()


def ratio(p: Tensor, e: Tensor, apart: Apart | None, scratch: Tensor) -> Tensor:
    """Turns e into r = q / p - 1, meaningless where apart.q > 0; returns log(q/p) - x, [rows, 1].

    At near categories q / p = (1 - q_mass) exp(x) / sum p exp(x).
    """
    mean = expectation(p, e, scratch)
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
    """D(p || q) = log(1 + E_p[e - x]), e = exp(x) - 1; gradients -p x and q - p.

    Where the divergence is small, the value is computed again in float64; where rounding of v is
    seen, the row by ``careful_kl``.
    """
    p, x, e, scratch, *_ = job.buffers
    compared = compare(job, p, x, scratch)
    if compared.apart is not None or compared.limit(x) < _CLOSE:
        return careful_kl(job, compared)
    small = fast_expm1(x, compared.most, out=e)
    mean = expectation(p, torch.sub(e, x, out=scratch), scratch)
    if (few := rows_below(small, mean)) is not None:
        mean[few] = _excess_in_float64(p[few], x[few])
    values = mean.log1p()
    doubted = None if (doubt := shifted(compared, values)) is None else rows_below(0.0, doubt)
    part = None if doubted is None else part_of(job, doubted)
    values = values.squeeze(-1)
    to_p, to_q = job.gradients
    if to_p is not None:
        torch.mul(x, p, out=to_p).mul_(-job.factor)
    if to_q is not None and compared.most < _MUCH:
        torch.mul(e.sub_(mean).mul_(job.factor / (1 + mean)), p, out=to_q)
    elif to_q is not None:
        q = softmax(job.b, job.temperature, out=e, scratch=scratch)
        torch.sub(q, p, out=to_q).mul_(job.factor)
    if doubted is not None and part is not None:
        values[doubted] = careful_kl(part)
        put_back(job, doubted, part)
    return values


def _excess_in_float64(p: Tensor, x: Tensor) -> Tensor:
    """E_p[exp(x) - 1 - x], [rows, 1], of a few rows."""
    if x.dtype == torch.float64:
        return excess(p, x, *(torch.empty_like(x) for _ in range(3)))
    wide = x.double()
    return (torch.expm1(wide).sub_(wide).mul_(p)).sum(-1, keepdim=True).to(x.dtype)


def careful_kl(job: Job, compared: Compared | None = None) -> Tensor:
    """D(p || q) = log1p(E_p[e - x]), e = exp(x) - 1, no term negative; gradients -p x and p r."""
    p, x, e, gap, scratch, *_ = job.buffers
    compared = compared or compare(job, p, x, scratch, exact=True)
    apart, limit = compared.apart, compared.limit(x)
    if limit < _CLOSE:
        torch.add(series(x, limit, out=gap), x, out=e)
        mean = expectation(p, gap, scratch=gap)
    else:
        mean = excess(p, x, gap, scratch, e)
        torch.expm1(x, out=e)
    if (doubt := shifted(compared, mean)) is not None and doubt.amin().item() < 0:
        return careful_kl(job)
    values = mean.log1p()
    if apart is not None:
        values = torch.where(apart.kl.isnan(), values - apart.log_near, apart.kl)
    to_p, to_q = job.gradients
    if to_q is not None and apart is None:
        torch.mul(e.sub_(mean).mul_(job.factor / (1 + mean)), p, out=to_q)
    elif to_q is not None and apart is not None:
        ratio(p, e, apart, scratch)
        torch.mul(e, p, out=to_q).add_(apart.q).mul_(job.factor)
    if to_p is not None:
        if apart is not None:
            x.sub_(expectation(p, x, scratch))
        torch.mul(x, p, out=to_p).mul_(-job.factor)
    return values.squeeze(-1).clamp_(min=0)
