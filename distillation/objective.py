"""Divergences between teacher and student, in nats: pure functions of logits [batch, classes].

The teacher's soft targets are softmax(logits / T), with T the temperature.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kl import js_from_logits, kl_from_logits, skew_kl_from_logits

Objective = Literal["forward", "reverse", "js", "skew", "decoupled"]


def cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """-log q(label), [batch]."""
    return F.cross_entropy(student, labels, reduction="none")


def forward(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at temperature T, [batch]."""
    return kl_from_logits(teacher, student, temperature=temperature)


def reverse(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(student || teacher) at temperature T, [batch]."""
    return kl_from_logits(student, teacher, temperature=temperature)


def js(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence at temperature T, [batch]; at most ln 2."""
    return js_from_logits(teacher, student, temperature=temperature)


def skew(teacher: Tensor, student: Tensor, temperature: float, share: float) -> Tensor:
    """KL(teacher || share teacher + (1 - share) student), [batch]; Ko et al. 2024, eq. 3."""
    if share == 0:
        return forward(teacher, student, temperature)
    return skew_kl_from_logits(teacher, student, share, temperature=temperature)


def decoupled(
    teacher: Tensor, student: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """KL of the pair (target, rest) and KL among the other classes; Zhao et al. 2022, eq. 5.

    With p the teacher's probability of the target, the sum of the first and 1 - p times the second
    is KL(teacher || student).

    Returns:
        the target's and the non-targets' KL, each [batch], teacher's distribution first.
    """
    target = F.one_hot(labels, teacher.shape[-1]).bool()
    pairs = []
    for logits in (teacher, student):
        scaled = logits / temperature
        rest = scaled.masked_fill(target, -torch.inf).logsumexp(-1)
        pairs.append(torch.stack([scaled[target], rest], -1))
    others = kl_from_logits(teacher, student, temperature=temperature, support=~target)
    return kl_from_logits(*pairs), others
