"""Bernoulli log-likelihood and KL from logits, per variable, in nats."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conventions import lifted, only_plain_operations, widened
from ..gaussian.diagonal import expm1_minus_x


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """x log s + (1 - x) log(1 - s) with s = sigmoid(logits), per variable.

    Args:
        x: values in {0, 1}, or in [0, 1]: then this is minus a cross-entropy and no longer the
            log-density of x (Loaiza-Ganem and Cunningham 2019).
        logits: log-odds, any shape that broadcasts with ``x``.

    Returns:
        Nats, broadcast shape, at most 0.
    """
    x, logits = widened(x=x, logits=logits)
    if only_plain_operations():
        return _log_prob(x, logits)
    result: Tensor = _LogProb.apply(x, logits)
    return result


def _log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """(x - 1) l - log(1 + exp(-l)) where l > 0, and x l - log(1 + exp(l)) elsewhere.

    No digit is lost where x is the likelier outcome; 0 there at infinite log-odds, not 0 * inf.
    """
    likely = logits > 0
    above = x - likely.to(x.dtype)
    sure = logits.isinf() & (above == 0)
    linear = above * torch.where(sure, 0.0, logits)
    return linear - F.softplus(torch.where(likely, -logits, logits))


_FAR = 2.0**24  # times the largest number it is infinite


class _LogProb(torch.autograd.Function):
    """The same with its derivative x - sigmoid(logits), as one node of the graph.

    x l - max(l, 0) is exact where x is the likelier outcome, and a fraction of the time of
    ``torch.where``. Infinite log-odds are made finite for it, and again infinite by overflow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(x, logits)
        largest = torch.finfo(logits.dtype).max
        finite = logits.clamp(-largest, largest)
        linear = (x * finite).sub_(finite.relu()).mul_(_FAR).mul_(1 / _FAR)
        return linear.add_(F.logsigmoid(logits.abs()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, logits = ctx.saved_tensors
        to_x = (grad * logits).sum_to_size(x.shape) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None
        return to_x, (grad * (x - logits.sigmoid())).sum_to_size(logits.shape)


def kl_bernoulli(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(p_logits)) || Bernoulli(sigmoid(q_logits))), per variable.

    The Bregman form D = A(q) - A(p) - A'(p) (q - p) with A = softplus, the log-normaliser
    (Wainwright and Jordan 2008, eq. 5.14 with the natural parameters exchanged). Where the logits
    are close, its terms cancel (at a gap of 1e-4 nothing is right in float32); with d = q - p,
    s = A'(p) and w = A(q) - A(p) = log1p(s expm1(d)) it equals s E(d) - E(w), E(x) = exp(x) - 1 -
    x, which keeps all digits.

    Returns:
        Nats, broadcast shape, never negative, right to a few units in the last place of the KL.
    """
    p_logits, q_logits = widened(p_logits=p_logits, q_logits=q_logits)
    # D is the same with both outcomes exchanged, and no digits are lost while sigmoid(p) <= 1/2.
    exchanged = p_logits > 0
    p = torch.where(exchanged, -p_logits, p_logits)
    q = torch.where(exchanged, -q_logits, q_logits)
    # Infinite log-odds: p is certain of its outcome (then -log of q's), or q of either.
    infinite = p.isinf() | q.isinf()
    certain = -F.logsigmoid(-torch.where(q.isinf(), 0.0, q))
    at_infinity = torch.where(p == q, 0.0, torch.where(q.isinf(), torch.inf, certain))
    p, q = torch.where(infinite, 0.0, p), torch.where(infinite, 0.0, q)
    s, d = p.sigmoid(), q - p
    near = d.abs() < 1
    d_near = torch.where(near, d, 0.0)  # double where, as in expm1_minus_x
    w = torch.log1p(s * torch.expm1(d_near))
    close = s * expm1_minus_x(d_near) - expm1_minus_x(w)
    # -logsigmoid(-x) is softplus(x) without F.softplus's change of formula at x = 20.
    apart = F.logsigmoid(-p) - F.logsigmoid(-q) - s * d
    return torch.where(infinite, at_infinity, lifted(torch.where(near, close, apart)))
