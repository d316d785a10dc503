"""Entropy, cross-entropy, KL and what is built from them, for categorical distributions.

Two spellings of everything, never guessed: ``_from_probs`` takes probabilities that sum to one,
``_from_logits`` takes unnormalised log-probabilities and applies a softmax. Arguments in the order
of the mathematics: ``kl_from_logits(p, q)`` is D(p || q), swap them for the reverse.

Common arguments:
    dim: the dimension of the categories; the result has the shape of the others (broadcast).
    temperature: logits are divided by it before the softmax.
    support: bool, True for allowed categories, [categories] or broadcastable with the arguments.
        Logits are normalised over the support; probabilities off it are dropped and not
        renormalised.
    mask: bool, True for positions that count, broadcastable with the result; what stands in the
        others (NaN too) is never read, their value is 0, their gradient exactly 0.
    reduction: none, sum, batchmean or positionmean, see ``conventions.reduce``.
    unit: nats, bits or hartleys.
    validate: check the distributions themselves, which costs passes over the data: ValueError
        naming the argument if probabilities are negative, not finite or do not sum to one, if
        logits are NaN, +inf, or -inf throughout a row. Without it a row of such logits gives NaN.

Always raised as ValueError naming the argument: integer tensors, shapes that do not broadcast, no
categories, temperatures that are not positive, masks that are not bool, an unknown unit or
reduction. Half precision is computed and returned in float32. All functions are differentiable
twice, and no gradient is NaN at zero probabilities or logits of -inf.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, Unpack

import torch
from torch import Tensor

from ..conventions import (
    Reduction,
    Unit,
    check_reduction,
    check_weight,
    convert,
    fit_mask,
    only_plain_operations,
    reduce,
    reduction_weight,
    safe_root,
    unit_factor,
    widened,
)
from ..kernels.autograd import values_of_rows
from ..kernels.rows import KL_OF_PROBS, Divergence, entropy_rows, js_rows, kl_rows
from .pairs import (
    Pair,
    ReadingLogits,
    ReadingProbs,
    Single,
    kl_terms,
    pair_from_logits,
    pair_from_probs,
    pair_of_logits,
    pair_of_probs,
    read_logits,
    read_probs,
    single_from_probs,
    single_of_logits,
)

Made = TypeVar("Made", Single, Pair)


class ProbsOptions(ReadingProbs, total=False):
    """Keywords of every ``_from_probs`` function; the module's docstring explains them."""

    reduction: Reduction
    unit: Unit


class LogitsOptions(ProbsOptions, ReadingLogits, total=False):
    """Keywords of every ``_from_logits`` function."""


# The formulas: distributions with categories last -> nats, categories removed.


def entropy(made: Single | Pair) -> Tensor:
    """H(p) = -sum p log p."""
    return -(made.p * made.log_p).sum(-1)


def kl(pair: Pair) -> Tensor:
    """D(p || q)."""
    if pair.kl is None:
        return kl_terms(pair).sum(-1)
    return torch.where(pair.p_only.any(-1), torch.inf, pair.kl)


def cross_entropy(pair: Pair) -> Tensor:
    """H(p, q) = H(p) + D(p || q): neither is negative, so that nothing cancels."""
    return entropy(pair) + kl(pair)


def jeffreys(pair: Pair) -> Tensor:
    """sum (p - q) (log p - log q); no term is negative."""
    p, q, d = pair.p, pair.q, pair.d
    p_larger = d >= 0
    gap = torch.expm1(torch.where(p_larger, -d, d))  # smaller / larger - 1
    terms = gap * torch.where(p_larger, -p, q) * d
    return torch.where(pair.p_only | pair.q_only, torch.inf, terms).sum(-1)


