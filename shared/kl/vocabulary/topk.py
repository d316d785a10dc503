"""KL from a teacher of whom only the k largest log-probabilities are known."""

import math

import torch
from torch import Tensor

from ..conventions import (
    Reduction,
    Temperature,
    check_floating,
    check_reduction,
    fit_mask,
    fit_temperature,
    reduce,
)
from ..gaussian.diagonal import expm1_minus_x


def kl_topk(
    p_log_probs: Tensor,
    indices: Tensor,
    q_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
    validate: bool = False,
) -> Tensor:
    """D(p || q) over k + 1 categories: the k known ones and one that holds all the rest.

    Merging categories is a channel, so this is never above the KL of the full distributions
    (the data-processing inequality for divergences, Csiszar 1967),
    and equal to it at k = vocabulary. Cutting p off at k and renormalising has no such bound, and
    rewards a student that puts its mass where the teacher was not asked.

    Args:
        p_log_probs: [..., k] log-probabilities of the teacher (at the temperature of the loss),
            -inf allowed; they are not renormalised.
        indices: [..., k] integers, the categories they belong to, all different in a row.
        q_logits: [..., vocabulary] of the student, divided by ``temperature`` before the softmax.
        mask: bool, broadcastable with [...], True for positions that count; what stands in the
            others is never used.
        reduction: see ``conventions.reduce``.
        validate: check values and indices, which costs passes over the data.

    Returns:
        Nats, [...] or a scalar, in float32 at least. Never negative; +inf where the student
        excludes what the teacher does not. Differentiable twice, also to ``p_log_probs``.

    Raises:
        ValueError: shapes that do not fit; k of 0 or above the vocabulary; types; a temperature
            that is not positive; with ``validate`` also probabilities that sum to more than one,
            NaN, and indices that are out of range or repeated.
    """
    check_reduction(reduction)
    _check_shapes(p_log_probs, indices, q_logits)
    dtype = torch.promote_types(p_log_probs.dtype, q_logits.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    log_p, logits = p_log_probs.to(dtype), q_logits.to(dtype)
    temperature = fit_temperature(temperature, logits.shape[:-1])
    k, vocabulary = log_p.shape[-1], logits.shape[-1]
    if mask is not None:  # replaced before it is used: uniform on both sides
        keep = fit_mask(mask, log_p.shape[:-1], "mask")[..., None]
        log_p = torch.where(keep, log_p, -math.log(vocabulary))
        logits = torch.where(keep, logits, 0.0)
        indices = torch.where(keep, indices, torch.arange(k, device=indices.device))
    if validate:
        _check_values(log_p, indices, vocabulary)
    log_q = torch.log_softmax(logits / temperature, -1)
    log_q_known = log_q.gather(-1, indices)
    terms = _terms(log_p, log_q_known).sum(-1)
    if k < vocabulary:
        rest_q = _log_sum(log_q.scatter(-1, indices, -torch.inf))
        kept_mass = log_p.exp().sum(-1)
        all_known = kept_mass >= 1
        rest_p = torch.where(
            all_known, -torch.inf, torch.log1p(-torch.where(all_known, 0.0, kept_mass))
        )
        terms = terms + _terms(rest_p, rest_q)
    return reduce(terms, mask, reduction)


def _log_sum(log_q: Tensor) -> Tensor:
    """logsumexp, -inf with gradient 0 where nothing is left."""
    empty = (log_q == -torch.inf).all(-1)
    return torch.where(empty, -torch.inf, torch.where(empty[..., None], 0.0, log_q).logsumexp(-1))


def _terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p log(p/q) - p + q: the extra terms sum to zero over all categories, and no term is < 0."""
    p_zero, q_zero = log_p == -torch.inf, log_q == -torch.inf
    a, b = torch.where(p_zero, 0.0, log_p), torch.where(q_zero, 0.0, log_q)
    d, p, q = torch.where(p_zero | q_zero, 0.0, a - b), a.exp(), b.exp()
    close = d > -1  # there exp(-d) cannot overflow
    terms = torch.where(
        close, p * expm1_minus_x(-torch.where(close, d, 0.0)), q - p + p * torch.where(close, 0, d)
    )
    one_sided = torch.where(p_zero, torch.where(q_zero, 0.0, q), torch.inf)
    return torch.where(p_zero | q_zero, one_sided, terms)


def _check_shapes(p_log_probs: Tensor, indices: Tensor, q_logits: Tensor) -> None:
    check_floating(p_log_probs=p_log_probs, q_logits=q_logits)
    if indices.dtype != torch.int64:
        raise ValueError(f"indices must be int64, got {indices.dtype}")
    if not p_log_probs.dim() == q_logits.dim() > 0:
        raise ValueError(
            f"p_log_probs of shape {list(p_log_probs.shape)} and q_logits of shape "
            f"{list(q_logits.shape)} must have the same number of dimensions"
        )
    if p_log_probs.shape != indices.shape or p_log_probs.shape[:-1] != q_logits.shape[:-1]:
        raise ValueError(
            f"p_log_probs, indices and q_logits of shapes {list(p_log_probs.shape)}, "
            f"{list(indices.shape)}, {list(q_logits.shape)} must agree but for the last dimension"
            " of q_logits"
        )
    if not 1 <= p_log_probs.shape[-1] <= q_logits.shape[-1]:
        raise ValueError(
            f"k must lie between 1 and the vocabulary of {q_logits.shape[-1]}, "
            f"got p_log_probs of shape {list(p_log_probs.shape)}"
        )


def _check_values(log_p: Tensor, indices: Tensor, vocabulary: int) -> None:
    sums = log_p.exp().sum(-1)
    if not bool((sums < 1 + 1e-4).all()):
        raise ValueError(f"p_log_probs sum to {sums.max().item():g} as probabilities, not <= 1")
    if bool(((indices < 0) | (indices >= vocabulary)).any()):
        raise ValueError(f"indices must lie in [0, {vocabulary})")
    ordered = indices.sort(-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise ValueError("indices repeat a category within a row")
