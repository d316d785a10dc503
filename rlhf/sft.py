"""Supervised fine-tuning by TRL: ``python -m rlhf.sft [preset] [--text FILE ...]``.

It writes a whole model, its adapter merged, which is the reference of the next training:
``python -m rlhf.dpo --model runs/rlhf-sft-default/model``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.policies import load_model
from rlhf.policy import Policy
from rlhf.prompts import is_held_out, prompts_of, read_preferences
from rlhf.prompts.rows import read_rows
from rlhf.report import training_summary, write_policy
from rlhf.rewards.environment import Environment
from rlhf.trl import TrainerConfig, adapter, first, trainer_arguments
from shared import cli
from shared.config import Count, CountOrZero
from shared.errors import UserError
from shared.language_models.causal import load_causal
from shared.language_models.trl import third_party, train_with
from shared.processes.launch import start
from shared.run.report import print_setup
from shared.run.run import Run

COLUMNS = (("prompt", "completion"), ("messages",), ("text",))  # what SFTTrainer reads


@dataclass(frozen=True)
class Config(TrainerConfig):
    """Teach a language model to write like the examples."""

    METHOD = "supervised fine-tuning"

    text: str = "movies"
    """movies: the chosen sides of the committed preference pairs. Or a file (.jsonl, .json, .csv,
    .parquet) or a data set of the Hub with the columns `prompt` and `completion`, of which the
    completion is learnt, `messages`, or `text`. Examples of held-out prompts are not trained on."""
    limit: CountOrZero = 0
    """Number of examples at most, the first ones. 0: all."""
    length: Count = 512
    """Tokens of an example at most; longer ones are cut."""
    epochs: Count = 1
    """Passes over the examples."""


PRESETS = {
    "smoke": Config(
        lora=4,
        limit=16,
        batch_size=4,
        micro_batch=2,
        warmup=0,
        completion=8,
        evaluation_prompts=4,
        checkpoint_every=2,
    ),
    "default": Config(),
    # Rafailov et al. 2023: gpt2-large, one pass over the reviews of IMDb. Needs the Hub.
    "paper": Config(
        model="openai-community/gpt2-large",
        lora=0,
        text="stanfordnlp/imdb",
        completion=48,
        gold="siebert/sentiment-roberta-large-english",
        lr=1e-5,
        batch_size=64,
        mixed_precision="bf16",
    ),
}


def read_examples(option: str, source: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The examples to train on, with one of the sets of ``COLUMNS``.

    Raises:
        UserError: nothing there, other columns, a value missing, or no chat template.
    """
    from datasets import Dataset

    if source == "movies":
        pairs = read_preferences(option, source, held_out=False)
        return pairs.remove_columns("rejected").rename_column("chosen", "completion")
    what = f"{option} {source}"
    rows = read_rows(what, source)
    names = next((names for names in COLUMNS if all(name in rows[0] for name in names)), None)
    if names is None:
        raise UserError(
            f"{what}: row 1 has the columns {', '.join(rows[0]) or 'none'}; needed are prompt and "
            f"completion, or messages, or text"
        )
    for number, row in enumerate(rows, 1):
        if empty := [name for name in names if not row.get(name)]:
            raise UserError(f"{what}: row {number}: its {empty[0]} is empty")
    if not isinstance(rows[0][names[-1]], str) and tokenizer.chat_template is None:
        raise UserError(f"{what}: is conversational, and the tokenizer has no chat template")
    rows = [row for row in rows if "prompt" not in names or not is_held_out(row["prompt"])]
    if not rows:
        raise UserError(f"{what}: every prompt is held out")
    return Dataset.from_list([{name: row[name] for name in names} for row in rows])


def train(preset: str, config: Config) -> None:
    """Train from examples to the run folder's summary."""
    from trl import SFTConfig, SFTTrainer  # seconds to import

    accelerator = start(config)
    model, tokenizer = load_model(config, accelerator)
    examples = first(read_examples("--text", config.text, tokenizer), config.limit)
    environment = Environment(config, tokenizer, model.config, rewards=())
    prompts_of(config, tokenizer, held_out=True, limit=1)  # refused now rather than after training
    lora = adapter(config, model, "CAUSAL_LM")
    run = Run("rlhf-sft", preset, config, accelerator)
    with third_party():
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **trainer_arguments(run, config),
                num_train_epochs=config.epochs,
                max_length=config.length,
            ),
            train_dataset=examples,
            processing_class=tokenizer,
            peft_config=lora,
        )
    print_setup(run, data=f"{len(examples):,} examples, {config.epochs} passes")
    if train_with(trainer, run, config.checkpoint_every):
        summary = training_summary(run, ("loss", "mean_token_accuracy"))
        whole = trainer.model.merge_and_unload() if lora else trainer.model
        reference, _ = load_causal("--model", config.model, Path(config.data))
        policy = Policy(whole, reference).to(accelerator.device)
        write_policy(run, config, policy, environment, summary)


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m rlhf.sft"))


if __name__ == "__main__":
    cli.run(main, "rlhf.sft")
