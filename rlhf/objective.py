"""PPO on sequences: pure functions of [n, time] tensors, masks True at completion tokens."""

import torch
from torch import Tensor

from shared.kl import log_ratio_estimator
from shared.training.advantages import gae


def last_token(mask: Tensor) -> Tensor:
    """mask [n, time], True then False -> True at each row's last True, False elsewhere."""
    after = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    return mask & ~after


def token_rewards(
    scores: Tensor,
    log_prob: Tensor,
    reference: Tensor,
    kl: Tensor,
    mask: Tensor,
    beta: float,
    kind: str,
) -> Tensor:
    """[n, time] rewards whose sum is the score minus beta times an estimate of the KL.

    ``k1``: every token pays its own log-ratio (Ziegler et al. 2019, eq. 2). ``rb``: a token pays
    the exact KL of the state it leads to, because that is what it decides; a state's own KL is
    differentiated in the loss of ``rlhf.ppo``. Other kinds are for study.

    Args:
        scores: [n] reward of the completions.
        log_prob, reference: log-probabilities of the tokens under policy and reference.
        kl: exact KL(policy || reference) of every state, in nats.
    """
    if kind == "rb":
        kl = torch.where(mask, kl, 0.0)
        penalty = torch.cat([kl[:, 1:], torch.zeros_like(kl[:, :1])], 1)
    else:
        penalty = log_ratio_estimator(log_prob, reference, kind, mask=mask)  # type: ignore[arg-type]
    return torch.where(last_token(mask), scores[:, None], 0.0) - beta * penalty


def advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and targets of the value function, [n, time], 0 where masked.

    A completion ends where its mask ends, for whatever reason: no value follows its last token.
    """
    ended = last_token(mask)
    values = torch.where(mask, values, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    rewards = torch.where(mask, rewards, 0.0)
    advantage = gae(rewards.T, values.T, following.T, (ended | ~mask).T, gamma, lam).T
    return advantage, advantage + values


def policy_terms(
    log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Clipped loss of every token (Schulman et al. 2017, eq. 7), and where clipping changed it."""
    ratio = torch.exp(log_prob - old)
    free, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return -torch.minimum(free, clipped), clipped < free


def value_terms(value: Tensor, old: Tensor, target: Tensor, clip: float) -> Tensor:
    """Half the squared error of every value, or of the clipped value if that is larger."""
    clipped = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target).square(), (clipped - target).square())
