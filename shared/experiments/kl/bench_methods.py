"""The ways to compute a KL and its gradient that ``shared.experiments.kl.bench`` compares."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from shared.kl import chunked_js, chunked_kl, fused_linear_kl, js_from_logits, kl_from_logits
from shared.kl.categorical.formulas import kl
from shared.kl.categorical.pairs import pair_from_logits


class Method(NamedTuple):
    """``loss`` of (teacher, student) logits, or (hidden, weight, hidden, weight) -> mean KL."""

    title: str
    loss: Callable[..., Tensor]
    compiles: bool = False


def _probs(p: Tensor, q: Tensor, reduction: str = "batchmean") -> Tensor:
    return F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction=reduction)


def _log_target(p: Tensor, q: Tensor, reduction: str = "batchmean") -> Tensor:
    log_q, log_p = q.log_softmax(-1), p.log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction=reduction, log_target=True)


def _categorical(p: Tensor, q: Tensor) -> Tensor:
    return kl_divergence(Categorical(logits=p), Categorical(logits=q))


@cache
def _compiled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(loss)


def _ours(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda p, q: chunked_kl(p, q, reduction="positionmean", **options)


def _liger(p: Tensor, q: Tensor) -> Tensor:
    kernels: Any = import_module("liger_kernel.transformers")  # optional, needs a GPU
    loss = kernels.LigerKLDIVLoss(reduction="batchmean", log_target=True)
    return loss(q.log_softmax(-1), p.log_softmax(-1))


def _heads(p_hidden: Tensor, p_weight: Tensor, q_hidden: Tensor, q_weight: Tensor) -> Tensor:
    return _log_target(p_hidden @ p_weight.T, q_hidden @ q_weight.T)


LOGITS = {  # the first is what ratios refer to
    "kl_div": Method("`F.kl_div`, probabilities", _probs),
    "log_target": Method("`F.kl_div`, `log_target=True`", _log_target),
    "categorical": Method("`Categorical`, `kl_divergence`", lambda p, q: _categorical(p, q).mean()),
    "compiled": Method(
        "`torch.compile` of the first", lambda p, q: _compiled(_probs)(p, q), compiles=True
    ),
    "compiled_log": Method(
        "`torch.compile` of the second", lambda p, q: _compiled(_log_target)(p, q), compiles=True
    ),
    "front": Method(
        "`kl_from_logits`", lambda p, q: kl_from_logits(p, q, reduction="positionmean")
    ),
    "js_front": Method(
        "`js_from_logits`", lambda p, q: js_from_logits(p, q, reduction="positionmean")
    ),
    "chunked": Method("`chunked_kl`", _ours()),
    "chunked_inplace": Method("`chunked_kl`, in place", _ours(inplace=True)),
    "js_inplace": Method(
        "`chunked_js`, in place",
        lambda p, q: chunked_js(p, q, reduction="positionmean", inplace=True),
    ),
}
LIGER = {"liger": Method("Liger's `LigerKLDIVLoss`", _liger)}
HEADS = {
    "heads": Method("both logits, then `F.kl_div`, `log_target=True`", _heads),
    "fused_heads": Method(
        "`fused_linear_kl`", lambda *tensors: fused_linear_kl(*tensors, reduction="positionmean")
    ),
}
METHODS = LOGITS | LIGER | HEADS

SCALES = {1.0: "0.5", 1e-2: "5e-5", 1e-3: "5e-7", 1e-4: "5e-9"}
"""Standard deviation of the difference of logits, and the KL it makes."""

VALUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # [rows, vocabulary] -> [rows]
    "`F.kl_div`, probabilities": lambda p, q: _probs(p, q, "none").sum(-1),
    "`F.kl_div`, `log_target=True`": lambda p, q: _log_target(p, q, "none").sum(-1),
    "`Categorical`, `kl_divergence`": _categorical,
    "`kl_from_logits`": kl_from_logits,
    "`chunked_kl`": chunked_kl,
}


def precision(vocabulary: int, device: str, rows: int = 16) -> list[dict[str, Any]]:
    """Median relative errors of float32 values and gradients, against float64 of the same logits.

    The float64 reference is the formula in torch's operations, which the tests hold against 30
    digits.
    """
    rng = torch.Generator(device).manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(rows, vocabulary, generator=rng, device=device)

    p = normal().mul_(3)
    table: list[dict[str, Any]] = [{"name": name} for name in VALUES]
    for scale in SCALES:
        q = p + scale * normal()
        truth = kl(pair_from_logits(p.double(), q.double()))
        slope = q.double().softmax(-1) - p.double().softmax(-1)
        for line, compute in zip(table, VALUES.values(), strict=True):
            student = q.clone().requires_grad_()
            value = compute(p, student)
            (gradient,) = torch.autograd.grad(value.sum(), student)
            error = (value.detach() / truth - 1).abs().median()
            line[f"value_{scale:g}"] = float(f"{error.item():.3g}")
            line["negative"] = (value < 0).double().mean().item()  # of the last scale
            off = ((gradient - slope).norm(dim=-1) / slope.norm(dim=-1)).median()
            line["gradient"] = float(f"{off.item():.3g}")
    return table
