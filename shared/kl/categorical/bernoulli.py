"""Bernoulli log-likelihood and KL from logits, per variable, in nats."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conventions import lifted
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
    return x * logits - F.softplus(logits)


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
    # D is the same with both outcomes exchanged, and no digits are lost while sigmoid(p) <= 1/2.
    side = torch.where(p_logits > 0, -1.0, 1.0).to(p_logits.dtype)
    p, q = side * p_logits, side * q_logits
    s, d = p.sigmoid(), q - p
    near = d.abs() < 1
    d_near = torch.where(near, d, 0.0)  # double where, as in expm1_minus_x
    w = torch.log1p(s * torch.expm1(d_near))
    close = s * expm1_minus_x(d_near) - expm1_minus_x(w)
    # -logsigmoid(-x) is softplus(x) without F.softplus's change of formula at x = 20.
    apart = F.logsigmoid(-p) - F.logsigmoid(-q) - s * d
    return lifted(torch.where(near, close, apart))
