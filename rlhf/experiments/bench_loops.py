"""The training loops that ``rlhf.experiments.bench`` times, each in a process of its own.

All start from one model, with the same adapter, prompts of one length, sizes and reward: a tiny
sequence classifier with random weights, which costs next to nothing.
"""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    TrainerCallback,
)

from rlhf import ppo
from rlhf.config import Config
from rlhf.experiments.trl_ppo import common, make_trainer, peer, tokenizer_of
from rlhf.prompts import read_prompts
from rlhf.prompts.openings import openings
from rlhf.report import print_run
from rlhf.rewards import load_reward
from rlhf.rewards.environment import Environment
from rlhf.rollout import score_tokens
from rlhf.trl import adapter
from shared.errors import UserError
from shared.language_models.causal import load_causal
from shared.run.run import Run

P = ParamSpec("P")
R = TypeVar("R")
PROMPT = 7  # tokens of a prompt, the most frequent length of ours: no padding anywhere
GENERATIONS = 4  # completions of a prompt, RLOO only


class Clock:
    """CPU-seconds of whole iterations from the end of the first one on, and of their phases."""

    def __init__(self, iterations: int) -> None:
        self.iterations, self.ticks = iterations, 0
        self.start = self.seconds = 0.0
        self.phases: dict[str, float] = {}

    def tick(self) -> None:
        """An iteration is done."""
        self.ticks += 1
        if self.ticks == 1:
            self.phases = dict.fromkeys(self.phases, 0.0)
            self.start = time.process_time()
        if self.ticks == 1 + self.iterations:
            self.seconds = time.process_time() - self.start

    def timed(self, phase: str, function: Callable[P, R]) -> Callable[P, R]:
        """``function``, its CPU-seconds added to a phase."""
        self.phases[phase] = 0.0

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.process_time()
            result = function(*args, **kwargs)
            self.phases[phase] += time.process_time() - start
            return result

        return call

    def figures(self, batch_size: int, trained: int) -> dict[str, float]:
        """CPU-seconds of an iteration and its phases, samples of one, peak memory in bytes."""
        if self.ticks != 1 + self.iterations:
            raise RuntimeError(f"{self.ticks} iterations, not {1 + self.iterations}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        whole = {"seconds": self.seconds} | self.phases
        return {name: x / self.iterations for name, x in whole.items()} | {
            "samples_per_cpu_second": self.iterations * batch_size / self.seconds,
            "peak_bytes": float(peak),
            "trained": float(trained),
        }


def write_inputs(folder: Path, config: Config) -> tuple[Path, Path]:
    """A file of prompts of ``PROMPT`` tokens, and a reward model with the policy's tokenizer.

    Raises:
        UserError: the model's tokenizer gives no opening so many tokens.
    """
    tokenizer = tokenizer_of(config)
    kept = [text for text in openings() if len(tokenizer(text)["input_ids"]) == PROMPT]
    if not kept:
        raise UserError(f"--model {config.model}: none of our prompts has {PROMPT} tokens")
    prompts, reward = folder / "prompts.jsonl", folder / "reward"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in kept))
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    shape.num_labels = 1
    LlamaForSequenceClassification(shape).save_pretrained(reward)
    tokenizer.save_pretrained(reward)
    return prompts, reward


def trained_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def ours(config: Config, clock: Clock) -> int:
    """``rlhf.ppo.train`` with its metrics, without the final evaluation."""
    stepped, complete, trained = Run.stepped, Environment.complete, 0

    def introduced(run: Run, config: Config, policy: Any, prompts: Any) -> None:
        nonlocal trained
        trained = trained_parameters(policy)
        print_run(run, config, policy, prompts)

    def counted(run: Run, **metrics: Any) -> None:
        stepped(run, **metrics)
        clock.tick()

    with (
        patch.object(ppo, "print_run", introduced),
        patch.object(Run, "stepped", counted),
        patch.object(Environment, "complete", clock.timed("sampling", complete)),
        patch.object(ppo, "score_tokens", clock.timed("judging", score_tokens)),
        patch.object(ppo, "update", clock.timed("update", ppo.update)),
        patch.object(ppo, "write_outputs", lambda *_: None),
    ):
        ppo.train("bench", config)
    return trained


class Ticks(TrainerCallback):
    """Tells a clock of every so many ends of a trainer's step."""

    def __init__(self, clock: Clock, every: int) -> None:
        self.clock, self.every, self.steps = clock, every, 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            self.clock.tick()


def trl_ppo(config: Config, clock: Clock) -> int:
    """TRL's last PPO trainer; its critic is a model of the policy's size, all of it trained."""
    module, tokenizer = peer(), tokenizer_of(config)
    prompts = read_prompts("--prompts", config.prompts, tokenizer, PROMPT, held_out=False)
    reward = AutoModelForSequenceClassification.from_pretrained(
        config.reward[0], num_labels=1, dtype=torch.float32
    )
    trainer = make_trainer(config, tokenizer, prompts, reward, Ticks(clock, every=1))
    sampled = clock.timed("sampling", module.batch_generation)
    with patch.object(module, "batch_generation", sampled):
        trainer.train()
    return trained_parameters(trainer.model)


def trl_rloo(config: Config, clock: Clock) -> int:
    """TRL's RLOO of today: as many passes over a rollout, several completions of a prompt."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    model, _ = load_causal("--model", config.model, Path(config.data))
    tokenizer = tokenizer_of(config)
    prompts = read_prompts("--prompts", config.prompts, tokenizer, PROMPT, held_out=False)
    args = RLOOConfig(
        **common(config),
        max_steps=config.iterations * config.epochs,
        max_completion_length=config.completion,
        num_iterations=config.epochs,
        beta=config.beta,
        num_generations=GENERATIONS,
        top_p=1.0,
        top_k=0,
        disable_dropout=True,
    )
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=[load_reward("--reward", config.reward[0], Path(config.data))],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts.texts}),
        processing_class=tokenizer,
        callbacks=[Ticks(clock, every=config.epochs)],
        peft_config=adapter(config, model, "CAUSAL_LM"),
    )
    trainer.train()
    return trained_parameters(trainer.model)
