"""Ways to penalise a KL, and the gradient each gives in expectation: sums over every sequence.

A policy is a table of logits [prefixes, vocabulary]; no number here has sampling noise.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.objective import advantages
from shared.kl import (
    kl_from_logits,
    kl_from_probs,
    kl_loss,
    log_ratio_estimator,
    rao_blackwell_kl,
    sequence_kl_surrogate,
)


class Paths(NamedTuple):
    """Every sequence: logits [n, time, vocabulary] at its prefixes, log-probabilities [n, time]."""

    p_logits: Tensor
    q_logits: Tensor
    logp: Tensor
    logq: Tensor

    @property
    def probs(self) -> Tensor:
        """[n] probability of every sequence under the policy, with its graph."""
        return self.logp.sum(-1).exp()


@cache
def sequences(vocabulary: int, length: int) -> tuple[Tensor, Tensor]:
    """All sequences [n, length], and the row of the table that each prefix has [n, length]."""
    tokens = torch.cartesian_prod(*[torch.arange(vocabulary)] * length).reshape(-1, length)
    rows, row = [], torch.zeros(len(tokens), dtype=torch.long)
    for column in tokens.T:
        rows.append(row)
        row = row * vocabulary + column + 1  # children of a row are numbered behind all before it
    return tokens, torch.stack(rows, 1)


def prefixes(vocabulary: int, length: int) -> int:
    """Rows of a table: prefixes of 0 ... length - 1 tokens."""
    return sum(vocabulary**t for t in range(length))


def paths(p_table: Tensor, q_table: Tensor, length: int) -> Paths:
    """Every sequence under two tables [prefixes, vocabulary] of logits."""
    tokens, rows = sequences(p_table.shape[1], length)
    p, q = p_table[rows], q_table[rows]
    chosen = tokens[..., None]
    logp, logq = (x.log_softmax(-1).gather(-1, chosen)[..., 0] for x in (p, q))
    return Paths(p, q, logp, logq)


def in_reward(kind: str) -> Callable[[Paths], Tensor]:
    """Every token's log-probability times the penalties from it on: what a reward does in PPO."""

    def terms(at: Paths) -> Tensor:
        if kind == "exact":
            penalty = kl_from_logits(at.p_logits, at.q_logits)
        else:
            penalty = log_ratio_estimator(at.logp, at.logq, kind)  # type: ignore[arg-type]
        penalty = penalty.detach()
        everywhere = torch.ones_like(penalty, dtype=torch.bool)
        to_go, _ = advantages(penalty, torch.zeros_like(penalty), everywhere, 1.0, 1.0)
        return (at.logp * to_go).sum(-1)

    return terms


def as_loss(kind: str) -> Callable[[Paths], Tensor]:
    """The estimate itself, differentiated."""
    if kind == "exact":
        return lambda at: rao_blackwell_kl(at.p_logits, at.q_logits)
    return lambda at: log_ratio_estimator(at.logp, at.logq, kind).sum(-1)  # type: ignore[arg-type]


def weighted_k3(at: Paths) -> Tensor:
    """k3 times the policy's ratio to itself: the bias correction of TRL's GRPO."""
    ratio = (at.logp - at.logp.detach()).exp()
    return (ratio * log_ratio_estimator(at.logp, at.logq, "k3")).sum(-1)


class Scheme(NamedTuple):
    """A way to use an estimate: its name, where it is put, [n] terms that are differentiated."""

    estimate: str
    place: str
    terms: Callable[[Paths], Tensor]


SCHEMES = (
    Scheme("k1", "reward", in_reward("k1")),
    # A state's own exact KL is differentiated, the later ones are in the reward of its token.
    Scheme(
        "exact",
        "loss and reward",
        lambda at: rao_blackwell_kl(at.p_logits, at.q_logits, logp=at.logp),
    ),
    # A token's own k2 is differentiated, the later k1 are in its reward.
    Scheme("k2, later k1", "loss and reward", lambda at: sequence_kl_surrogate(at.logp, at.logq)),
    Scheme("k2", "loss", lambda at: kl_loss(at.logp, at.logq, "reverse").sum(-1)),
    Scheme("k3 x ratio", "loss", weighted_k3),
    Scheme("exact", "loss", as_loss("exact")),
    Scheme("k3", "loss", lambda at: kl_loss(at.logp, at.logq, "forward").sum(-1)),
    Scheme("k1", "loss", as_loss("k1")),
    Scheme("k2", "reward", in_reward("k2")),
    Scheme("k3", "reward", in_reward("k3")),
    Scheme("exact", "reward", in_reward("exact")),
)


def expected_gradient(scheme: Scheme, p_table: Tensor, q_table: Tensor, length: int) -> Tensor:
    """Of the mean over samples of the policy, summed over every sequence; as ``p_table``."""
    table = p_table.detach().requires_grad_()
    at = paths(table, q_table, length)
    (gradient,) = torch.autograd.grad((at.probs.detach() * scheme.terms(at)).sum(), table)
    return gradient


def exact_kl(at: Paths) -> Tensor:
    """KL(policy || reference) of whole sequences in nats, from their joint probabilities."""
    return kl_from_probs(at.probs, at.logq.sum(-1).exp())


def exact_gradient(p_table: Tensor, q_table: Tensor, length: int) -> Tensor:
    """Of that KL, by autograd; as ``p_table``."""
    table = p_table.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(exact_kl(paths(table, q_table, length)), table)
    return gradient


def tables(seed: int, vocabulary: int, length: int) -> tuple[Tensor, Tensor]:
    """Standard normal logits of a policy and a reference, [prefixes, vocabulary] each."""
    rng = torch.Generator().manual_seed(seed)
    shape = (prefixes(vocabulary, length), vocabulary)
    p, q = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    return p, q
