"""DPO on preference pairs by TRL: ``python -m rlhf.dpo [preset] [--beta 0.1 ...]``."""

import copy
from dataclasses import dataclass

from rlhf.policies import load_model
from rlhf.policy import Policy
from rlhf.prompts import prompts_of, read_preferences
from rlhf.rewards.environment import Environment
from rlhf.trl import ReferenceKL, TrainerConfig, adapter, first, train_policy, trainer_arguments
from shared import cli
from shared.config import Count, CountOrZero, Positive
from shared.language_models.trl import third_party
from shared.processes.launch import start
from shared.run.report import print_setup
from shared.run.run import Run


@dataclass(frozen=True)
class Config(TrainerConfig):
    """Train a language model on preference pairs by DPO (Rafailov et al. 2023)."""

    METHOD = "DPO"

    preferences: str = "movies"
    """movies: the committed pairs. Or a file or a data set of the Hub with the columns `prompt`,
    `chosen`, `rejected`, text or conversational."""
    limit: CountOrZero = 0
    """Number of pairs at most, the first ones. 0: all."""
    beta: Positive = 0.1
    """Coefficient of KL(policy || reference) in the objective that DPO solves, reward per nat."""
    epochs: Count = 1
    """Passes over the pairs."""
    kl_prompts: Count = 32
    """Held-out prompts on which KL(policy || reference) is measured during training."""
    kl_every: Count = 20
    """Optimiser steps between these measurements."""


# The sentiment task of Rafailov et al. 2023 (gpt2-large, batch 64, 1e-6 after 150 steps). Needs the
# Hub, and pairs made as rlhf/README.md shows.
PRESETS = {
    "smoke": Config(
        lora=4,
        limit=16,
        batch_size=4,
        micro_batch=2,
        warmup=0,
        completion=8,
        kl_prompts=4,
        kl_every=2,
        evaluation_prompts=4,
        checkpoint_every=2,
    ),
    "default": Config(limit=1280, lr=1e-3),
    "paper": Config(
        model="runs/rlhf-sft-paper/model",
        lora=0,
        prompts="stanfordnlp/imdb",
        preferences="data/imdb-preferences.jsonl",
        gold="siebert/sentiment-roberta-large-english",
        completion=48,
        batch_size=64,
        micro_batch=16,
        lr=1e-6,
        warmup=150,
        epochs=3,
        mixed_precision="bf16",
    ),
}


def train(preset: str, config: Config) -> None:
    """Train from pairs to the run folder's summary."""
    from trl import DPOConfig, DPOTrainer  # seconds to import

    accelerator = start(config)
    model, tokenizer = load_model(config, accelerator)
    pairs = first(
        read_preferences("--preferences", config.preferences, held_out=False), config.limit
    )
    environment = Environment(config, tokenizer, model.config, rewards=())
    prompts = prompts_of(config, tokenizer, held_out=True, limit=config.kl_prompts)
    lora = adapter(config, model, "CAUSAL_LM")
    run = Run("rlhf-dpo", preset, config, accelerator)
    with third_party():
        trainer = DPOTrainer(
            model=model,
            # Without an adapter TRL would load the reference again from where the model's
            # configuration says it came from, whatever its weights are by now.
            ref_model=None if lora else copy.deepcopy(model),
            args=DPOConfig(
                **trainer_arguments(run, config),
                beta=config.beta,
                num_train_epochs=config.epochs,
                max_length=None,
                disable_dropout=True,
            ),
            train_dataset=pairs,
            processing_class=tokenizer,
            peft_config=lora,
        )
    policy = Policy(trainer.model, trainer.ref_model).to(accelerator.device)
    print_setup(
        run,
        data=f"{len(pairs):,} pairs to train on, {config.epochs} passes",
        units="KL in nats per sequence",
    )
    measure = ReferenceKL(run, policy, environment, prompts, config.kl_every)
    panels = ("loss", "rewards/accuracies", "rewards/margins")
    train_policy(run, config, trainer, measure, panels, "loss.png")


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m rlhf.dpo"))


if __name__ == "__main__":
    cli.run(main, "rlhf.dpo")
