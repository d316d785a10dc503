"""What a run says at its start and leaves at its end: model folder, picture, summary."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from distillation.lm import pictures
from distillation.lm.config import Config
from distillation.lm.data import Blocks
from distillation.lm.evaluate import evaluate, headline
from distillation.lm.lessons import Lessons
from distillation.lm.metrics import distance
from shared.cli import with_resume_cleared
from shared.errors import full_disk_is_a_user_error
from shared.language_models.causal import LanguageModel
from shared.processes.distributed import world_size
from shared.run.checkpoint import write_folder
from shared.run.folder import read_metrics, write_json
from shared.run.report import push
from shared.run.run import Run


def introduce(run: Run, config: Config, student: LanguageModel, lessons: Lessons) -> None:
    """Print the batch arithmetic, the sizes of both models and the units."""
    size = config.batch_size
    steps = -(-config.epoch_blocks // size) * config.epochs
    total = sum(p.numel() for p in student.parameters())
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    of_teacher = sum(p.numel() for p in lessons.teacher.parameters())
    where = f"layers {config.layers} of it" if not config.student else config.student
    tokens = int(lessons.blocks.counts.sum())
    run.say(
        f"run      {run.folder}\n"
        f"teacher  {config.teacher}, {of_teacher:,} parameters\n"
        f"student  {where}, {total:,} parameters, {trained:,} of them trained; "
        f"objective {config.objective}, temperature {config.temperature:g}\n"
        f"data     {len(lessons.blocks.tokens):,} blocks of {config.length}, {tokens:,} tokens; "
        f"{len(lessons.unseen.tokens)} held-out blocks\n"
        f"batch    {size} blocks = {world_size()} process(es) x {size / world_size():g}; "
        f"{steps} steps\n"
        f"units    nats per token, unless said"
    )


def unseen_metrics(student: LanguageModel, lessons: Lessons) -> dict[str, float]:
    """Distance from the teacher on the held-out blocks, in the precision of training."""
    with lessons.accelerator.autocast():
        found = distance(student, lessons.teacher, lessons.unseen, lessons.unseen_table)
    told = tuple(
        """
        kl_teacher_student kl_teacher_student_standard_error kl_student_teacher agreement
        cross_entropy_student
    """.split()
    )
    return {f"unseen_{name}": found[name] for name in told}


def finish(run: Run, config: Config, student: LanguageModel, lessons: Lessons) -> None:
    """Evaluate the trained student in float32 and write model/, pictures/, summary.json."""
    run.say("evaluating ...")
    seconds, records = round(run.elapsed(), 1), read_metrics(run.folder)
    with full_disk_is_a_user_error(run.folder / "pictures"):
        (run.folder / "pictures").mkdir(exist_ok=True)
        measured = [line for line in records if "unseen_agreement" in line]  # all but some of TRL's
        pictures.curves({config.objective: measured}, run.folder / "pictures" / "curves.png")
    summary = {"steps": run.step, "training_seconds": seconds, "training": records[-1]}
    leave(
        run.folder,
        run.preset,
        config,
        student,
        lessons.teacher,
        lessons.tokenizer,
        lessons.unseen,
        summary,
    )
    run.say(
        f"trained in {seconds:.0f} s, all in {run.elapsed():.0f} s; "
        f"picture in {run.folder / 'pictures'}, model in {run.folder / 'model'}"
    )
    if config.push_to_hub:
        run.say(f"uploaded to {push(run.folder / 'model', config.push_to_hub)}")


def leave(
    folder: Path,
    preset: str,
    config: Config,
    student: LanguageModel,
    teacher: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    unseen: Blocks,
    summary: dict[str, Any],
) -> None:
    """The model folder and summary.json of a run in ``folder``."""
    about = {"preset": preset, "config": asdict(with_resume_cleared(config))}
    metrics = evaluate(student, teacher, tokenizer, unseen)
    save_model(student, tokenizer, folder / "model", about, metrics)
    write_json(folder / "summary.json", summary | {"unseen": metrics})
    print(f"\n{headline(metrics)}\n")


def save_model(
    student: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    about: dict[str, Any],
    metrics: dict[str, Any],
) -> None:
    """A folder that transformers' ``from_pretrained`` reads, with its card."""

    def write(folder: Path) -> None:
        student.to_transformers().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "training.json", about)
        write_json(folder / "metrics.json", metrics)
        (folder / "README.md").write_text(card(about, metrics))

    write_folder(path, write)


def card(about: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    config = about["config"]
    told = tuple(
        """
        teacher layers student objective temperature text completions on_policy length epochs
        epoch_blocks batch_size optimizer seed
    """.split()
    )
    options = "\n".join(f"| {name} | {config[name]} |" for name in told)
    return f"""---
license: apache-2.0
library_name: transformers
tags: [knowledge-distillation, kl-zoo]
---
# A student of {config["teacher"]}, preset `{about["preset"]}` of KL Zoo

Trained with objective `{config["objective"]}`. On {metrics["tokens"]:,} held-out tokens of
{metrics["documents"]} documents:

```
{headline(metrics)}
```

| option | value |
|---|---|
{options}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

Limits: trained on few tokens; it imitates its teacher's predictions and shares its errors.
"""
