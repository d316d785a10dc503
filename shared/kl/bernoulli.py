"""Bernoulli log-likelihood and KL from logits, per variable, in nats."""

import torch.nn.functional as F
from torch import Tensor


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """x log s + (1 - x) log(1 - s) with s = sigmoid(logits), per variable.

    Args:
        x: values in {0, 1}, or in [0, 1]: then this is minus a cross-entropy and no longer the
            log-density of x (Loaiza-Ganem and Cunningham 2019).
        logits: log-odds, any shape that broadcasts with ``x``.

    Returns:
        Nats, broadcast shape, never positive.
    """
    return x * logits - F.softplus(logits)


def kl_bernoulli(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(p_logits)) || Bernoulli(sigmoid(q_logits))), per variable.

    The Bregman form D = A(q) - A(p) - A'(p) (q - p) with A = softplus, the log-normaliser
    (Wainwright and Jordan 2008, eq. 5.14 with the natural parameters exchanged), clamped at zero
    against the last rounding.

    Returns:
        Nats, broadcast shape, never negative.
    """
    p = p_logits.sigmoid()
    gap = F.softplus(q_logits) - F.softplus(p_logits) - p * (q_logits - p_logits)
    return gap.clamp(min=0)
