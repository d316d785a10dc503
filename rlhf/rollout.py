"""Rollouts: completions sampled from the policy, and policy and reference at every token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.policy import Policy, compare
from shared.kl import log_ratio_estimator
from shared.language_models.causal import LanguageModel
from shared.processes.distributed import global_rows, own_rows
from shared.training.seeding import generator


@dataclass(frozen=True)
class Completions:
    """Prompts padded on the left, completions cut behind their first end-of-text.

    Masks come from lengths, never from tokens: the padding may be the end-of-text.
    """

    tokens: Tensor  # [n, prompt + time] int64
    attention: Tensor  # [n, prompt + time] bool, False at padding
    mask: Tensor  # [n, time] bool, True at the completion's tokens, with its end-of-text
    ended: Tensor  # [n] bool, whether there is an end-of-text
    states: Tensor | None = None  # [n, time, width] before every token, if just sampled from

    @property
    def prompt(self) -> int:
        """Length of the padded prompts."""
        return self.tokens.shape[1] - self.mask.shape[1]

    @property
    def sampled(self) -> Tensor:
        """[n, time] the completions' tokens."""
        return self.tokens[:, self.prompt :]

    def at(self, rows: Tensor | slice) -> "Completions":
        states = None if self.states is None else self.states[rows]
        return Completions(
            self.tokens[rows], self.attention[rows], self.mask[rows], self.ended[rows], states
        )

    def token_lists(self) -> list[list[int]]:
        """The completions' tokens, each list as long as its completion."""
        return [row[mask].tolist() for row, mask in zip(self.sampled, self.mask, strict=True)]

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The completions as text, without special tokens."""
        return tokenizer.batch_decode(self.token_lists(), skip_special_tokens=True)


def padded(prompts: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Token lists -> tokens [n, longest] padded on the left, attention [n, longest] bool."""
    longest = max(len(tokens) for tokens in prompts)
    rows = [[padding] * (longest - len(tokens)) + list(tokens) for tokens in prompts]
    attention = [[False] * (longest - len(t)) + [True] * len(t) for t in prompts]
    return torch.tensor(rows), torch.tensor(attention)


def cut_at_end(tokens: Tensor, attention: Tensor, ends: Sequence[int], padding: int) -> Completions:
    """Sampled tokens [n, prompt + time] without what follows the first end-of-text."""
    prompt = attention.shape[1]
    sampled = tokens[:, prompt:]
    is_end = torch.isin(sampled, sampled.new_tensor(list(ends)))
    over = is_end.cumsum(1) - is_end.long() > 0
    mask = ~over
    tokens = torch.cat([tokens[:, :prompt], sampled.masked_fill(over, padding)], 1)
    return Completions(tokens, torch.cat([attention, mask], 1), mask, (is_end & mask).any(1))


def end_tokens(model_config: object, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a text: the tokenizer's, and those of the model's configuration."""
    ends = getattr(model_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({int(token) for token in [*ends, tokenizer.eos_token_id] if token is not None})


def uniforms(count: int, length: int, *key: int) -> Tensor:
    """Random numbers in [0, 1) to sample from, [count, length], a function of the key alone."""
    return torch.rand(count, length, generator=generator("cpu", *key))


@torch.no_grad()
def sample(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    ends: Sequence[int],
    padding: int,
    temperature: float,
) -> Completions:
    """One completion of every prompt; row i depends on prompt i and uniforms[i] alone.

    Args:
        uniforms: [n, time] random numbers in [0, 1).
    """
    device = lm.weight.device
    tokens, attention = (x.to(device) for x in padded(prompts, padding))
    sampled, states = lm.sample(
        own_rows(tokens), own_rows(uniforms.to(device)), temperature, own_rows(attention), ends
    )
    completions = cut_at_end(global_rows(sampled), attention, ends, padding)
    return replace(completions, states=global_rows(states))


class TokenScores(NamedTuple):
    """Policy and reference at every token of completions, in nats: [n, time], 0 where masked."""

    log_prob: Tensor  # of the token under the policy
    reference: Tensor  # of the token under the reference
    kl: Tensor  # KL(policy || reference) over the vocabulary, before the token
    entropy: Tensor  # of the policy, before the token
    value: Tensor
    reference_states: Tensor  # [n, time, width], not masked

    def sequence_kl(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """KL(policy || reference) of every completion, estimated twice: [n] each, in nats.

        Rao-Blackwellised, exact at every sampled prefix (Amini et al. 2025), and k1.
        """
        k1 = log_ratio_estimator(self.log_prob, self.reference, "k1", mask=mask)
        return torch.where(mask, self.kl, 0.0).sum(1), k1.sum(1)


@torch.no_grad()
def score_tokens(
    policy: Policy, completions: Completions, temperature: float, micro_batch: int
) -> TokenScores:
    """Forward passes of policy, value function and reference, ``micro_batch`` rows at a time.

    The policy's states are those that it sampled from, if the completions have them.
    """
    parts = []
    rows = own_rows(torch.arange(len(completions.tokens)))
    for part in map(completions.at, rows.split(micro_batch)):
        states, head = part.states, policy.lm.output
        if states is None:
            states, head, value = policy(part.tokens, part.attention, part.prompt)
        else:
            value = policy.values(states, part.tokens, part.attention)
        reference = policy.reference(part.tokens, part.attention, part.prompt)
        mask = part.mask
        compared = compare(
            states[mask],
            head,
            reference[mask],
            policy.reference_head,
            part.sampled[mask],
            temperature,
        )
        flat = (*compared, value[mask].float())
        rectangles = (x.new_zeros(mask.shape).masked_scatter(mask, x) for x in flat)
        parts.append(TokenScores._make((*rectangles, reference)))
    columns = zip(*parts, strict=True)
    return TokenScores._make(global_rows(torch.cat(column)) for column in columns)
