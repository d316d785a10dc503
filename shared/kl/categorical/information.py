"""Single outcomes of a KL, mutual information of a joint distribution, perplexity.

The keywords are those of ``categorical.discrete``.
"""

from typing import Unpack

import torch
from torch import Tensor

from ..conventions import Reduction, Unit, check_reduction, convert, fit_mask, reduce, widened
from .apply import LogitsOptions, ProbsOptions
from .discrete import cross_entropy_from_logits, cross_entropy_from_probs, kl_from_probs
from .pairs import Pair, pair_from_logits, pair_from_probs, single_from_logits, single_from_probs
from .reading import ReadingLogits, ReadingProbs


def _pointwise(pair: Pair, unit: Unit, reading: ReadingProbs) -> Tensor:
    terms = torch.where(pair.p_only, torch.inf, pair.p * pair.d)
    mask = reading.get("mask")
    if mask is not None:
        terms = torch.where(fit_mask(mask, terms.shape[:-1], "mask")[..., None], terms, 0.0)
    return convert(terms, "nats", unit).movedim(-1, reading.get("dim", -1))


def pointwise_kl_from_probs(
    p: Tensor, q: Tensor, *, unit: Unit = "nats", **reading: Unpack[ReadingProbs]
) -> Tensor:
    """The signed terms p log(p / q), one per outcome, in the broadcast shape of p and q.

    They sum to D(p || q); a single one says how much an outcome contributes and may be negative. 0
    where p = 0, +inf where q = 0 < p.
    """
    return _pointwise(pair_from_probs(p, q, **reading), unit, reading)


def pointwise_kl_from_logits(
    p_logits: Tensor, q_logits: Tensor, *, unit: Unit = "nats", **reading: Unpack[ReadingLogits]
) -> Tensor:
    """The signed terms p log(p / q) of two softmaxes, in the broadcast shape of the logits."""
    return _pointwise(pair_from_logits(p_logits, q_logits, **reading), unit, reading)


def mutual_information_from_probs(
    joint: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
    unit: Unit = "nats",
    validate: bool = False,
) -> Tensor:
    """I(X; Y) = D(p(x, y) || p(x) p(y)) of a joint distribution [..., x, y] -> [...].

    Never negative, and 0 where x and y are independent; never above the smaller of H(X), H(Y).

    Raises:
        ValueError: fewer than two dimensions, and as in ``kl_from_probs``.
    """
    if joint.dim() < 2:
        raise ValueError(f"joint must have dimensions [..., x, y], got {list(joint.shape)}")
    check_reduction(reduction)
    flat = single_from_probs(joint.flatten(-2), mask=mask, validate=validate).p
    joint = flat.unflatten(-1, joint.shape[-2:])
    # E_x D(p(y | x) || p(y)): a product of the marginals may underflow.
    p_x, p_y = joint.sum(-1), joint.sum(-2)
    given_x = joint / torch.where(p_x > 0, p_x, 1.0)[..., None]
    nats = (p_x * kl_from_probs(given_x, p_y[..., None, :])).sum(-1)
    return reduce(convert(nats, "nats", unit), mask, reduction)


def mutual_information_from_logits(
    joint_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
    unit: Unit = "nats",
    validate: bool = False,
) -> Tensor:
    """I(X; Y) of the softmax over both last dimensions [..., x, y] -> [...]."""
    if joint_logits.dim() < 2:
        raise ValueError(
            f"joint_logits must have dimensions [..., x, y], got {list(joint_logits.shape)}"
        )
    flat = joint_logits.flatten(-2)
    joint = single_from_logits(flat, temperature=temperature, mask=mask, validate=validate).p
    return mutual_information_from_probs(
        joint.unflatten(-1, joint_logits.shape[-2:]), mask=mask, reduction=reduction, unit=unit
    )


def perplexity(cross_entropy: Tensor, unit: Unit = "nats") -> Tensor:
    """exp of a cross-entropy (or entropy) given in ``unit``: the effective number of outcomes."""
    (cross_entropy,) = widened(cross_entropy=cross_entropy)
    return convert(cross_entropy, unit, "nats").exp()


def perplexity_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """exp H(p, q) of outcomes from p under the model q, after the reduction; no unit.

    exp of the mean is what language models report; the mean of exps is another number.
    """
    options["unit"] = "nats"
    return cross_entropy_from_probs(p, q, **options).exp()


def perplexity_from_logits(
    p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]
) -> Tensor:
    """exp H(p, q) of two softmaxes, after the reduction."""
    options["unit"] = "nats"
    return cross_entropy_from_logits(p_logits, q_logits, **options).exp()
