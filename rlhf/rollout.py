"""Completions, what they are worth, and what policy and reference say about every token of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.policy import Policy, compare
from shared.language_models.causal import LanguageModel
from shared.processes.distributed import global_rows, own_rows


@dataclass(frozen=True)
class Completions:
    """Prompts padded on the left, completions cut behind their first end-of-text.

    tokens [n, prompt + time] int64; attention [n, prompt + time] bool, False at padding; mask
    [n, time] bool, True for the completion's tokens, its end-of-text among them; ended [n] bool,
    whether there is one. Masks come from lengths, never from what a token is: the padding may be
    the end-of-text. states [n, time, width], the model's before every token, if it just sampled
    them.
    """

    tokens: Tensor
    attention: Tensor
    mask: Tensor
    ended: Tensor
    states: Tensor | None = None

    @property
    def prompt(self) -> int:
        """Length of the padded prompts."""
        return self.tokens.shape[1] - self.mask.shape[1]

    @property
    def answers(self) -> Tensor:
        """[n, time] the completions' tokens."""
        return self.tokens[:, self.prompt :]

    def at(self, rows: Tensor | slice) -> "Completions":
        states = None if self.states is None else self.states[rows]
        return Completions(
            self.tokens[rows], self.attention[rows], self.mask[rows], self.ended[rows], states
        )

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The completions as text, without special tokens."""
        kept = [row[mask].tolist() for row, mask in zip(self.answers, self.mask, strict=True)]
        return tokenizer.batch_decode(kept, skip_special_tokens=True)

    def token_lists(self) -> list[list[int]]:
        """The completions' tokens, each list as long as its completion."""
        return [row[mask].tolist() for row, mask in zip(self.answers, self.mask, strict=True)]


def padded(prompts: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Token lists -> tokens [n, longest] padded on the left, attention [n, longest] bool."""
    longest = max(len(tokens) for tokens in prompts)
    rows = [[padding] * (longest - len(tokens)) + list(tokens) for tokens in prompts]
    attention = [[False] * (longest - len(t)) + [True] * len(t) for t in prompts]
    return torch.tensor(rows), torch.tensor(attention)


def cut_at_end(tokens: Tensor, attention: Tensor, ends: Sequence[int], padding: int) -> Completions:
    """Sampled tokens [n, prompt + time] with what follows the first end-of-text taken away."""
    prompt = attention.shape[1]
    answers = tokens[:, prompt:]
    is_end = torch.isin(answers, answers.new_tensor(list(ends)))
    over = is_end.cumsum(1) - is_end.long() > 0
    mask = ~over
    tokens = torch.cat([tokens[:, :prompt], answers.masked_fill(over, padding)], 1)
    return Completions(tokens, torch.cat([attention, mask], 1), mask, (is_end & mask).any(1))


def end_tokens(model_config: object, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a text: the tokenizer's, and those of the model's configuration."""
    configured = getattr(model_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in [*found, tokenizer.eos_token_id] if token is not None})


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
    tokens, attention = (x.to(uniforms.device) for x in padded(prompts, padding))
    own, states = lm.sample(
        own_rows(tokens), own_rows(uniforms), temperature, own_rows(attention), ends
    )
    found = cut_at_end(global_rows(own), attention, ends, padding)
    return replace(found, states=global_rows(states))


@torch.no_grad()
def judge(
    policy: Policy, completions: Completions, temperature: float, micro_batch: int
) -> dict[str, Tensor]:
    """What policy and reference say, in nats, and the values: [n, time] each.

    ``log_prob`` and ``reference`` of the tokens, exact ``kl``(policy || reference) and ``entropy``
    of the states, ``value``, and the ``reference_states`` [n, time, width] they were computed from.
    All but the last are 0 at masked positions. The policy's states are those that it sampled from.
    """
    parts: list[dict[str, Tensor]] = []
    rows = own_rows(torch.arange(len(completions.tokens)))
    for chosen in rows.split(micro_batch):
        part = completions.at(chosen)
        states, weight = part.states, policy.lm.weight
        if states is None:
            states, weight, value = policy(part.tokens, part.attention, part.prompt)
        else:
            value = policy.values(states, part.tokens, part.attention)
        there = policy.reference(part.tokens, part.attention, part.prompt)
        mask = part.mask
        flat = compare(
            states[mask],
            weight,
            there[mask],
            policy.reference_weight,
            part.answers[mask],
            temperature,
        )
        flat["value"] = value[mask].float()
        found = {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in flat.items()}
        parts.append(found | {"reference_states": there})
    return {name: global_rows(torch.cat([part[name] for part in parts])) for name in parts[0]}
