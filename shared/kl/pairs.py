"""Two discrete distributions side by side, with their log-ratio free of cancellation.

Everything that compares two categorical distributions starts here. The last dimension holds the
categories, half precision has become float32, and zeros have been taken out of the way of
logarithms (both in value and in gradient).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from shared.kl.conventions import broadcast, check_floating, fit_mask
from shared.kl.gaussian import expm1_minus_x

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


def categories_last(name: str, tensor: Tensor, dim: int) -> Tensor:
    """The tensor with its event dimension last.

    Raises:
        ValueError: no such dimension, or it is empty.
    """
    if tensor.dim() == 0 or not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(f"{name} of shape {list(tensor.shape)} has no dimension {dim}")
    if tensor.shape[dim] == 0:
        raise ValueError(f"{name} of shape {list(tensor.shape)} has no categories")
    return tensor.movedim(dim, -1)


def check_temperature(temperature: float) -> None:
    if not temperature > 0 or temperature == float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def check_probs(name: str, probs: Tensor) -> None:
    """ValueError naming the argument unless every row is a probability vector (a pass or three)."""
    if not bool(torch.isfinite(probs).all()):
        raise ValueError(f"{name} has values that are not finite")
    if bool((probs < 0).any()):
        raise ValueError(f"{name} has negative values, the least is {probs.min().item():g}")
    tolerance = 1e-4 if probs.dtype != torch.float64 else 1e-8
    error = (probs.sum(-1) - 1).abs().max().item() if probs.numel() else 0.0
    if error > tolerance:
        raise ValueError(f"{name} is not normalised: a sum is off 1 by {error:g}")


def check_logits(name: str, logits: Tensor) -> None:
    """ValueError naming the argument if a value is NaN or +inf, or a row is -inf throughout."""
    if bool((logits.isnan() | (logits == torch.inf)).any()):
        raise ValueError(f"{name} has values that are NaN or +inf")
    if bool((logits == -torch.inf).all(-1).any()):
        raise ValueError(f"{name} has a row without any category above -inf")


def _fit_support(support: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """The mask of allowed categories, [categories] or as the distributions before, expanded."""
    return fit_mask(support if support.dim() == 1 else support.movedim(dim, -1), shape, "support")


def _ready_probs(
    name: str, p: Tensor, dim: int, support: Tensor | None, mask: Tensor | None, validate: bool
) -> Tensor:
    """Probabilities ready for use: categories last, zero off the support, float32 at least."""
    check_floating(**{name: p})
    p = categories_last(name, p, dim).to(torch.promote_types(p.dtype, torch.float32))
    if support is not None:
        p = torch.where(_fit_support(support, dim, p.shape), p, 0.0)
    if mask is not None:  # what stands where nothing counts is replaced before it is used
        p = torch.where(fit_mask(mask, p.shape[:-1], "mask")[..., None], p, 1.0 / p.shape[-1])
    if validate:
        check_probs(name, p)
    return p


def _ready_logits(
    name: str,
    logits: Tensor,
    dim: int,
    temperature: float,
    support: Tensor | None,
    mask: Tensor | None,
    validate: bool,
) -> Tensor:
    """Logits ready for use: categories last, over T, -inf off the support, float32 at least."""
    check_temperature(temperature)
    check_floating(**{name: logits})
    a = categories_last(name, logits, dim).to(torch.promote_types(logits.dtype, torch.float32))
    if support is not None:
        a = torch.where(_fit_support(support, dim, a.shape), a, -torch.inf)
    if mask is not None:
        a = torch.where(fit_mask(mask, a.shape[:-1], "mask")[..., None], a, 0.0)
    if validate:
        check_logits(name, a)
    return a if temperature == 1 else a / temperature


def safe_log(p: Tensor) -> Tensor:
    """log p where p > 0, else 0: no infinity in value or gradient."""
    return torch.where(p > 0, p, 1.0).log()


def log_normaliser(a: Tensor) -> Tensor:
    """log sum exp over the last dimension, [..., 1], and right to rounding next to the maximum.

    A sum of 1 + 1e-9 is 1 in float32; the largest term is therefore taken out and log1p applied to
    the rest, so that a nearly certain outcome keeps the digits of its log-probability.
    """
    index = a.argmax(-1, keepdim=True)
    top = a.gather(-1, index)
    rest = (a - top).exp().scatter(-1, index, 0.0).sum(-1, keepdim=True)
    return top + torch.log1p(rest)


def single_from_probs(
    p: Tensor,
    *,
    dim: int = -1,
    support: Tensor | None = None,
    mask: Tensor | None = None,
    validate: bool = False,
) -> Single:
    """Probabilities and their logarithms."""
    p = _ready_probs("p", p, dim, support, mask, validate)
    return Single(p, safe_log(p))


def single_from_logits(
    logits: Tensor,
    *,
    dim: int = -1,
    temperature: float = 1.0,
    support: Tensor | None = None,
    mask: Tensor | None = None,
    validate: bool = False,
) -> Single:
    """A softmax and its logarithms."""
    a = _ready_logits("logits", logits, dim, temperature, support, mask, validate)
    allowed = a > -torch.inf
    log_p = torch.where(allowed, a - log_normaliser(a), -torch.inf)
    return Single(log_p.exp(), torch.where(allowed, log_p, 0.0))


def pair_from_probs(
    p: Tensor,
    q: Tensor,
    *,
    dim: int = -1,
    support: Tensor | None = None,
    mask: Tensor | None = None,
    validate: bool = False,
) -> Pair:
    """Probabilities side by side; the log-ratio is log1p((p - q) / q) where they are close."""
    p, q = broadcast("p", p, "q", q)
    p = _ready_probs("p", p, dim, support, mask, validate)
    q = _ready_probs("q", q, dim, support, mask, validate)
    both = (p > 0) & (q > 0)
    a, b = torch.where(both, p, 1.0), torch.where(both, q, 1.0)
    near = (a < 1.5 * b) & (b < 1.5 * a)  # there a - b is exact, or nearly
    quotient = (torch.where(near, a, 1.0) - torch.where(near, b, 1.0)) / torch.where(near, b, 1.0)
    apart = torch.where(near, 1.0, a).log() - torch.where(near, 1.0, b).log()
    d = torch.where(near, quotient.log1p(), apart)
    return Pair(p, q, safe_log(p), d, p_only=(p > 0) & (q == 0), q_only=(p == 0) & (q > 0))


def pair_from_logits(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    dim: int = -1,
    temperature: float = 1.0,
    support: Tensor | None = None,
    mask: Tensor | None = None,
    validate: bool = False,
) -> Pair:
    """Softmaxes side by side; their KL and log-ratio come from the difference of the logits.

    With u = a - b (exact where the logits are close), its mean c = E_p u and w = u - c,

        KL(p || q) = log E_p exp(-w) = log1p(E_p[exp(-w) - 1 + w]),   log p/q = w + KL,

    because E_p w = 0. No term is negative, and nothing cancels: log-sum-exps of thousands of
    logits, whose rounding swamps a small KL, are not subtracted from each other.
    """
    p_logits, q_logits = broadcast("p_logits", p_logits, "q_logits", q_logits)
    a = _ready_logits("p_logits", p_logits, dim, temperature, support, mask, validate)
    b = _ready_logits("q_logits", q_logits, dim, temperature, support, mask, validate)
    in_p, in_q = a > -torch.inf, b > -torch.inf
    both, p_only, q_only = in_p & in_q, in_p & ~in_q, in_q & ~in_p
    log_z_a, log_z_b = log_normaliser(a), log_normaliser(b)
    log_p = torch.where(in_p, a - log_z_a, -torch.inf)
    p, q = log_p.exp(), torch.where(in_q, b - log_z_b, -torch.inf).exp()
    u = torch.where(both, a, 0.0) - torch.where(both, b, 0.0)
    c = (p * u).sum(-1, keepdim=True)
    far = c + log_z_b - log_z_a  # KL(p || q), if q misses no part of p
    by_terms = (far.detach() < _FAR) & ~p_only.any(-1, keepdim=True)
    # E_p[exp(-w) - 1 + w]; where -w is large, p exp(-w) is the exponential of a sum of logits.
    w = torch.where(by_terms & both, u - c, 0.0)
    close = w > -1
    small = p * expm1_minus_x(-torch.where(close, w, 0.0))
    from_logits = by_terms & in_q & ~(close & in_p)
    large = torch.where(from_logits, b + (c - log_z_a), -torch.inf).exp() - p * (1 - w)
    terms = torch.where(from_logits, large, torch.where(in_p, small, 0.0))
    kl = torch.where(by_terms, terms.sum(-1, keepdim=True).log1p(), far)
    d = torch.where(both, u - c + kl, 0.0)
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
    return torch.where(p > 0, torch.where(pair.p_only, torch.inf, terms), q)
