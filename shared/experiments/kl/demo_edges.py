"""Inputs at which ``F.kl_div`` and ``torch.distributions`` are wrong, and the right values.

The right value is worked out by hand beside every case; all inputs are float32.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as td

from shared.kl import kl_divergence, kl_from_logits

COLUMNS = (
    ("case", "D(p ‖ q) of", ""),
    ("peer", "torch's", ""),
    ("torch", "torch", ""),
    ("ours", "here", ""),
    ("truth", "right", ""),
)


class Case(NamedTuple):
    case: str
    parameters: tuple[Any, ...]
    peer: str
    torch: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    truth: float


def _kl_div(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _kl_div_probs(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    return F.kl_div(q_logits.log_softmax(-1), p_logits.softmax(-1), reduction="sum")


def _logits(case: str, p: list[float], q: list[float], truth: float, log: bool) -> Case:
    """A pair of softmaxes, against ``F.kl_div`` with or without ``log_target``."""
    peer, function = ("`F.kl_div`, log target", _kl_div) if log else ("`F.kl_div`", _kl_div_probs)
    return Case(f"logits {case}", (p, q), peer, function, kl_from_logits, truth)


def _objects(case: str, make: Callable[..., Any], p: Any, q: Any, truth: float) -> Case:
    """A pair of distributions, made of one parameter each."""

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return kl_divergence(*make(a, b))

    return Case(
        case, (p, q), "`kl_divergence`", lambda a, b: td.kl_divergence(*make(a, b)), ours, truth
    )


def _categorical(a: Tensor, b: Tensor) -> Any:
    return td.Categorical(logits=a), td.Categorical(logits=b)


def _binomial(a: Tensor, b: Tensor) -> Any:
    return td.Binomial(3, a), td.Binomial(3, b)


INF, LOG2 = math.inf, math.log(2)
A, B = [0, -INF, 1], [1, -INF, 0]
HALVES, SURE = [0.5, 0.5], [1 - 1e-12, 1e-12]
# log C + mean * logit + log(1 - 0.3), with C and the mean of Loaiza-Ganem et al. 2019
AGAINST_UNIFORM = math.log(2 * math.atanh(0.4) / 0.4 * 0.7) + (
    0.3 / -0.4 + 1 / (2 * math.atanh(0.4))
) * math.log(3 / 7)
CASES = (
    _logits("(0, -∞, 1) ‖ (1, -∞, 0)", A, B, math.tanh(0.5), log=True),
    _logits("(0, -∞, 1) ‖ (1, -∞, 0)", A, B, math.tanh(0.5), log=False),
    _logits(
        "(0, -∞, 0) ‖ (0, -1, 0)", [0, -INF, 0], [0, -1, 0], math.log1p(math.exp(-1) / 2), True
    ),
    _logits(
        "(0, -200, 1) ‖ (0, 0, 1)", [0, -200, 1], [0, 0, 1], math.log1p(1 / (1 + math.e)), False
    ),
    _objects("Categorical(logits 0, -∞, 1) ‖ (1, -∞, 0)", _categorical, A, B, math.tanh(0.5)),
    _objects("Categorical(logits 0, 0) ‖ (0, -200)", _categorical, [0, 0], [0, -200], 100 - LOG2),
    _objects(
        "Categorical(½, ½) ‖ (1 - 1e-12, 1e-12)",
        lambda a, b: (td.Categorical(a), td.Categorical(b)),
        HALVES,
        SURE,
        0.5 * math.log(0.25e12),
    ),
    _objects(
        "Bernoulli(½) ‖ Bernoulli(logit 20)",
        lambda a, b: (td.Bernoulli(a), td.Bernoulli(logits=b)),
        0.5,
        20,
        10 - LOG2,
    ),
    _objects("Binomial(3, 1) ‖ Binomial(3, ½)", _binomial, 1, 0.5, 3 * LOG2),
    _objects("Binomial(3, ½) ‖ Binomial(3, 0)", _binomial, 0.5, 0, INF),
    _objects("Poisson(0) ‖ Poisson(1)", lambda a, b: (td.Poisson(a), td.Poisson(b)), 0, 1, 1.0),
    _objects(
        "ContinuousBernoulli(0.3) ‖ Uniform(0, 1)",
        lambda a, b: (td.ContinuousBernoulli(a), td.Uniform(b - 1, b)),
        0.3,
        1,
        AGAINST_UNIFORM,
    ),
)


def outcome(function: Callable[..., Tensor], parameters: tuple[Any, ...]) -> str:
    """The value, and what is wrong with the gradients."""
    tensors = [torch.tensor(p, dtype=torch.float32, requires_grad=True) for p in parameters]
    value = function(*tensors).sum()
    gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    broken = any(g is None or bool(g.isnan().any()) for g in gradients)
    return f"{value.item():.6g}{', gradient nan' if broken else ''}"


def edge_table() -> list[dict[str, Any]]:
    """A row for every case."""
    return [
        {
            "case": case.case,
            "peer": case.peer,
            "torch": outcome(case.torch, case.parameters),
            "ours": outcome(case.ours, case.parameters),
            "truth": f"{case.truth:.6g}",
        }
        for case in CASES
    ]
