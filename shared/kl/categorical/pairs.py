"""Two discrete distributions side by side, with their log-ratio free of cancellation.

Everything that compares two categorical distributions starts here. The last dimension holds the
categories, half precision has become float32, and zeros have been taken out of the way of
logarithms (both in value and in gradient).
"""

from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from ..conventions import Temperature, fit_temperature
from ..gaussian.diagonal import expm1_minus_x
from .reading import ReadingLogits, ReadingProbs, read_log_probs, read_logits, read_probs

_FAR = 20.0  # nats; from there on log-sum-exp differences have all digits, and exp might overflow


class Single(NamedTuple):
    """p [..., categories] and log p, which is 0 where p is 0."""

    p: Tensor
    log_p: Tensor


class Pair(NamedTuple):
    """p and q [..., categories] and d = log p - log q; logarithms are 0 where p or q is 0."""

    p: Tensor
    q: Tensor
    log_p: Tensor
    d: Tensor
    p_only: Tensor  # bool: q = 0 < p, where D(p || q) is infinite
    q_only: Tensor  # bool: p = 0 < q
    kl: Tensor | None = None  # [...], where it is known better than as a sum of terms


def safe_log(p: Tensor) -> Tensor:
    """log p, and 0 where p <= 0: no infinity in value or gradient."""
    return torch.where(p <= 0, 1.0, p).log()


