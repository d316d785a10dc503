"""The teacher of a run: its predictions, live or stored, and the texts it writes."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distillation.lm.config import Config
from distillation.lm.data import Blocks, completed, end_of_text, padding
from distillation.lm.objective import LazyLogits, TopK
from shared.language_models.causal import LanguageModel
from shared.processes.distributed import global_rows, own_rows
from shared.run.interrupt import received
from shared.run.run import Run
from shared.training.cache import fingerprint, stored
from shared.training.seeding import EVALUATION, NOISE, ON_POLICY, generator

PER_PASS = 16  # blocks in a forward pass outside training
TEXTS_PER_PASS = 64  # written side by side


def _stop_if_interrupted() -> None:
    """Before there is a step to save, an interruption ends the program at once."""
    if received():
        raise KeyboardInterrupt


@torch.no_grad()
def predict(
    teacher: LanguageModel, tokens: Tensor, topk: int = 0, temperature: float = 1.0
) -> LazyLogits | TopK:
    """Predictions in blocks of tokens [n, length + 1]: of [n, length] positions.

    As hidden states, or with ``topk`` as that many largest probabilities at the temperature.
    """
    predictions = LazyLogits(*teacher(tokens[:, :-1]))
    if not topk:
        return predictions
    parts = [
        (predictions.at(row).logits() / temperature).log_softmax(-1).topk(topk, dim=-1)
        for row in range(len(tokens))
    ]
    log_p, largest = (torch.stack(part) for part in zip(*parts, strict=True))
    return TopK(log_p, largest)


def predict_all(
    teacher: LanguageModel, tokens: Tensor, topk: int = 0, temperature: float = 1.0
) -> LazyLogits | TopK:
    """``predict`` for more blocks than fit a forward pass."""
    parts = []
    for part in tokens.split(PER_PASS):
        _stop_if_interrupted()
        parts.append(predict(teacher, part, topk, temperature))
    if topk:
        log_p, largest = (torch.cat(column) for column in zip(*parts, strict=True))
        return TopK(log_p, largest.int())
    return LazyLogits(torch.cat([part[0] for part in parts]), teacher.output)


def write_texts(
    model: LanguageModel,
    prompts: Tensor,
    new: int,
    *key: int,
    say: Callable[[str], None],
    folder: Path,
    expected: str,
) -> Tensor:
    """Prompts [n, p] -> [n, p + new] with tokens sampled from the model, the same for a key.

    A file of ``folder`` for every pass, with the fingerprint ``expected``: after an interruption
    the model goes on where it stopped.
    """
    texts, started = [], time.monotonic()
    say(f"the teacher writes {len(prompts):,} texts ...")
    for number, part in enumerate(prompts.split(TEXTS_PER_PASS)):
        _stop_if_interrupted()

        def write(number: int = number, part: Tensor = part) -> dict[str, Tensor]:
            uniforms = torch.rand(len(part), new, generator=generator("cpu", *key, number))
            return {"texts": model.complete(part, uniforms.to(part.device)).int()}

        path = folder / f"{number:05d}.safetensors"
        texts.append(stored(path, "--completions teacher:", expected, write)["texts"])
        written = number * TEXTS_PER_PASS + len(part)
        say(f"... {written:,} written after {time.monotonic() - started:.0f} s")
    return torch.cat(texts)


@dataclass(frozen=True)
class TeacherData:
    """Training and held-out blocks, and what the teacher predicts in them."""

    config: Config
    accelerator: Accelerator
    blocks: Blocks
    unseen: Blocks
    teacher: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    unseen_predictions: LazyLogits
    predictions: LazyLogits | TopK | None = None  # stored, of the training blocks

    def sampled(self, step: int, student: LanguageModel, rows: Tensor) -> Blocks | None:
        """Training blocks ``rows`` as the student completes them; None in off-policy steps.

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
            texts = student.complete(prompts, own_rows(uniforms).to(prompts.device))
        student.train()
        return self.until_end(global_rows(texts), self.blocks.document[rows])

    def until_end(self, tokens: Tensor, document: Tensor) -> Blocks:
        """Blocks of sampled tokens, which count up to the first end of text."""
        eos, pad = end_of_text(self.tokenizer), padding(self.tokenizer)
        return completed(tokens, document, self.config.prompt, eos, pad)

    def targets(self, blocks: Blocks, rows: Tensor | None) -> LazyLogits | TopK | None:
        """The teacher's predictions in training blocks ``rows``, or in new ``blocks``.

        None if the objective has no teacher.
        """
        if self.config.objective == "ce":
            return None
        if self.predictions is not None and rows is not None:
            return self.predictions.at(rows)
        with self.accelerator.autocast():
            return predict(self.teacher, blocks.tokens, self.topk, self.config.temperature)

    @property
    def topk(self) -> int:
        return self.config.topk if self.config.logits == "topk" else 0


