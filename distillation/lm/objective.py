"""The losses of the student, in nats summed over the predictions that count: pure functions.

Hidden states come in as [positions, width] with the output head of their model; logits
[positions, vocabulary] are computed from them here, of all positions or of a few at a time.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distillation import objective as soft
from shared.kl import fused_linear_js, fused_linear_kl, fused_linear_skew_kl, kl_topk
from shared.language_models.head import OutputHead

Objective = Literal["forward", "reverse", "js", "skew", "ce"]
Logits = Literal["chunked", "full", "topk"]
POSITIONS = 128  # their logits are in memory at once


class LazyLogits(NamedTuple):
    """Logits not computed yet: of hidden states [..., width], by the head of their model."""

    hidden: Tensor
    head: OutputHead

    def at(self, rows: Tensor | slice | int) -> "LazyLogits":
        return LazyLogits(self.hidden[rows], self.head)

    def to(self, dtype: torch.dtype) -> "LazyLogits":
        return LazyLogits(self.hidden.to(dtype), self.head.to(dtype))

    def logits(self) -> Tensor:
        return self.head.logits(self.hidden).float()


class TopK(NamedTuple):
    """The k largest probabilities of a distribution as logarithms, and their tokens: [..., k]."""

    log_p: Tensor
    tokens: Tensor

    def at(self, rows: Tensor | slice) -> "TopK":
        return TopK(self.log_p[rows], self.tokens[rows])


def divergence(
    objective: Objective, teacher: Tensor, student: Tensor, temperature: float, skew: float
) -> Tensor:
    """The divergence of logits [positions, vocabulary] at temperature T, [positions]."""
    match objective:
        case "forward":
            return soft.forward(teacher, student, temperature)
        case "reverse":
            return soft.reverse(teacher, student, temperature)
        case "js":
            return soft.js(teacher, student, temperature)
        case _:
            return soft.skew(teacher, student, temperature, skew)


def full(
    objective: Objective, teacher: LazyLogits, student: LazyLogits, temperature: float, skew: float
) -> Tensor:
    """The divergence summed over positions, with the logits of all of them in memory."""
    logits = teacher.logits(), student.logits()
    return divergence(objective, *logits, temperature, skew).sum()


def chunked(
    objective: Objective, teacher: LazyLogits, student: LazyLogits, temperature: float, skew: float
) -> Tensor:
    """The same in little memory: logits exist for a few positions at a time."""
    match objective:
        case "forward":
            return _fused(fused_linear_kl, teacher, student, temperature)
        case "reverse":
            return _fused(fused_linear_kl, student, teacher, temperature)
        case "js":
            return _fused(fused_linear_js, teacher, student, temperature)
        case _:
            if skew == 0:
                return _fused(fused_linear_kl, teacher, student, temperature)
            return _fused(fused_linear_skew_kl, teacher, student, temperature, weight=skew)


def _fused(
    fused: Callable[..., Tensor], p: LazyLogits, q: LazyLogits, temperature: float, **options: float
) -> Tensor:
    return fused(
        p.hidden,
        p.head.weight,
        q.hidden,
        q.head.weight,
        p_bias=p.head.bias,
        q_bias=q.head.bias,
        p_soft_cap=p.head.soft_cap,
        q_soft_cap=q.head.soft_cap,
        temperature=temperature,
        reduction="sum",
        **options,
    )


def cross_entropy(student: LazyLogits, tokens: Tensor) -> Tensor:
    """-log student(token), summed; tokens [positions]."""

    def few(rows: slice) -> Tensor:
        return F.cross_entropy(student.at(rows).logits(), tokens[rows], reduction="sum")

    return _in_chunks(few, len(tokens))


def topk(teacher: TopK, student: LazyLogits, temperature: float) -> Tensor:
    """KL(teacher || student) over the teacher's k largest and one class for the rest, summed.

    Never above the full KL; ``teacher`` is of the same temperature.
    """

    def few(rows: slice) -> Tensor:
        log_p, tokens = teacher.at(rows)
        logits = student.at(rows).logits()
        return kl_topk(log_p, tokens.long(), logits, temperature=temperature, reduction="sum")

    return _in_chunks(few, len(student.hidden))


def _in_chunks(few: Callable[[slice], Tensor], positions: int) -> Tensor:
    """The sum of ``few`` over chunks of positions, each computed again in the backward pass."""
    total = torch.zeros(())
    for start in range(0, max(1, positions), POSITIONS):  # without positions: a gradient of zeros
        part = checkpoint(few, slice(start, start + POSITIONS), use_reentrant=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total