def js(pair: Pair, weight: float) -> Tensor:
    """w D(p || m) + (1 - w) D(q || m) with m = w p + (1 - w) q; never above H(w)."""
    p, q, d = pair.p, pair.q, pair.d
    p_larger = d >= 0
    minus = torch.where(p_larger, -d, d)  # log smaller - log larger
    share = torch.where(p_larger, p.new_tensor(1 - weight), weight)  # of the smaller in m
    weights = torch.where(p_larger, p.new_tensor(weight), 1 - weight)
    # log m - log larger = log(weights + share exp(minus)), written twice so that neither cancels
    close = minus > -1
    near = torch.log1p(share * torch.expm1(torch.where(close, minus, 0.0)))
    far = torch.log(weights + share * torch.where(close, -torch.inf, minus).exp())
    larger_to_m = torch.where(close, near, far)
    smaller_to_m = larger_to_m - minus
    p_to_m = torch.where(p_larger, larger_to_m, smaller_to_m)
    q_to_m = torch.where(p_larger, smaller_to_m, larger_to_m)
    p_to_m = torch.where(pair.p_only, math.log(weight), p_to_m)  # there m is w p
    q_to_m = torch.where(pair.q_only, math.log1p(-weight), q_to_m)
    m = weight * p + (1 - weight) * q
    never = torch.zeros_like(pair.p_only)  # m is 0 only where both are
    p_m = Pair(p, m, pair.log_p, -p_to_m, p_only=never, q_only=pair.q_only)
    q_m = Pair(q, m, pair.log_p - d, -q_to_m, p_only=never, q_only=pair.p_only)
    return (weight * kl_terms(p_m) + (1 - weight) * kl_terms(q_m)).sum(-1)


def _js_distance(unit: Unit) -> Callable[[Pair], Tensor]:
    """The root of the divergence in the given unit, with gradient 0 where the two are equal."""

    return lambda pair: safe_root(convert(js(pair, 0.5), "nats", unit))


def apply_formula(
    formula: Callable[[Made], Tensor],
    make: Callable[..., Made],
    distributions: tuple[Tensor, ...],
    options: LogitsOptions | ProbsOptions,
) -> Tensor:
    """formula(make(distributions)) in the unit and reduction asked for."""
    unit, reduction, reading = _parts(options)
    values = convert(formula(make(*distributions, **reading)), "nats", unit)
    return reduce(values, options.get("mask"), reduction)


def _parts(options: LogitsOptions | ProbsOptions) -> tuple[Unit, Reduction, dict[str, Any]]:
    """Unit, reduction, and how to read the distributions."""
    reading: dict[str, Any] = dict(options)
    unit, reduction = reading.pop("unit", "nats"), reading.pop("reduction", "none")
    check_reduction(reduction)
    return unit, reduction, reading


def _by_rows(
    divergence: Divergence,
    formula: Callable[..., Tensor],
    read: Callable[..., list[Tensor]],
    distributions: tuple[Tensor, ...],
    options: LogitsOptions | ProbsOptions,
) -> Tensor:
    """The same by a kernel, which computes the values and their gradients in one pass.

    ``formula`` is that of distributions as they are read; it serves transforms and compilers.
    """
    unit, reduction, reading = _parts(options)
    mask = options.get("mask")
    if only_plain_operations() or distributions[0].device.type == "mps":  # it has no float64
        values = formula(*read(*distributions, **reading))
        return reduce(convert(values, "nats", unit), mask, reduction)
    if not options.get("validate"):
        reading.pop("mask", None)
    ready = read(*distributions, **reading)
    shape = ready[0].shape[:-1]
    if mask is not None:
        mask = fit_mask(mask, shape, "mask")
    factor = unit_factor("nats", unit)
    if reduction == "none":
        values = values_of_rows(divergence, formula, ready, mask)
        return values if factor == 1 else values * factor
    counted = None if mask is None else int(mask.sum())
    weight = factor * reduction_weight(reduction, shape, counted)
    return values_of_rows(divergence, formula, ready, mask, weight)


# The functions. Shapes: [..., categories] -> [...], and see the module's docstring.


