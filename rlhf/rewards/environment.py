"""Environment of a policy: it completes prompts and computes the rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.config import Config, LanguageConfig
from rlhf.policy import Policy
from rlhf.prompts import Prompts
from rlhf.rewards import Standardiser, aggregate, call, load_reward
from rlhf.rollout import Completions, end_tokens, sample, uniforms
from shared.language_models.causal import LanguageModel
from shared.processes.distributed import global_rows, own_rows
from shared.training.seeding import EVALUATION

SCALE_PROMPTS = 64  # whose completions by the reference give the rewards' mean and variance


class Environment:
    """Samples completions of prompts and computes their rewards."""

    def __init__(
        self,
        config: LanguageConfig,
        tokenizer: PreTrainedTokenizerBase,
        model_config: Any,
        rewards: Sequence[str],
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        """``rewards`` are names for :func:`load_reward`.

        Raises:
            UserError: as :func:`load_reward`.
        """
        root = Path(config.data)
        self.config, self.tokenizer, self.temperature = config, tokenizer, temperature
        self.names = list(rewards)
        self.rewards = [load_reward("--reward", name, root, device) for name in rewards]
        self.gold = [load_reward("--gold", config.gold, root, device)] if config.gold else []
        self.scale = Standardiser(len(self.names))
        self.ends = end_tokens(model_config, tokenizer)
        self.padding = int(tokenizer.pad_token_id or 0)  # any: masks come from lengths

    @property
    def columns(self) -> list[str]:
        """Names of the columns of :meth:`rewards_of`."""
        return self.names + ["gold"] * len(self.gold)

    def complete(self, lm: LanguageModel, prompts: Prompts, uniforms: Tensor) -> Completions:
        """One completion of every prompt from random numbers [n, time] in [0, 1)."""
        return sample(lm, prompts.tokens, uniforms, self.ends, self.padding, self.temperature)

    def rewards_of(self, prompts: Prompts, completions: Completions) -> Tensor:
        """[n, rewards] float64 on the CPU, the gold reward last if there is one."""
        rows = own_rows(torch.arange(len(prompts.texts)))
        own, part = prompts.at(rows.tolist()), completions.at(rows)
        rewards = call(
            self.rewards + self.gold,
            self.names + ["--gold"] * len(self.gold),
            own.texts,
            part.texts(self.tokenizer),
            part.token_lists(),
            own.columns,
        )
        return global_rows(rewards.to(completions.tokens.device)).cpu()

    def fit_scale(self, policy: Policy, prompts: Prompts) -> None:
        """Take mean and variance of every reward over completions of the reference."""
        prompts = prompts.at(range(min(SCALE_PROMPTS, len(prompts.texts))))
        size = len(prompts.texts), self.config.completion
        with policy.as_reference() as lm:
            completions = self.complete(lm, prompts, uniforms(*size, self.config.seed, EVALUATION))
        self.scale.fit(self.rewards_of(prompts, completions)[:, : len(self.names)])

    def score(
        self, config: Config, prompts: Prompts, completions: Completions
    ) -> tuple[Tensor, dict[str, float]]:
        """[n] scores that PPO maximises, and the mean of each reward as metrics."""
        rewards = self.rewards_of(prompts, completions)
        scores = rewards[:, : len(self.names)]
        if config.normalise:
            scores = self.scale(scores)
        scores = aggregate(scores, config.aggregate, config.uwo)
        scores = scores.clamp(-config.reward_clip, config.reward_clip)
        scores = scores - torch.where(completions.ended.cpu(), 0.0, config.missing_eos)
        return scores.float().to(completions.tokens.device), self.means(rewards)

    def means(self, rewards: Tensor) -> dict[str, float]:
        """The means of rewards [n, rewards] as metrics."""
        columns = zip(self.columns, rewards.mean(0).tolist(), strict=True)
        return {f"rewards/{name}/mean": mean for name, mean in columns}
