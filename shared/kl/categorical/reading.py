"""Reading distributions: checked, categories last, zero off the support, float32 at least."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from ..conventions import (
    Temperature,
    broadcast,
    categories_last,
    check_floating,
    check_logits,
    check_probs,
    fit_mask,
)


class ReadingProbs(TypedDict, total=False):
    """How probabilities are read."""

    dim: int
    support: Tensor | None
    mask: Tensor | None
    validate: bool


class ReadingLogits(ReadingProbs, total=False):
    """How logits are read."""

    temperature: Temperature


def _fit_support(support: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """The mask of allowed categories, [categories] or as the distributions before, expanded."""
    return fit_mask(support if support.dim() == 1 else support.movedim(dim, -1), shape, "support")


def _rounding(p: Tensor) -> float:
    return torch.finfo(p.dtype).eps if p.is_floating_point() else 0.0


def _ready_probs(
    name: str,
    p: Tensor,
    rounding: float,
    *,
    dim: int = -1,
    support: Tensor | None = None,
    mask: Tensor | None = None,
    validate: bool = False,
) -> Tensor:
    """Probabilities ready for use: categories last, zero off the support, float32 at least."""
    check_floating(**{name: p})
    p = categories_last(name, p, dim).to(torch.promote_types(p.dtype, torch.float32))
    if support is not None:
        p = torch.where(_fit_support(support, dim, p.shape), p, 0.0)
    if mask is not None:  # what stands where nothing counts is replaced before it is used
        p = torch.where(fit_mask(mask, p.shape[:-1], "mask")[..., None], p, 1.0 / p.shape[-1])
    if validate:
        check_probs(name, p, rounding)
    return p


def _ready_logits(
    name: str,
    logits: Tensor,
    *,
    dim: int = -1,
    support: Tensor | None = None,
    mask: Tensor | None = None,
    validate: bool = False,
) -> Tensor:
    """Logits, not yet over T: categories last, -inf off the support, float32 at least."""
    check_floating(**{name: logits})
    a = categories_last(name, logits, dim).to(torch.promote_types(logits.dtype, torch.float32))
    if support is not None:
        a = torch.where(_fit_support(support, dim, a.shape), a, -torch.inf)
    if mask is not None:
        a = torch.where(fit_mask(mask, a.shape[:-1], "mask")[..., None], a, 0.0)
    if validate:
        check_logits(name, a)
    return a


def read_probs(*distributions: Tensor, **reading: Unpack[ReadingProbs]) -> list[Tensor]:
    """One or two tensors of probabilities, ready for use."""
    if not reading and _are_ready(distributions):
        return list(distributions)
    names, roundings = "p q".split(), [_rounding(tensor) for tensor in distributions]
    if len(distributions) == 2:
        distributions = broadcast("p", distributions[0], "q", distributions[1], _dim(reading))
    return [
        _ready_probs(name, tensor, rounding, **reading)
        for name, tensor, rounding in zip(names, distributions, roundings, strict=False)
    ]


def read_logits(*distributions: Tensor, **reading: Unpack[ReadingLogits]) -> list[Tensor]:
    """One or two tensors of logits, ready for use but not yet over the temperature."""
    reading.pop("temperature", None)
    if not reading and _are_ready(distributions):
        return list(distributions)
    names = ["logits"] if len(distributions) == 1 else ["p_logits", "q_logits"]
    return _read_logits(names, distributions, reading)


def read_log_probs(*distributions: Tensor, **reading: Unpack[ReadingProbs]) -> list[Tensor]:
    """One or two tensors of log-probabilities, ready for use."""
    names = ["log_p", "log_q"]
    ready = _read_logits(names, distributions, reading)
    if reading.get("validate"):
        for name, given, log_p in zip(names, distributions, ready, strict=False):
            check_probs(name, log_p.exp(), _rounding(given), "exp of ")
    return ready


def _read_logits(
    names: Sequence[str], distributions: tuple[Tensor, ...], reading: ReadingProbs
) -> list[Tensor]:
    if len(distributions) == 2:
        first, second = distributions
        distributions = broadcast(names[0], first, names[1], second, _dim(reading))
    return [
        _ready_logits(name, tensor, **reading)
        for name, tensor in zip(names, distributions, strict=False)
    ]


def _are_ready(distributions: tuple[Tensor, ...]) -> bool:
    """Most often there is nothing to do, and to find that out costs as much as a small KL."""
    first, last = distributions[0], distributions[-1]
    return (
        first.dtype in (torch.float32, torch.float64)
        and first.dtype == last.dtype
        and first.shape == last.shape
        and first.dim() > 0
        and first.shape[-1] > 0
    )


def _dim(reading: ReadingProbs) -> int:
    return reading.get("dim", -1)
