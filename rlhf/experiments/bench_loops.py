"""The training loops that ``rlhf.experiments.bench`` times, each in a process of its own.

All start from one model, with the same adapter, prompts of one length, sizes and reward: a tiny
sequence classifier with random weights, which costs next to nothing.
"""

import cProfile
import inspect
import json
import pstats
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from rlhf.rewards import load_reward
from rlhf.rewards.environment import Environment
from rlhf.rollout import score_tokens
from rlhf.trl import adapter
from shared.errors import UserError
from shared.experiments.bench import Clock, Figures, Finished, on_every_step
from shared.language_models.causal import load_causal
from shared.run.run import Run

PROMPT = 7  # tokens of a prompt, the most frequent length of ours: no padding anywhere
PHASES: dict[str, Callable[..., Any]] = {
    "sampling": Environment.complete,
    "judging": score_tokens,
    "update": ppo.update,
}
GENERATIONS = 4  # completions of a prompt, RLOO only


def figures(clock: Clock, batch_size: int, trained: int) -> Figures:
    """CPU-seconds of an iteration and its phases, samples of one, peak memory in bytes."""
    if clock.ticks < clock.warmup + clock.steps:
        raise RuntimeError(f"{clock.ticks} iterations, not {clock.warmup + clock.steps}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    whole = {"seconds": clock.seconds} | clock.phases
    return {name: x / clock.steps for name, x in whole.items()} | {
        "samples_per_cpu_second": clock.steps * batch_size / clock.seconds,
        "peak_bytes": float(peak),
        "trained": float(trained),
    }


def write_inputs(folder: Path, config: Config) -> tuple[Path, Path]:
    """A file of prompts of ``PROMPT`` tokens, and a reward model with the policy's tokenizer.

    Raises:
        UserError: the model's tokenizer gives no opening that many tokens.
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
    """``rlhf.ppo.train`` with its metrics, without the final evaluation.

    A profiler, which slows Python down, runs in one more iteration after the clock has stopped;
    the shares of the phases are of that one.
    """
    profiler, trained, start = cProfile.Profile(time.process_time), 0, 0.0

    def stepped(run: Run) -> None:
        nonlocal trained, start
        match clock.tick():
            case 0:
                trained, start = trained_parameters(run.model), time.process_time()
                profiler.enable()
            case 1:
                profiler.disable()
                seconds = time.process_time() - start
                clock.phases |= {
                    phase: clock.seconds * seconds_in(profiler, function) / seconds
                    for phase, function in PHASES.items()
                }
                raise Finished

    with on_every_step(stepped):
        ppo.train("bench", replace(config, iterations=config.iterations + 1))
    return trained


def seconds_in(profiler: cProfile.Profile, function: Callable[..., Any]) -> float:
    """CPU-seconds of all calls of a function, with what it calls."""
    code = inspect.unwrap(function).__code__
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    cumulative: float = stats[code.co_filename, code.co_firstlineno, code.co_name][3]
    return cumulative


class Ticks(TrainerCallback):
    """Ticks a clock after every ``every`` steps of a trainer."""

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
    module.batch_generation = clock.timed("sampling", module.batch_generation)
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
