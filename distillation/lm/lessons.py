"""What a run learns from and is measured on: the text, and the teacher's answers."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distillation.lm import teacher as asking
from distillation.lm.config import Config
from distillation.lm.data import (
    Blocks,
    completed,
    end_of_text,
    padding,
    split_documents,
    spread,
    text_blocks,
)
from distillation.lm.objective import Head, TopK
from shared.data.text import load_documents
from shared.language_models.causal import LanguageModel
from shared.processes.distributed import global_rows, own_rows
from shared.run.run import Run
from shared.training.batches import stream
from shared.training.seeding import EVALUATION, NOISE, ON_POLICY, generator


@dataclass(frozen=True)
class Lessons:
    """Training blocks and held-out ones, the teacher, and its stored answers if there are any."""

    config: Config
    accelerator: Accelerator
    blocks: Blocks
    unseen: Blocks
    teacher: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    unseen_table: dict[str, Tensor]
    table: dict[str, Tensor] | None = None

    def on_policy(self, step: int, student: LanguageModel, rows: Tensor) -> Blocks | None:
        """The training blocks ``rows`` as the student completes them; None if it is not its turn.

        Agarwal et al. 2024, algorithm 1: a share of the steps learns from the student's samples.
        """
        config = self.config
        turn = torch.rand((), generator=generator("cpu", config.seed, ON_POLICY, step)).item()
        if turn >= config.on_policy:
            return None
        prompts = own_rows(self.blocks.tokens[rows, : config.prompt])
        new = config.length + 1 - config.prompt
        uniforms = torch.rand(len(rows), new, generator=generator("cpu", config.seed, NOISE, step))
        student.eval()
        with self.accelerator.autocast():
            own = student.complete(prompts, own_rows(uniforms).to(prompts.device))
        student.train()
        return self._until_end(global_rows(own), self.blocks.document[rows])

    def _until_end(self, tokens: Tensor, document: Tensor) -> Blocks:
        eos, pad = end_of_text(self.tokenizer), padding(self.tokenizer)
        return completed(tokens, document, self.config.prompt, eos, pad)

    def answers(self, blocks: Blocks, rows: Tensor | None) -> Head | TopK | None:
        """The teacher's, about ``blocks``: training blocks ``rows``, or new ones.

        None if the objective does not ask for them.
        """
        if self.config.objective == "ce":
            return None
        if self.table is not None and rows is not None:
            return asking.look_up(self.table, rows, self.teacher.weight)
        with self.accelerator.autocast():
            return asking.ask(self.teacher, blocks.tokens, self.topk, self.config.temperature)

    @property
    def topk(self) -> int:
        return self.config.topk if self.config.logits == "topk" else 0


def read_blocks(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[Blocks, Blocks]:
    """Training blocks and held-out ones."""
    documents, unseen_documents = split_documents(load_documents(config.text, Path(config.data)))
    blocks = text_blocks(documents, tokenizer, config.length, config.prompt)
    unseen = text_blocks(unseen_documents, tokenizer, config.length)
    blocks = spread(blocks, config.train_blocks or len(blocks.tokens))
    if config.completions == "teacher":  # writes only the texts that the run gets to
        taken = stream(len(blocks.tokens), config.seed, 0, config.epochs * config.epoch_blocks)
        blocks = blocks.at(taken.unique())
    return blocks, spread(unseen, config.evaluation_blocks)


def prepare(
    config: Config,
    run: Run,
    teacher: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Blocks,
    unseen: Blocks,
) -> Lessons:
    """Let the teacher complete the texts and store its answers, as configured."""
    teacher.eval().requires_grad_(False)
    accelerator = run.accelerator
    device = accelerator.device
    blocks, unseen = blocks.to(device), unseen.to(device)
    with accelerator.autocast():
        unseen_table = asking.tabulate(teacher, unseen.tokens)
    lessons = Lessons(config, accelerator, blocks, unseen, teacher, tokenizer, unseen_table)
    if config.completions == "teacher":
        lessons = replace(lessons, blocks=_teachers_texts(lessons, run))
    if config.teacher_cache:
        lessons = replace(lessons, table=_teachers_answers(lessons, run))
    return lessons


def _teachers_texts(lessons: Lessons, run: Run) -> Blocks:
    """The training blocks with continuations that the teacher wrote; stored for the next run."""
    config, blocks = lessons.config, lessons.blocks
    prompts = blocks.tokens[:, : config.prompt]
    about = {"what": "texts", "length": config.length, "seed": config.seed}
    expected = asking.fingerprint(lessons.teacher, prompts, **about)

    path = Path(config.data) / f"distill-lm-texts-{expected[:12]}.safetensors"
    parts = path.with_suffix("")

    def make() -> dict[str, Tensor]:
        new, key = config.length + 1 - config.prompt, (config.seed, EVALUATION)
        with lessons.accelerator.autocast():
            texts = asking.write_texts(
                lessons.teacher, prompts, new, *key, say=run.say, folder=parts, expected=expected
            )
        return {"texts": texts}

    def write() -> None:
        asking.stored(path, "--completions teacher:", expected, make)
        shutil.rmtree(parts, ignore_errors=True)

    run.on_main(write)
    texts = asking.stored(path, "--completions teacher:", expected, make)["texts"]
    return lessons._until_end(texts.long().to(prompts.device), blocks.document)


def _teachers_answers(lessons: Lessons, run: Run) -> dict[str, Tensor]:
    """What the teacher says about the training blocks, from ``--teacher-cache`` or into it."""
    config, tokens = lessons.config, lessons.blocks.tokens
    about: dict[str, Any] = {
        "what": "answers",
        "topk": lessons.topk,
        "precision": config.mixed_precision,
    }
    if lessons.topk:
        about["temperature"] = config.temperature
    expected = asking.fingerprint(lessons.teacher, tokens, **about)

    def make() -> dict[str, Tensor]:
        run.say(f"the teacher reads {tokens.numel():,} tokens ...")
        with lessons.accelerator.autocast():
            table = asking.tabulate(lessons.teacher, tokens, lessons.topk, config.temperature)
        return {name: tensor.cpu() for name, tensor in table.items()}

    path = Path(config.teacher_cache)
    run.on_main(lambda: asking.stored(path, "--teacher-cache", expected, make) and None)
    table = asking.stored(path, "--teacher-cache", expected, make)
    return {name: tensor.to(tokens.device) for name, tensor in table.items()}