def prepare(
    config: Config,
    run: Run,
    teacher: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Blocks,
    unseen: Blocks,
) -> TeacherData:
    """Let the teacher complete the texts and store its predictions, as configured."""
    teacher.eval().requires_grad_(False)
    accelerator = run.accelerator
    blocks, unseen = blocks.to(accelerator.device), unseen.to(accelerator.device)
    with accelerator.autocast():
        predictions = predict_all(teacher, unseen.tokens)
    assert isinstance(predictions, LazyLogits)
    data = TeacherData(config, accelerator, blocks, unseen, teacher, tokenizer, predictions)
    if config.completions == "teacher":
        data = replace(data, blocks=_completed_texts(data, run))
    if config.teacher_cache:
        data = replace(data, predictions=_stored_predictions(data, run))
    return data


def _completed_texts(data: TeacherData, run: Run) -> Blocks:
    """The training blocks with continuations that the teacher wrote; stored for the next run."""
    config, blocks = data.config, data.blocks
    prompts = blocks.tokens[:, : config.prompt]
    about = {"what": "texts", "length": config.length, "seed": config.seed}
    expected = _fingerprint(about, data.teacher, prompts)
    path = Path(config.data) / f"distill-lm-texts-{expected[:12]}.safetensors"
    parts = path.with_suffix("")

    def make() -> dict[str, Tensor]:
        new, key = config.length + 1 - config.prompt, (config.seed, EVALUATION)
        with data.accelerator.autocast():
            texts = write_texts(
                data.teacher, prompts, new, *key, say=run.say, folder=parts, expected=expected
            )
        return {"texts": texts}

    def write() -> None:
        stored(path, "--completions teacher:", expected, make)
        shutil.rmtree(parts, ignore_errors=True)

    run.on_main(write)
    texts = stored(path, "--completions teacher:", expected, make)["texts"]
    return data.until_end(texts.long().to(prompts.device), blocks.document)


def _stored_predictions(data: TeacherData, run: Run) -> LazyLogits | TopK:
    """The teacher's predictions in the training blocks, from ``--teacher-cache`` or into it."""
    config, tokens = data.config, data.blocks.tokens
    about = {"what": "answers", "topk": data.topk, "precision": config.mixed_precision}
    if data.topk:
        about["temperature"] = config.temperature
    expected = _fingerprint(about, data.teacher, tokens)

    def make() -> dict[str, Tensor]:
        run.say(f"the teacher reads {tokens.numel():,} tokens ...")
        with data.accelerator.autocast():
            predictions = predict_all(data.teacher, tokens, data.topk, config.temperature)
        return {n: x for n, x in predictions._asdict().items() if n != "head"}

    path = Path(config.teacher_cache)
    run.on_main(lambda: stored(path, "--teacher-cache", expected, make) and None)
    table = stored(path, "--teacher-cache", expected, make)
    table = {name: tensor.to(tokens.device) for name, tensor in table.items()}
    return TopK(**table) if data.topk else LazyLogits(table["hidden"], data.teacher.output)


def _fingerprint(about: dict[str, Any], teacher: LanguageModel, tokens: Tensor) -> str:
    return fingerprint(json.dumps(about, sort_keys=True), teacher, tokens=tokens)
