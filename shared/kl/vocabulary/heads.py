"""The last layer of a language model: from hidden states to logits."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conventions import check_floating


class Head(NamedTuple):
    """logits = hidden @ weight.T + bias, with hidden [n, width], weight [vocabulary, width].

    With a soft cap c they are c tanh(logits / c) (Gemma 2, Riviere et al. 2024, section 2).
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    soft_cap: float | None = None

    def logits(self, rows: Tensor) -> Tensor:
        """[rows, vocabulary], in the heads' own precision."""
        logits = F.linear(self.hidden[rows], self.weight, self.bias)
        return (
            logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)
        )

    def slope_of_cap(self, logits: Tensor) -> Tensor | None:
        """The derivative of capped logits to those before the cap: 1 - (logits / c)^2."""
        return None if self.soft_cap is None else 1 - (logits / self.soft_cap).square()


def wants_gradient(head: Head) -> bool:
    tensors = (head.hidden, head.weight, head.bias)
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def check_heads(p: Head, q: Head) -> None:
    for side, head in (("p", p), ("q", q)):
        named = {f"{side}_hidden": head.hidden, f"{side}_weight": head.weight}
        check_floating(**named)
        if head.hidden.dim() < 2 or head.weight.dim() != 2:
            raise ValueError(
                f"{side}_hidden and {side}_weight must have shapes [..., width] and "
                f"[vocabulary, width], got {list(head.hidden.shape)} and {list(head.weight.shape)}"
            )
        if head.hidden.shape[-1] != head.weight.shape[1]:
            raise ValueError(
                f"{side}_hidden of width {head.hidden.shape[-1]} does not fit {side}_weight of "
                f"shape {list(head.weight.shape)}"
            )
        if head.bias is not None and head.bias.shape != head.weight.shape[:1]:
            raise ValueError(
                f"{side}_bias of shape {list(head.bias.shape)} does not fit {side}_weight of "
                f"shape {list(head.weight.shape)}"
            )
    for name, cap in (("p_soft_cap", p.soft_cap), ("q_soft_cap", q.soft_cap)):
        if cap is not None and not 0 < cap < torch.inf:
            raise ValueError(f"{name} must be positive and finite, got {cap}")
    if p.hidden.shape[:-1] != q.hidden.shape[:-1] or len(p.weight) != len(q.weight):
        raise ValueError(
            "p and q differ in positions or vocabulary: p_hidden, p_weight of shape "
            f"{list(p.hidden.shape)}, {list(p.weight.shape)}, q_hidden, q_weight of shape "
            f"{list(q.hidden.shape)}, {list(q.weight.shape)}"
        )
