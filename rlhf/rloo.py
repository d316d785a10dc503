"""RLOO with a KL penalty by TRL: ``python -m rlhf.rloo [preset] [--beta 0.1 ...]``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf import pictures
from rlhf.policy import Policy
from rlhf.prompts import Prompts, read_prompts
from rlhf.reference_kl import ReferenceKL
from rlhf.report import finish
from rlhf.rewards import call
from rlhf.task import Task
from rlhf.trl import TrainerConfig, adapter, common
from shared import cli
from shared.config import Count, Positive
from shared.errors import UserError
from shared.language_models.causal import load_causal, locate
from shared.language_models.trl import third_party, train_with
from shared.processes.launch import on_main, start
from shared.run.folder import read_metrics
from shared.run.run import Run
from shared.training.batches import stream


@dataclass(frozen=True)
class Config(TrainerConfig):
    """Train a language model by RLOO (Ahmadian et al. 2024) against a reward, held near the model
    it started from."""

    METHOD = "RLOO"

    batch_size: Count = 32
    """Completions of an optimiser step over all processes together."""
    micro_batch: Count = 16
    """Completions that a process computes at a time; their gradients add up to the step's."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW, falling linearly to zero."""
    warmup: int = 0
    """Steps over which the learning rate rises to its peak."""
    reward: tuple[str, ...] = ("pretrained",)
    """What is maximised, the mean if there are several: as in rlhf.ppo."""
    normalise: bool = True
    """Shift and scale each reward to mean 0 and variance 1 over the reference's completions, as
    rlhf.ppo does: else one beta is not the same dial in both."""
    reward_clip: Positive = 10.0
    """Rewards are cut to [-this, this]."""
    beta: Positive = 0.1
    """Coefficient of KL(policy || reference), reward per nat: k1, summed over a completion and
    subtracted from its reward."""
    num_generations: int = 4
    """Completions of each prompt; the mean reward of the others is a completion's baseline."""
    temperature: Positive = 1.0
    """Of sampling, and of every log-probability and KL. There is no top-k and no top-p."""
    steps: Count = 40
    """Optimiser steps, each on completions of its own."""
    kl_prompts: Count = 32
    """Held-out prompts on which KL(policy || reference) is measured during training."""
    kl_every: Count = 10
    """Optimiser steps between these measurements."""

    def conflicts(self) -> list[str]:
        """Combinations that mean nothing, each with what to change."""
        found = super().conflicts()
        if self.num_generations < 2:
            found.append(
                f"--num-generations {self.num_generations}: must be >= 2, or there is "
                f"no other completion to compare with"
            )
        elif self.batch_size % self.num_generations:
            found.append(
                f"--num-generations {self.num_generations}: must divide --batch-size "
                f"{self.batch_size}"
            )
        if not self.reward:
            found.append("--reward: name at least one")
        return found


PRESETS = {
    "smoke": Config(
        lora=4,
        steps=2,
        batch_size=4,
        micro_batch=4,
        num_generations=2,
        completion=8,
        reward=("gold",),
        kl_prompts=4,
        kl_every=1,
        evaluation_prompts=4,
        checkpoint_every=1,
    ),
    "default": Config(),
    # The sentiment task of Rafailov et al. 2023, with the true reward. Needs the Hub.
    "paper": Config(
        model="runs/rlhf-sft-paper/model",
        lora=0,
        prompts="stanfordnlp/imdb",
        reward=("siebert/sentiment-roberta-large-english",),
        normalise=False,
        gold="siebert/sentiment-roberta-large-english",
        completion=48,
        steps=1000,
        batch_size=512,
        micro_batch=32,
        lr=1e-6,
        mixed_precision="bf16",
    ),
}


def reward_of(task: Task, config: Config) -> Callable[..., list[float]]:
    """The rewards as one function of TRL's signature, which also logs each as it is."""

    def score(
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
        **columns: Any,
    ) -> list[float]:
        found = call(task.rewards, task.names, prompts, completions, completion_ids, columns)
        for name, mean in zip(task.names, found.mean(0).tolist(), strict=True):
            log_metric(f"rewards/{name}/mean", mean)
        scaled = task.scale(found) if config.normalise else found
        clip = config.reward_clip
        told: list[float] = scaled.mean(1).clamp(-clip, clip).tolist()
        return told

    return score


def dataset_of(prompts: Prompts, config: Config, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The prompts of the whole run in the order in which they are asked, that of rlhf.ppo.

    A pass over the prompts of TRL's own would start with the first order again when a run is
    resumed; there is one pass here.

    Raises:
        UserError: TRL would make other tokens of a text, such as a second beginning-of-text.
    """
    from datasets import Dataset

    if tokenizer(prompts.texts)["input_ids"] != prompts.tokens:
        raise UserError(
            "--prompts: with the chat template applied they have other tokens than "
            "this tokenizer gives a text; TRL's RLOO cannot read them"
        )
    asked = config.steps * config.batch_size // config.num_generations
    chosen = prompts.at(stream(len(prompts.texts), config.seed, 0, asked).tolist())
    return Dataset.from_dict({"prompt": chosen.texts, **chosen.columns})


def train(preset: str, config: Config) -> None:
    """The whole of training, from prompts to the run folder's summary."""
    from trl import RLOOConfig, RLOOTrainer  # seconds to import

    accelerator = start(config)
    root = Path(config.data)
    on_main(accelerator, lambda: locate(config.model, root))
    model, tokenizer = load_causal("--model", config.model, root)
    tokenizer.padding_side = "left"
    task = Task(config, tokenizer, model.config, config.reward, config.temperature)
    prompts, unseen = (
        read_prompts(
            "--prompts",
            config.prompts,
            tokenizer,
            config.max_prompt,
            held_out=part,
            limit=config.kl_prompts if part else 0,
        )
        for part in (False, True)
    )
    data = dataset_of(prompts, config, tokenizer)
    lora = adapter(config, model, "CAUSAL_LM")
    run = Run("rlhf-rloo", preset, config, accelerator)
    with third_party():
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=[reward_of(task, config)],
            args=RLOOConfig(
                **common(run, config),
                beta=config.beta,
                num_generations=config.num_generations,
                temperature=config.temperature,
                top_p=1.0,
                top_k=0,
                max_completion_length=config.completion,
                num_train_epochs=1,
                shuffle_dataset=False,
                disable_dropout=True,
            ),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=lora,
        )
    policy = Policy(trainer.model, trainer.ref_model).to(accelerator.device)
    if config.normalise:
        task.fit_scale(policy, prompts)
    run.say(
        f"run      {run.folder}\n"
        f"reward   {' '.join(config.reward)}; beta {config.beta:g}\n"
        f"data     {len(prompts.texts):,} prompts, completions of {config.completion} tokens\n"
        f"batch    {config.batch_size} completions = {config.batch_size // config.num_generations}"
        f" prompts x {config.num_generations}; {config.steps} steps\n"
        f"units    KL in nats per sequence; kl as TRL has it is per token"
    )
    trainer.add_callback(ReferenceKL(run, policy, task, unseen, config.kl_every))
    if train_with(trainer, run, config.checkpoint_every):
        finish(run, config, policy, task, tokenizer)
        panels = ("reward", "kl", "entropy")
        pictures.curves(read_metrics(run.folder), panels, run.folder / "pictures" / "trl.png")


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m rlhf.rloo"))


if __name__ == "__main__":
    cli.run(main, "rlhf.rloo")
