"""Where ``F.kl_div`` and ``torch.distributions`` go wrong, what is right, and what we say.

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


def _objects(
    case: str, make: Callable[..., tuple[Any, Any]], parameters: tuple[Any, ...], truth: float
) -> Case:
    """A pair of distributions made of the parameters."""
    return Case(
        case,
        parameters,
        "`kl_divergence`",
        lambda *tensors: td.kl_divergence(*make(*tensors)),
        lambda *tensors: kl_divergence(*make(*tensors)),
        truth,
    )


def _kl_div(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _kl_div_probs(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    return F.kl_div(q_logits.log_softmax(-1), p_logits.softmax(-1), reduction="sum")


INF = math.inf
CASES = (
    Case(
        "logits (0, -∞, 1) ‖ (1, -∞, 0)",
        ([0, -INF, 1], [1, -INF, 0]),
        "`F.kl_div`, log target",
        _kl_div,
        kl_from_logits,
        math.tanh(0.5),
    ),
    Case(
        "logits (0, -∞, 1) ‖ (1, -∞, 0)",
        ([0, -INF, 1], [1, -INF, 0]),
        "`F.kl_div`",
        _kl_div_probs,
        kl_from_logits,
        math.tanh(0.5),
    ),
    Case(
        "logits (0, -∞, 0) ‖ (0, -1, 0)",
        ([0, -INF, 0], [0, -1, 0]),
        "`F.kl_div`, log target",
        _kl_div,
        kl_from_logits,
        math.log1p(math.exp(-1) / 2),
    ),
    Case(
        "logits (0, -200, 1) ‖ (0, 0, 1)",
        ([0, -200, 1], [0, 0, 1]),
        "`F.kl_div`",
        _kl_div_probs,
        kl_from_logits,
        math.log1p(1 / (1 + math.e)),
    ),
    _objects(
        "Categorical(logits 0, -∞, 1) ‖ (1, -∞, 0)",
        lambda a, b: (td.Categorical(logits=a), td.Categorical(logits=b)),
        ([0, -INF, 1], [1, -INF, 0]),
        math.tanh(0.5),
    ),
    _objects(
        "Categorical(logits 0, 0) ‖ (0, -200)",
        lambda a, b: (td.Categorical(logits=a), td.Categorical(logits=b)),
        ([0, 0], [0, -200]),
        100 - math.log(2),
    ),
    _objects(
        "Categorical(½, ½) ‖ (1 - 1e-12, 1e-12)",
        lambda a, b: (td.Categorical(a), td.Categorical(b)),
        ([0.5, 0.5], [1 - 1e-12, 1e-12]),
        0.5 * math.log(0.25e12),
    ),
    _objects(
        "Bernoulli(½) ‖ Bernoulli(logit 20)",
        lambda a, b: (td.Bernoulli(a), td.Bernoulli(logits=b)),
        (0.5, 20),
        10 - math.log(2),
    ),
    _objects(
        "Binomial(3, 1) ‖ Binomial(3, ½)",
        lambda a, b: (td.Binomial(3, a), td.Binomial(3, b)),
        (1, 0.5),
        3 * math.log(2),
    ),
    _objects(
        "Binomial(3, ½) ‖ Binomial(3, 0)",
        lambda a, b: (td.Binomial(3, a), td.Binomial(3, b)),
        (0.5, 0),
        INF,
    ),
    _objects("Poisson(0) ‖ Poisson(1)", lambda a, b: (td.Poisson(a), td.Poisson(b)), (0, 1), 1.0),
    _objects(
        "ContinuousBernoulli(0.3) ‖ Uniform(0, 1)",
        lambda a, b: (td.ContinuousBernoulli(a), td.Uniform(b - 1, b)),
        (0.3, 1),
        # log C + mean * logit + log(1 - 0.3), with C and the mean of Loaiza-Ganem et al. 2019
        math.log(2 * math.atanh(0.4) / 0.4 * 0.7)
        + (0.3 / -0.4 + 1 / (2 * math.atanh(0.4))) * math.log(3 / 7),
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
