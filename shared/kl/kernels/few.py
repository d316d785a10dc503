"""The kernels for a few elements, where steps cost more than elements.

float32 becomes float64, in which a difference loses nothing that float32 could tell: no series, no
cases, no buffers. What is not finite in the result has to be computed otherwise.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .entropy import NEVER, log_of_total
from .job import Gradients

Result = tuple[Tensor, Gradients]  # [rows], and to what softmaxes or probabilities are made of


def kl(a: Tensor, b: Tensor, needed: Sequence[bool]) -> Result:
    """sum p (exp(-d) - 1 + d), d = log p - log q; gradients p (d - D(p || q)) and q - p."""
    log_p = a.log_softmax(-1)
    minus_d = b.log_softmax(-1) - log_p
    p = log_p.exp()
    gap = minus_d.expm1().mul_(p)  # q - p
    terms = p * minus_d
    value = (gap - terms).sum(-1)
    return value, (terms.neg_().sub_(p * value[..., None]) if needed[0] else None, gap)


def js(a: Tensor, b: Tensor, needed: Sequence[bool], weight: float) -> Result:
    """w D(p || m) + (1 - w) D(q || m), from log m/p = log(1 + (1 - w) (q / p - 1))."""
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    p, q, log_ratio = log_p.exp(), log_q.exp(), log_q - log_p
    gap = log_ratio.expm1()  # q / p - 1
    log_m_p = (gap * (1 - weight)).log1p()
    log_q_m = log_ratio.sub_(log_m_p)
    gap.mul_(p)
    kl_p = (gap * (1 - weight) - p * log_m_p).sum(-1, keepdim=True)
    kl_q = (q * log_q_m - gap * weight).sum(-1, keepdim=True)
    value = (weight * kl_p + (1 - weight) * kl_q).squeeze(-1)
    to_p = log_m_p.add_(kl_p).mul_(p).mul_(-weight) if needed[0] else None
    to_q = log_q_m.sub_(kl_q).mul_(q).mul_(1 - weight) if needed[-1] else None
    return value, (to_p, to_q)


def skew_kl(a: Tensor, b: Tensor, needed: Sequence[bool], weight: float) -> Result:
    """D(p || m), m = w p + (1 - w) q; see ``mixture.skew_kl`` for the gradients."""
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    gap = (log_q - log_p).expm1_().mul_(1 - weight)
    log_m_p = gap.log1p()
    value = (gap - log_m_p).mul_(p).sum(-1)
    s = log_m_p.neg().expm1_()
    to_p = to_q = None
    if needed[0]:
        g = log_m_p.add(s, alpha=weight)
        to_p = g.sub_((p * g).sum(-1, keepdim=True)).mul_(p).neg_()
    if needed[-1]:
        to_q = s.sub_((q * s).sum(-1, keepdim=True)).mul_(q).mul_(weight - 1)
    return value, (to_p, to_q)


def entropy(a: Tensor, _: Tensor, needed: Sequence[bool]) -> Result:
    """log Z - E z with z = a - max a, and the gradient -p (z - E z)."""
    z = (a - a.amax(-1, keepdim=True)).clamp_(min=NEVER)
    p = z.exp()
    total = p.sum(-1, keepdim=True)
    log_total = log_of_total(p, z, total, nearly_certain=1.001)
    p.div_(total)
    mean = (p * z).sum(-1, keepdim=True)
    to_a = z.sub_(mean).mul_(p).neg_() if needed[0] else None
    return (log_total - mean).squeeze(-1), (to_a, None)


def kl_of_probs(p: Tensor, q: Tensor, needed: Sequence[bool]) -> Result:
    """sum p log(p / q) - p + q, gradients log(p / q) and 1 - p / q."""
    gap = q - p
    log_ratio = gap.abs().div_(torch.minimum(p, q)).log1p_().copysign_(gap)  # log(q / p)
    value = (gap - p * log_ratio).sum(-1)
    return value, (log_ratio.neg_() if needed[0] else None, gap.div_(q) if needed[-1] else None)
