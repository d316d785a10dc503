"""Supervised fine-tuning by TRL: ``python -m rlhf.sft [preset] [--text FILE ...]``.

The model it leaves is a whole one, its adapter merged: the reference of what is trained next,
``python -m rlhf.dpo --model runs/rlhf-sft-default/model``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf import pictures
from rlhf.policy import Policy
from rlhf.prompts import is_held_out, read_preferences, read_prompts
from rlhf.prompts.rows import read_rows
from rlhf.report import leave
from rlhf.task import Task
from rlhf.trl import TrainerConfig, adapter, common, first
from shared import cli
from shared.config import Count, CountOrZero
from shared.errors import UserError, full_disk_is_a_user_error
from shared.language_models.causal import load_causal, locate
from shared.language_models.trl import third_party, train_with
from shared.processes.launch import on_main, start
from shared.run.folder import read_metrics
from shared.run.run import Run

COLUMNS = (("prompt", "completion"), ("messages",), ("text",))  # what SFTTrainer reads


@dataclass(frozen=True)
class Config(TrainerConfig):
    """Teach a language model to write what the examples say."""

    METHOD = "supervised fine-tuning"

    text: str = "movies"
    """movies: the chosen sides of the committed preference pairs. Or a file (.jsonl, .json, .csv,
    .parquet) or a data set of the Hub with the columns `prompt` and `completion`, of which the
    completion is learnt, `messages`, or `text`. Examples of held-out prompts are not trained on."""
    limit: CountOrZero = 0
    """Only the first so many examples. 0: all."""
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
        epochs=1,
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
    """The whole of training, from examples to the run folder's summary."""
    from trl import SFTConfig, SFTTrainer  # seconds to import

    accelerator = start(config)
    root = Path(config.data)
    on_main(accelerator, lambda: locate(config.model, root))
    model, tokenizer = load_causal("--model", config.model, root)
    examples = first(read_examples("--text", config.text, tokenizer), config.limit)
    task = Task(config, tokenizer, model.config, rewards=())
    read_prompts(
        "--prompts", config.prompts, tokenizer, config.max_prompt, held_out=True, limit=1
    )  # better refused now than after training
    lora = adapter(config, model, "CAUSAL_LM")
    run = Run("rlhf-sft", preset, config, accelerator)
    with third_party():
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **common(run, config),
                num_train_epochs=config.epochs,
                max_length=config.length,
            ),
            train_dataset=examples,
            processing_class=tokenizer,
            peft_config=lora,
        )
    run.say(f"run      {run.folder}\ndata     {len(examples):,} examples, {config.epochs} passes")
    if train_with(trainer, run, config.checkpoint_every):
        seconds, records = round(run.elapsed(), 1), read_metrics(run.folder)
        with full_disk_is_a_user_error(run.folder / "pictures"):
            (run.folder / "pictures").mkdir(exist_ok=True)
        pictures.curves(
            records, ("loss", "mean_token_accuracy"), run.folder / "pictures" / "training.png"
        )
        whole = trainer.model.merge_and_unload() if lora else trainer.model
        reference, _ = load_causal("--model", config.model, root)
        policy = Policy(whole, reference.to(accelerator.device)).to(accelerator.device)
        summary = {"steps": run.step, "training_seconds": seconds, "training": records[-1]}
        leave(run, config, policy, task, tokenizer, summary)


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m rlhf.sft"))


if __name__ == "__main__":
    cli.run(main, "rlhf.sft")
