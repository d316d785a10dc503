"""Entropy, cross-entropy, KL and what is built from them, for categorical distributions.

Three spellings of everything, never guessed: ``_from_probs`` takes probabilities that sum to one,
``_from_log_probs`` their logarithms, ``_from_logits`` unnormalised ones and applies a softmax.
Arguments in the order of the mathematics: ``kl_from_logits(p, q)`` is D(p || q), swap them for the
reverse.

Common arguments:
    dim: the dimension of the categories; the result has the shape of the others (broadcast).
    temperature: logits are divided by it before the softmax: a number, or a tensor broadcastable
        with the result, such as [batch, 1], to which there is a gradient if it requires one.
    support: bool, True for allowed categories, [categories] or broadcastable with the arguments.
        Logits and log-probabilities are normalised over the support; probabilities off it are
        dropped and not renormalised.
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

from collections.abc import Callable
from functools import partial
from typing import Unpack

from torch import Tensor

from ..conventions import Temperature, Unit, check_weight, convert, safe_root, widened
from ..kernels.rows import KL_OF_PROBS, Divergence, entropy_rows, js_rows, kl_rows, skew_rows
from .apply import LogitsOptions, ProbsOptions, apply_formula, apply_kernel
from .formulas import cross_entropy, entropy, jeffreys, js, kl, skew_kl
from .pairs import (
    Pair,
    pair_from_log_probs,
    pair_from_logits,
    pair_from_probs,
    pair_of_logits,
    pair_of_probs,
    single_from_probs,
    single_of_logits,
)
from .reading import read_log_probs, read_logits, read_probs


def _of_logits(
    formula: Callable[[Pair], Tensor], a: Tensor, b: Tensor, temperature: Temperature
) -> Tensor:
    return formula(pair_of_logits(a, b, temperature))


_kl_of_logits = partial(_of_logits, kl)


def _kl_of_probs(p: Tensor, q: Tensor, _: Temperature) -> Tensor:
    return kl(pair_of_probs(p, q))


def _no_temperature(_: Temperature) -> Divergence:
    return KL_OF_PROBS


def _entropy_of_logits(a: Tensor, t: Temperature) -> Tensor:
    return entropy(single_of_logits(a, t))


# The functions. Shapes: [..., categories] -> [...], and see the module's docstring.


def entropy_from_probs(p: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """H(p) = -sum p log p, with 0 log 0 = 0."""
    return apply_formula(entropy, single_from_probs, (p,), options)


def entropy_from_logits(logits: Tensor, **options: Unpack[LogitsOptions]) -> Tensor:
    """H(softmax(logits / temperature))."""
    return apply_kernel(entropy_rows, _entropy_of_logits, read_logits, (logits,), options)


def entropy_from_log_probs(log_p: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """-sum p log p, with 0 log 0 = 0."""
    return apply_kernel(entropy_rows, _entropy_of_logits, read_log_probs, (log_p,), options)


def kl_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """D(p || q) = sum p log(p / q) - p + q (Kullback and Leibler 1951).

    For distributions the last two terms sum to zero; with them no term is negative and nothing
    cancels. For measures that do not sum to one this is the generalised divergence (I-divergence,
    Csiszar 1991), never a silent normalisation. +inf where q = 0 < p.

    The gradients are log(p / q) and 1 - p / q: on the simplex the same as those of
    sum p log(p / q), whose extra constants point out of it.
    """
    return apply_kernel(_no_temperature, _kl_of_probs, read_probs, (p, q), options)


def kl_from_logits(p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]) -> Tensor:
    """D(softmax(p_logits / T) || softmax(q_logits / T)).

    Never negative; exact to rounding also where the two are so close that log-probabilities differ
    in their last digits only. +inf where q_logits is -inf and p_logits is not. The gradient with
    respect to q_logits is (q - p) / T, the Hessian at p = q the Fisher matrix
    (diag(p) - p p^T) / T^2.
    """
    return apply_kernel(kl_rows, _kl_of_logits, read_logits, (p_logits, q_logits), options)


def kl_from_log_probs(log_p: Tensor, log_q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """sum p (log p - log q), as ``kl_from_logits``."""
    return apply_kernel(kl_rows, _kl_of_logits, read_log_probs, (log_p, log_q), options)


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


def cross_entropy_from_log_probs(
    log_p: Tensor, log_q: Tensor, **options: Unpack[ProbsOptions]
) -> Tensor:
    """H(p, q) = -sum p log q."""
    return apply_formula(cross_entropy, pair_from_log_probs, (log_p, log_q), options)


def jeffreys_from_probs(p: Tensor, q: Tensor, **options: Unpack[ProbsOptions]) -> Tensor:
    """D(p || q) + D(q || p) (Jeffreys 1946), without a half; its root is not a metric."""
    return apply_formula(jeffreys, pair_from_probs, (p, q), options)


def jeffreys_from_logits(
    p_logits: Tensor, q_logits: Tensor, **options: Unpack[LogitsOptions]
) -> Tensor:
    """D(p || q) + D(q || p) of two softmaxes."""
    return apply_formula(jeffreys, pair_from_logits, (p_logits, q_logits), options)


def jeffreys_from_log_probs(
    log_p: Tensor, log_q: Tensor, **options: Unpack[ProbsOptions]
) -> Tensor:
    """D(p || q) + D(q || p)."""
    return apply_formula(jeffreys, pair_from_log_probs, (log_p, log_q), options)


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
    return _of_mixture(js_rows, js, read_logits, (p_logits, q_logits), weight, options)


def js_from_log_probs(
    log_p: Tensor, log_q: Tensor, weight: float = 0.5, **options: Unpack[ProbsOptions]
) -> Tensor:
    """The Jensen-Shannon divergence; ``weight`` is that of p."""
    return _of_mixture(js_rows, js, read_log_probs, (log_p, log_q), weight, options)


def _of_mixture(
    rows: Callable[[float, Temperature], Divergence],
    formula: Callable[[Pair, float], Tensor],
    read: Callable[..., list[Tensor]],
    distributions: tuple[Tensor, Tensor],
    weight: float,
    options: LogitsOptions | ProbsOptions,
) -> Tensor:
    plain = partial(_of_logits, lambda pair: formula(pair, weight))
    return apply_kernel(partial(rows, weight), plain, read, distributions, options)


def skew_kl_from_probs(
    p: Tensor, q: Tensor, weight: float = 0.1, **options: Unpack[ProbsOptions]
) -> Tensor:
    """D(p || w p + (1 - w) q) (Lee 1999; Ko et al. 2024, eq. 3): at most -log w.

    Raises:
        ValueError: ``weight`` (that of p) is not strictly between 0 and 1.
    """
    check_weight(weight)
    return apply_formula(lambda pair: skew_kl(pair, weight), pair_from_probs, (p, q), options)


def skew_kl_from_log_probs(
    log_p: Tensor, log_q: Tensor, weight: float = 0.1, **options: Unpack[ProbsOptions]
) -> Tensor:
    """The skew KL divergence; ``weight`` is that of p."""
    return _of_mixture(skew_rows, skew_kl, read_log_probs, (log_p, log_q), weight, options)


def skew_kl_from_logits(
    p_logits: Tensor, q_logits: Tensor, weight: float = 0.1, **options: Unpack[LogitsOptions]
) -> Tensor:
    """The skew KL divergence of two softmaxes; ``weight`` is that of p."""
    return _of_mixture(skew_rows, skew_kl, read_logits, (p_logits, q_logits), weight, options)


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


def js_distance_from_log_probs(
    log_p: Tensor, log_q: Tensor, **options: Unpack[ProbsOptions]
) -> Tensor:
    """The Jensen-Shannon metric."""
    formula = _js_distance(options.pop("unit", "nats"))
    return apply_formula(formula, pair_from_log_probs, (log_p, log_q), options)


def _js_distance(unit: Unit) -> Callable[[Pair], Tensor]:
    """The root of the divergence in the given unit, with gradient 0 where the two are equal."""
    return lambda pair: safe_root(convert(js(pair, 0.5), "nats", unit))
