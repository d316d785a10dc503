"""The losses, in nats per digit: pure functions of logits [batch, classes]."""

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kl import kl_from_logits


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label), [batch]."""
    return F.cross_entropy(logits, labels, reduction="none")


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL(p || uniform) = log classes - H(p), [batch]; Pereyra et al. 2017, section 3."""
    return kl_from_logits(logits, torch.zeros_like(logits))
