"""Evaluate a student: ``python -m distillation.lm.evaluate [--model FOLDER] [--json FILE]``."""

import json
import math
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from distillation.lm.data import Blocks, split_documents, spread, text_blocks
from distillation.lm.metrics import cost, distance
from distillation.lm.model import common_part, compare_vocabularies, load
from shared import cli
from shared.config import Count, CountOrZero, EvaluationOptions
from shared.data.text import load_documents
from shared.errors import UserError
from shared.language_models.causal import LanguageModel
from shared.run.checkpoint import verify_folder
from shared.run.report import write_evaluation
from shared.training.seeding import EVALUATION, generator

SHOWN = 2  # continuations
PROMPT, NEW = 24, 32  # their tokens


@dataclass(frozen=True)
class Options(EvaluationOptions):
    """Measure how far a student is from its teacher on held-out text; nats per token."""

    model: str = "runs/distill-lm-default"
    """Run folder, model folder, or a model of the Hub."""
    teacher: str = ""
    """smollm2, a model folder, or a model of the Hub. Empty: the one the student was trained by."""
    text: str = "brown"
    """brown, a text file, a folder of .txt files or a data set of the Hub; every tenth document
    is used."""
    length: Count = 128
    """Predictions in a block of text."""
    blocks: Count = 200
    """Blocks, spread over the held-out documents."""
    seed: CountOrZero = 0
    """Seed of the sample continuations."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def evaluate(
    student: LanguageModel,
    teacher: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Blocks,
    seed: int = 0,
) -> dict[str, Any]:
    """Distance from the teacher, and of either its cost and continuations; in float32."""
    result = distance(student, teacher, blocks)
    prompts = blocks.tokens[:8, :PROMPT]
    result["student"], result["teacher"] = cost(student, prompts), cost(teacher, prompts)
    result["peak_memory_bytes"] = _peak_memory(prompts.device)
    rng = generator("cpu", seed, EVALUATION)
    shown = prompts[:SHOWN]  # fewer, if the held-out text is short
    uniforms = torch.rand(SHOWN, NEW, generator=rng)[: len(shown)].to(prompts.device)
    written = [model.complete(shown, uniforms) for model in (student, teacher)]
    result["continuations"] = [
        {
            "prompt": tokenizer.decode(prompt),
            "student": tokenizer.decode(ours[PROMPT:]),
            "teacher": tokenizer.decode(theirs[PROMPT:]),
        }
        for prompt, ours, theirs in zip(shown, *written, strict=True)
    ]
    return result


def _peak_memory(device: torch.device) -> int:
    """Of this process so far; on a GPU of its tensors alone."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def headline(metrics: dict[str, Any]) -> str:
    """The metrics as lines for people."""

    def value(name: str, digits: int = 3) -> str:
        error = metrics[f"{name}_standard_error"]  # of one document there is none
        spread = f" +- {error:.{digits}f}" if math.isfinite(error) else ""
        return f"{metrics[name]:.{digits}f}{spread}"

    student, teacher = metrics["student"], metrics["teacher"]
    return (
        f"KL(teacher || student)  {value('kl_teacher_student')} nats per token "
        f"({metrics['tokens']:,} held-out tokens of {metrics['documents']} documents)\n"
        f"KL(student || teacher)  {value('kl_student_teacher')}\n"
        f"agreement at top 1      {value('agreement')}\n"
        f"perplexity              {metrics['perplexity_student']:.1f}, the teacher's "
        f"{metrics['perplexity_teacher']:.1f}\n"
        f"parameters              {student['parameters']:,} of {teacher['parameters']:,}\n"
        f"tokens per second       reading {student['tokens_read_per_second']:,.0f} to "
        f"{teacher['tokens_read_per_second']:,.0f}, writing "
        f"{student['tokens_written_per_second']:,.0f} to "
        f"{teacher['tokens_written_per_second']:,.0f}\n"
        f"weights in memory       {student['weight_bytes'] / 2**20:,.0f} MiB to "
        f"{teacher['weight_bytes'] / 2**20:,.0f} MiB"
    )


def main() -> None:
    options = cli.read_options(Options, "distillation.lm.evaluate")
    root, folder = Path(options.data), Path(options.model)
    if folder.is_dir():
        folder = folder / "model" if (folder / "checkpoints").is_dir() else folder
        if (folder / "training.json").exists() or not (folder / "config.json").exists():
            verify_folder(folder)
    name = options.teacher or _trained_by(folder)
    student, own = load("--model", str(folder), root)
    teacher, tokenizer = load("--teacher", name, root)
    compare_vocabularies(f"--model {options.model}", (student, own), (teacher, tokenizer))
    _, unseen = split_documents(load_documents(options.text, root))
    blocks = spread(text_blocks(unseen, tokenizer, options.length), options.blocks)
    student, teacher = (model.to(options.device).eval() for model in (student, teacher))
    metrics = evaluate(student, teacher, tokenizer, blocks.to(options.device), options.seed)
    print(headline(metrics))
    if teacher.common is not None:
        print(common_part(teacher))
    for shown in metrics["continuations"]:
        print(
            f"\n{shown['prompt']} ...\n  student  {shown['student']!r}\n"
            f"  teacher  {shown['teacher']!r}"
        )
    write_evaluation(options.json, options.model, metrics=metrics)


def _trained_by(folder: Path) -> str:
    """The teacher's name in a model folder that training wrote."""
    try:
        name: str = json.loads((folder / "training.json").read_text())["config"]["teacher"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--model {folder}: does not name its teacher, give --teacher") from error
    return name


if __name__ == "__main__":
    cli.run(main, "distillation.lm.evaluate")