def _taken_out(a: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum [..., 1] and log sum exp less the maximum [..., 1], over the last dimension."""
    index = a.argmax(-1, keepdim=True)
    top = a.gather(-1, index)
    rest = (a - top).exp().scatter(-1, index, 0.0).sum(-1, keepdim=True)
    return top, torch.log1p(rest)


def log_normaliser(a: Tensor) -> Tensor:
    """log sum exp over the last dimension, [..., 1]."""
    top, rest = _taken_out(a)
    return top + rest


def log_softmax(a: Tensor) -> Tensor:
    """a - log sum exp, with all digits where an outcome is nearly certain or all logits are large.

    The maximum and log1p of the rest are subtracted one after the other: their sum would round
    1e4 + 0.7, or 20 + 1e-9, and with it every probability.
    """
    top, rest = _taken_out(a)
    excluded = torch.where(top == -torch.inf, torch.nan, -torch.inf)  # a row of -inf has no softmax
    return torch.where(a != -torch.inf, (a - top) - rest, excluded)


def single_of_probs(p: Tensor) -> Single:
    """Probabilities and their logarithms."""
    return Single(p, safe_log(p))


def single_of_logits(logits: Tensor, temperature: Temperature = 1.0) -> Single:
    """A softmax and its logarithms."""
    log_p = log_softmax(logits / temperature)
    return Single(log_p.exp(), torch.where(log_p != -torch.inf, log_p, 0.0))


def pair_of_probs(p: Tensor, q: Tensor) -> Pair:
    """Probabilities side by side; the log-ratio is log1p((p - q) / q) where they are close."""
    both = ~(p <= 0) & ~(q <= 0)  # NaN is in: it must show
    a, b = torch.where(both, p, 1.0), torch.where(both, q, 1.0)
    near = (a < 1.5 * b) & (b < 1.5 * a)  # there a - b is exact, or nearly
    quotient = (torch.where(near, a, 1.0) - torch.where(near, b, 1.0)) / torch.where(near, b, 1.0)
    apart = torch.where(near, 1.0, a).log() - torch.where(near, 1.0, b).log()
    d = torch.where(near, quotient.log1p(), apart)
    return Pair(p, q, safe_log(p), d, p_only=(p > 0) & (q == 0), q_only=(p == 0) & (q > 0))


def single_from_probs(p: Tensor, **reading: Unpack[ReadingProbs]) -> Single:
    """``single_of_probs`` of what was read."""
    return single_of_probs(*read_probs(p, **reading))


def single_from_logits(logits: Tensor, **reading: Unpack[ReadingLogits]) -> Single:
    """``single_of_logits`` of what was read."""
    (a,) = read_logits(logits, **reading)
    return single_of_logits(a, _temperature(reading, a))


def pair_from_probs(p: Tensor, q: Tensor, **reading: Unpack[ReadingProbs]) -> Pair:
    """``pair_of_probs`` of what was read."""
    return pair_of_probs(*read_probs(p, q, **reading))


def pair_from_logits(p_logits: Tensor, q_logits: Tensor, **reading: Unpack[ReadingLogits]) -> Pair:
    """``pair_of_logits`` of what was read."""
    a, b = read_logits(p_logits, q_logits, **reading)
    return pair_of_logits(a, b, _temperature(reading, a))


def pair_from_log_probs(log_p: Tensor, log_q: Tensor, **reading: Unpack[ReadingProbs]) -> Pair:
    """Log-probabilities are logits."""
    return pair_of_logits(*read_log_probs(log_p, log_q, **reading))


def _temperature(reading: ReadingLogits, a: Tensor) -> Temperature:
    return fit_temperature(reading.get("temperature", 1.0), a.shape[:-1])


@torch.no_grad()
def _lost_in_difference(a: Tensor, b: Tensor) -> Tensor:
    """The rounding error of a - b, exactly (Knuth's two-sum): much, where b is a shifted a."""
    u = a - b
    minus_b = u - a
    return (a - (u - minus_b)) - (b + minus_b)


def pair_of_logits(a: Tensor, b: Tensor, temperature: Temperature = 1.0) -> Pair:
    """Softmaxes side by side; their KL and log-ratio come from the difference of the logits.

    With u = a - b (exact where the logits are close), its mean c = E_p u and w = u - c,

        KL(p || q) = log E_p exp(-w) = log1p(E_p[exp(-w) - 1 + w]),   log p/q = w + KL,

    because E_p w = 0. No term is negative, and nothing cancels: log-sum-exps of thousands of
    logits, whose rounding swamps a small KL, are not subtracted from each other.
    """
    log_p, log_q = log_softmax(a / temperature), log_softmax(b / temperature)
    in_p, in_q = log_p != -torch.inf, log_q != -torch.inf  # NaN is in: it must show
    both, p_only, q_only = in_p & in_q, in_p & ~in_q, in_q & ~in_p
    p, q = log_p.exp(), log_q.exp()
    a, b = torch.where(both, a, 0.0), torch.where(both, b, 0.0)
    u = a - b
    # Three steps: a shift of all logits is taken out exactly, and p sums to one but for rounding,
    # which the size of what is averaged multiplies.
    seen = both & ~(p <= 0)
    index = torch.where(both, log_p, -torch.inf).argmax(-1, keepdim=True)
    lost = _lost_in_difference(a, b)
    u = ((u - u.gather(-1, index)) + (lost - lost.gather(-1, index))) / temperature
    u = torch.where(seen, u, 0.0)
    first = (p * u).sum(-1, keepdim=True)
    u = torch.where(seen, u - first, 0.0)
    c = (p * u).sum(-1, keepdim=True)
    apart = torch.where(both, log_p, 0.0) - torch.where(both, log_q, 0.0)
    far = first + c + apart.gather(-1, index)  # KL(p || q), if q misses no part of p
    by_terms = (far.detach() < _FAR) & ~p_only.any(-1, keepdim=True)
    # E_p[exp(-w) - 1 + w]; where -w is large, p exp(-w) is q exp(KL).
    w = torch.where(by_terms & seen, u - c, 0.0)
    close = seen & (w > -1)
    small = p * expm1_minus_x(-torch.where(close, w, 0.0))
    from_logits = by_terms & in_q & ~close
    large = torch.where(from_logits, log_q + far, -torch.inf).exp() - p * (1 - w)
    terms = torch.where(from_logits, large, torch.where(close, small, 0.0))
    kl = torch.where(by_terms, terms.sum(-1, keepdim=True).log1p(), far)
    d = torch.where(by_terms & seen, u - c + kl, apart)
    log_p = torch.where(in_p, log_p, 0.0)
    return Pair(p, q, log_p, d, p_only, q_only, kl.squeeze(-1))


def kl_terms(pair: Pair) -> Tensor:
    """p log(p/q) - p + q [..., categories]: never negative, and the extra terms sum to zero.

    The Bregman form of D(p || q); +inf where q = 0 < p, and q where p = 0.
    """
    p, q, d = pair.p, pair.q, pair.d
    close = d > -1  # there exp(-d) - 1 + d cannot overflow
    terms = torch.where(
        close, p * expm1_minus_x(-torch.where(close, d, 0.0)), q - p + p * torch.where(close, 0, d)
    )
    return torch.where(pair.p_only, torch.inf, torch.where(p <= 0, q, terms))
