"""What is asked of the model and what it gets for its answers."""

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
from rlhf.rollout import Completions, end_tokens, sample
from shared.language_models.causal import LanguageModel
from shared.processes.distributed import global_rows, own_rows
from shared.training.seeding import EVALUATION, generator

SCALE_PROMPTS = 64  # whose completions by the reference give the rewards' mean and variance


class Task:
    """Prompts in, completions and their rewards out."""

    def __init__(
        self,
        config: LanguageConfig,
        tokenizer: PreTrainedTokenizerBase,
        model_config: Any,
        rewards: Sequence[str],
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        root = Path(config.data)
        self.config, self.tokenizer, self.temperature = config, tokenizer, temperature
        self.names = list(rewards)
        self.rewards = [load_reward("--reward", name, root, device) for name in rewards]
        self.gold = [load_reward("--gold", config.gold, root, device)] if config.gold else []
        self.scale = Standardiser(len(self.names))
        self.ends = end_tokens(model_config, tokenizer)
        self.padding = int(tokenizer.pad_token_id or 0)  # any: masks come from lengths

    def complete(self, lm: LanguageModel, asked: Prompts, uniforms: Tensor) -> Completions:
        """One completion of every prompt from random numbers [n, time] in [0, 1)."""
        return sample(lm, asked.tokens, uniforms, self.ends, self.padding, self.temperature)

    def rewards_of(self, asked: Prompts, completions: Completions) -> Tensor:
        """[n, rewards] float64 on the CPU, the gold reward last if there is one."""
        own = own_rows(torch.arange(len(asked.texts)))
        mine, part = asked.at(own.tolist()), completions.at(own)
        scores = call(
            [*self.rewards, *self.gold],
            [*self.names, *["--gold"] * len(self.gold)],
            mine.texts,
            part.texts(self.tokenizer),
            part.token_lists(),
            mine.columns,
        )
        return global_rows(scores.to(completions.tokens.device)).cpu()

    def fit_scale(self, policy: Policy, prompts: Prompts) -> None:
        """Mean and variance of every reward over completions of the reference."""
        asked = prompts.at(range(min(SCALE_PROMPTS, len(prompts.texts))))
        uniforms = torch.rand(
            len(asked.texts),
            self.config.completion,
            generator=generator("cpu", self.config.seed, EVALUATION),
        )
        with torch.no_grad(), policy.as_reference() as lm:
            completions = self.complete(lm, asked, uniforms.to(lm.weight.device))
        self.scale.fit(self.rewards_of(asked, completions)[:, : len(self.names)])

    def score(
        self, config: Config, asked: Prompts, completions: Completions
    ) -> tuple[Tensor, dict[str, float]]:
        """[n] what PPO maximises, and the means of the rewards as they are."""
        found = self.rewards_of(asked, completions)
        rewards = found[:, : len(self.names)]
        scaled = self.scale(rewards) if config.normalise else rewards
        scores = aggregate(scaled, config.aggregate, config.uwo)
        scores = scores.clamp(-config.reward_clip, config.reward_clip)
        ended = completions.ended.cpu()
        scores = scores - torch.where(ended, 0.0, config.missing_eos)
        names = [*self.names, *["gold"] * len(self.gold)]
        means = zip(names, found.mean(0).tolist(), strict=True)
        told = {f"rewards/{name}/mean": mean for name, mean in means}
        return scores.float().to(completions.tokens.device), told
