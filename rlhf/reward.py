"""A reward model from preference pairs by TRL: ``python -m rlhf.reward [preset] [--option ...]``.

A sequence classifier with one score, trained on the Bradley-Terry likelihood of the pairs; it reads
prompt + completion as text.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from rlhf.policies import save_model
from rlhf.prompts import read_preferences
from rlhf.report import training_summary
from rlhf.rewards.reward_model import load_reward_model
from rlhf.trl import TrainerConfig, adapter, first, trainer_arguments
from shared import cli
from shared.config import Count, CountOrZero, NonNegative
from shared.errors import UserError
from shared.language_models.causal import load_causal, locate
from shared.language_models.trl import third_party, train_with
from shared.processes.launch import on_main, start
from shared.run.report import finish_run, model_card, print_setup
from shared.run.run import Run
from shared.training.seeding import NOISE, generator
from shared.training.statistics import mean_and_standard_error


@dataclass(frozen=True)
class Config(TrainerConfig):
    """Train a reward model on preference pairs."""

    lora: CountOrZero = 8
    """Rank of the trained adapter (Hu et al. 2021). 0: all weights are trained."""
    lora_targets: tuple[str, ...] = tuple(
        "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    )
    """Names of the linear layers that get an adapter."""
    preferences: str = "movies"
    """movies: the committed pairs. Or a file or a data set of the Hub with the columns `prompt`,
    `chosen`, `rejected`, text or conversational. Pairs of held-out prompts are not trained on."""
    limit: CountOrZero = 0
    """Number of pairs at most, the first ones; also of the held-out pairs. 0: all."""
    center_rewards_coefficient: NonNegative = 0.01
    """Weight of (chosen + rejected)^2 in the loss, which alone decides where zero is (Eisenstein
    et al. 2023: 0.01)."""
    epochs: Count = 1
    """Passes over the pairs."""


PRESETS = {
    "smoke": Config(lora=4, limit=16, batch_size=4, micro_batch=2, warmup=0, checkpoint_every=2),
    "default": Config(lr=1e-3, batch_size=32),
    "paper": Config(  # Rafailov et al. 2023: gpt2-large, 3 epochs
        model="openai-community/gpt2-large",
        lora=0,
        preferences="data/imdb-preferences.jsonl",
        lr=1e-5,
        batch_size=64,
        epochs=3,
        mixed_precision="bf16",
    ),
}


def classifier(config: Config) -> tuple[Any, PreTrainedTokenizerBase]:
    """The language model with a score in place of its output weights, drawn from
    N(0, 1 / (width + 1)) (Stiennon et al. 2020).

    Raises:
        UserError: as ``load_causal``; transformers has no such classifier of this kind of model.
    """
    lm, tokenizer = load_causal("--model", config.model, Path(config.data))
    settings = copy.deepcopy(lm.config)
    settings.num_labels = 1
    try:
        model = AutoModelForSequenceClassification.from_config(settings, dtype=torch.float32)
        head: nn.Linear = model.score
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"--model {config.model}: a {settings.model_type} model cannot be made into a "
            f"classifier with a score"
        ) from error
    model.base_model.load_state_dict(lm.base_model.state_dict())
    rng = generator("cpu", config.seed, NOISE)
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5, generator=rng)
    return model, tokenizer


def train(preset: str, config: Config) -> None:
    """Train from pairs to the run folder's summary."""
    from trl import RewardConfig, RewardTrainer  # seconds to import

    accelerator = start(config)
    on_main(accelerator, lambda: locate(config.model, Path(config.data)))
    model, tokenizer = classifier(config)
    pairs, unseen = (
        first(read_preferences("--preferences", config.preferences, held_out=part), config.limit)
        for part in (False, True)
    )
    lora = adapter(config, model, "SEQ_CLS", modules_to_save=["score"])
    run = Run("rlhf-reward", preset, config, accelerator)
    with third_party():
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                **trainer_arguments(run, config),
                center_rewards_coefficient=config.center_rewards_coefficient or None,
                num_train_epochs=config.epochs,
                max_length=None,
                disable_dropout=True,
            ),
            train_dataset=pairs,
            processing_class=tokenizer,
            peft_config=lora,
        )
    counts = f"{len(pairs):,} pairs to train on, {config.epochs} passes; {len(unseen):,} held out"
    print_setup(run, data=counts)
    if train_with(trainer, run, config.checkpoint_every):
        write_outputs(run, config, trainer.model, tokenizer, unseen)


def write_outputs(
    run: Run, config: Config, model: Any, tokenizer: PreTrainedTokenizerBase, unseen: Any
) -> None:
    """Write model/, pictures/ and summary.json; the stored model is read back and evaluated."""
    summary, folder = training_summary(run, ("loss", "accuracy", "margin")), run.folder / "model"
    save_model(folder, run.preset, config, model, tokenizer, {}, "")
    metrics = evaluate(folder, Path(config.data), unseen)
    text = card(run.preset, config, metrics)
    save_model(folder, run.preset, config, model, tokenizer, metrics, text)
    finish_run(
        run,
        summary | {"evaluation": metrics},
        f"\n{headline(metrics)}\n\nin {run.elapsed():.0f} s; model in {folder}",
    )


def evaluate(folder: Path, root: Path, pairs: Any) -> dict[str, Any]:
    """Accuracy and margin of a stored reward model on pairs."""
    from trl import maybe_apply_chat_template

    reward = load_reward_model(f"model {folder}", str(folder), root)
    rows = [maybe_apply_chat_template(row, reward.tokenizer) for row in pairs]
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (
        torch.tensor(reward(prompts, [row[side] for row in rows])).double()
        for side in ("chosen", "rejected")
    )
    accuracy, accuracy_error = mean_and_standard_error((chosen > rejected).double())
    margin, margin_error = mean_and_standard_error(chosen - rejected)
    return {
        "pairs": len(rows),
        "accuracy": accuracy,
        "accuracy_standard_error": accuracy_error,
        "margin": margin,
        "margin_standard_error": margin_error,
        "chosen": chosen.mean().item(),
        "rejected": rejected.mean().item(),
    }


def headline(metrics: dict[str, Any]) -> str:
    """The metrics as a line for people."""
    return (
        f"held-out pairs {metrics['pairs']}: accuracy {metrics['accuracy']:.3f} +- "
        f"{metrics['accuracy_standard_error']:.3f}, margin {metrics['margin']:.2f} +- "
        f"{metrics['margin_standard_error']:.2f}"
    )


def card(preset: str, config: Config, metrics: dict[str, Any]) -> str:
    """The model card: how it was trained, what it reached, how to load it."""
    names = "model lora preferences batch_size epochs lr center_rewards_coefficient seed".split()
    return model_card(
        f"Reward model from {config.model}, preset `{preset}` of KL Zoo",
        ["reward-model", "kl-zoo"],
        library="peft",
        result=headline(metrics),
        options={name: getattr(config, name) for name in names},
        code="from pathlib import Path\nfrom rlhf.rewards import load_reward\n\n"
        'reward = load_reward("--reward", "path/to/this/folder", Path("data"))\n'
        'reward(prompts=["The acting in this film"], completions=[" is a delight."])',
        note="Limits: it has read short openings of film reviews, nothing else; a policy trained "
        "to please it\nlong enough finds texts that it likes and nobody else does.",
    )


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m rlhf.reward"))


if __name__ == "__main__":
    cli.run(main, "rlhf.reward")