def entropy_from_probs(p: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """H(p) = -sum p log p, with 0 log 0 = 0."""
    return apply_formula(entropy, single_from_probs, (p,), options)


def entropy_from_logits(logits: Tensor, **options: Unpack[LogitsOptions]) -> Tensor:
    """H(softmax(logits / temperature))."""
    temperature = options.get("temperature", 1.0)
    return _by_rows(
        entropy_rows(temperature),
        lambda a: entropy(single_of_logits(a, temperature)),
        read_logits,
        (logits,),
        options,
    )


def kl_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """D(p || q) = sum p log(p / q) - p + q (Kullback and Leibler 1951).

    For distributions the last two terms sum to zero; with them no term is negative and nothing
    cancels. For measures that do not sum to one this is the generalised divergence (I-divergence,
    Csiszar 1991), never a silent normalisation. +inf where q = 0 < p.

    The gradients are log(p / q) and 1 - p / q: on the simplex the same as those of
    sum p log(p / q), whose extra constants point out of it.
    """
    return _by_rows(KL_OF_PROBS, lambda a, b: kl(pair_of_probs(a, b)), read_probs, (p, q), options)


def kl_from_logits(p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]) -> Tensor:
    """D(softmax(p_logits / T) || softmax(q_logits / T)).

    Never negative; exact to rounding also where the two are so close that log-probabilities differ
    in their last digits only. +inf where q_logits is -inf and p_logits is not. The gradient with
    respect to q_logits is (q - p) / T, the Hessian at p = q the Fisher matrix
    (diag(p) - p p^T) / T^2.
    """
    temperature = options.get("temperature", 1.0)
    return _by_rows(
        kl_rows(temperature),
        lambda a, b: kl(pair_of_logits(a, b, temperature)),
        read_logits,
        (p_logits, q_logits),
        options,
    )


def kl_from_logits_gradient(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Derivative of ``kl_from_logits`` with respect to q_logits, without autograd: q - p.

    [..., categories] both, the categories last. A finite number also where the KL is infinite.
    """
    p_logits, q_logits = widened(p_logits=p_logits, q_logits=q_logits)
    return q_logits.softmax(-1) - p_logits.softmax(-1)


def cross_entropy_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """H(p, q) = -sum p log q = H(p) + D(p || q)."""
    return apply_formula(cross_entropy, pair_from_probs, (p, q), options)


def cross_entropy_from_logits(
    p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]
) -> Tensor:
    """H(p, q) of two softmaxes."""
    return apply_formula(cross_entropy, pair_from_logits, (p_logits, q_logits), options)


def jeffreys_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """D(p || q) + D(q || p) (Jeffreys 1946), without a half; its root is not a metric."""
    return apply_formula(jeffreys, pair_from_probs, (p, q), options)


def jeffreys_from_logits(
    p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]
) -> Tensor:
    """D(p || q) + D(q || p) of two softmaxes."""
    return apply_formula(jeffreys, pair_from_logits, (p_logits, q_logits), options)


def js_from_probs(
    p: Tensor, q: Tensor, weight: float = 0.5, **options: Unpack[ProbsOptions]
) -> Tensor:
    """w D(p || m) + (1 - w) D(q || m), m = w p + (1 - w) q (Lin 1991, eq. 4.1).

    At most H(w, 1 - w), so ln 2 at the default weight, and finite on disjoint supports.

    Raises:
        ValueError: ``weight`` (that of p) is not strictly between 0 and 1.
    """
    check_weight(weight)
    return apply_formula(lambda pair: js(pair, weight), pair_from_probs, (p, q), options)


def js_from_logits(
    p_logits: Tensor, q_logits: Tensor, weight: float = 0.5, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The Jensen-Shannon divergence of two softmaxes; ``weight`` is that of p."""
    temperature = options.get("temperature", 1.0)
    return _by_rows(
        js_rows(weight, temperature),
        lambda a, b: js(pair_of_logits(a, b, temperature), weight),
        read_logits,
        (p_logits, q_logits),
        options,
    )


def js_distance_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """The root of the Jensen-Shannon divergence, a metric (Endres and Schindelin 2003).

    In bits it is the root of the divergence in bits.
    """
    formula = _js_distance(options.pop("unit", "nats"))
    return apply_formula(formula, pair_from_probs, (p, q), options)


def js_distance_from_logits(
    p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The Jensen-Shannon metric of two softmaxes."""
    formula = _js_distance(options.pop("unit", "nats"))
    return apply_formula(formula, pair_from_logits, (p_logits, q_logits), options)
