"""The teacher's part of training: its outputs, live or from a file, and texts that it writes."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distillation.lm.config import Config
from distillation.lm.data import Blocks, completed, end_of_text, padding
from distillation.lm.objective import HiddenStates, TopK
from shared.language_models.causal import LanguageModel
from shared.processes.distributed import global_rows, own_rows
from shared.run.interrupt import received
from shared.run.run import Run
from shared.training.cache import fingerprint, stored
from shared.training.seeding import EVALUATION, NOISE, ON_POLICY, generator

PER_PASS = 16  # blocks in a forward pass outside training
TEXTS_PER_PASS = 64  # written side by side


@dataclass(frozen=True)
class TeacherData:
    """Training and held-out blocks, the teacher, and those of its outputs that are stored."""

    config: Config
    accelerator: Accelerator
    blocks: Blocks
    unseen: Blocks
    teacher: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    unseen_outputs: HiddenStates
    stored_outputs: HiddenStates | TopK | None = None

    def on_policy(self, step: int, student: LanguageModel, rows: Tensor) -> Blocks | None:
        """Training blocks ``rows`` as the student completes them; None if the step uses the text.

        Agarwal et al. 2024, algorithm 1: a share of the steps learns from the student's samples.
        """
        config = self.config
        u = torch.rand((), generator=generator("cpu", config.seed, ON_POLICY, step)).item()
        if u >= config.on_policy:
            return None
        prompts = own_rows(self.blocks.tokens[rows, : config.prompt])
        new = config.length + 1 - config.prompt
        uniforms = torch.rand(len(rows), new, generator=generator("cpu", config.seed, NOISE, step))
        student.eval()
        with self.accelerator.autocast():
            own = student.complete(prompts, own_rows(uniforms).to(prompts.device))
        student.train()
        return self.until_end(global_rows(own), self.blocks.document[rows])

    def until_end(self, tokens: Tensor, document: Tensor) -> Blocks:
        """Sampled tokens [n, length + 1] as blocks, masked behind their first end-of-text."""
        eos, pad = end_of_text(self.tokenizer), padding(self.tokenizer)
        return completed(tokens, document, self.config.prompt, eos, pad)

    def outputs(self, blocks: Blocks, rows: Tensor | None) -> HiddenStates | TopK | None:
        """The teacher's outputs for ``blocks``: training blocks ``rows``, or sampled ones (None).

        None if the objective has no teacher.
        """
        if self.config.objective == "ce":
            return None
        if self.stored_outputs is not None and rows is not None:
            return self.stored_outputs.at(rows)
        with self.accelerator.autocast():
            return compute_outputs(self.teacher, blocks.tokens, self.topk, self.config.temperature)

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
    """Let the teacher complete the texts, and store its outputs, where the options ask for it."""
    teacher.eval().requires_grad_(False)
    accelerator = run.accelerator
    blocks, unseen = blocks.to(accelerator.device), unseen.to(accelerator.device)
    with accelerator.autocast():
        tensors = compute_tensors(teacher, unseen.tokens)
    unseen_outputs = HiddenStates(tensors["hidden"], teacher.weight)
    data = TeacherData(config, accelerator, blocks, unseen, teacher, tokenizer, unseen_outputs)
    if config.completions == "teacher":
        data = replace(data, blocks=_completed_by_teacher(data, run))
    if config.teacher_cache:
        data = replace(data, stored_outputs=_stored_outputs(data, run))
    return data


def _completed_by_teacher(data: TeacherData, run: Run) -> Blocks:
    """The training blocks with continuations by the teacher, stored for the next run."""
    config, blocks, option = data.config, data.blocks, "--completions teacher:"
    prompts = blocks.tokens[:, : config.prompt]
    about = f"texts, length {config.length}, seed {config.seed}"
    expected = fingerprint(about, data.teacher, prompts)
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
        stored(path, option, expected, make)
        shutil.rmtree(parts, ignore_errors=True)

    run.on_main(write)
    texts = stored(path, option, expected, make)["texts"]
    return data.until_end(texts.long().to(prompts.device), blocks.document)


def _stored_outputs(data: TeacherData, run: Run) -> HiddenStates | TopK:
    """The teacher's outputs for the training blocks, from ``--teacher-cache`` or into it."""
    config, tokens, path = data.config, data.blocks.tokens, Path(data.config.teacher_cache)
    about = f"outputs, topk {data.topk}, precision {config.mixed_precision}"
    if data.topk:
        about += f", temperature {config.temperature}"
    expected = fingerprint(about, data.teacher, tokens)

    def make() -> dict[str, Tensor]:
        run.say(f"the teacher reads {tokens.numel():,} tokens ...")
        with data.accelerator.autocast():
            return compute_tensors(data.teacher, tokens, data.topk, config.temperature)

    run.on_main(lambda: stored(path, "--teacher-cache", expected, make) and None)
    tensors = stored(path, "--teacher-cache", expected, make)
    on_device = {name: tensor.to(tokens.device) for name, tensor in tensors.items()}
    return TopK(**on_device) if data.topk else HiddenStates(**on_device, weight=data.teacher.weight)


@torch.no_grad()
def compute_outputs(
    teacher: LanguageModel, tokens: Tensor, topk: int = 0, temperature: float = 1.0
) -> HiddenStates | TopK:
    """The teacher's predictions [n, length, ...] in blocks of tokens [n, length + 1].

    Hidden states, or with ``topk`` that many largest probabilities at the temperature.
    """
    states = HiddenStates(*teacher(tokens[:, :-1]))
    if not topk:
        return states
    parts = [
        (states.at(row).logits() / temperature).log_softmax(-1).topk(topk, dim=-1)
        for row in range(len(tokens))
    ]
    log_p, largest = (torch.stack(part) for part in zip(*parts, strict=True))
    return TopK(log_p, largest)


def compute_tensors(
    teacher: LanguageModel, tokens: Tensor, topk: int = 0, temperature: float = 1.0
) -> dict[str, Tensor]:
    """:func:`compute_outputs` for many blocks, as tensors of a file: named like their fields."""
    parts: list[dict[str, Tensor]] = []
    for part in tokens.split(PER_PASS):
        _stop_if_interrupted()
        outputs = compute_outputs(teacher, part, topk, temperature)
        if isinstance(outputs, TopK):
            parts.append({"log_p": outputs.log_p, "tokens": outputs.tokens.int()})
        else:
            parts.append({"hidden": outputs.hidden})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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


def _stop_if_interrupted() -> None:
    """End the program at once: before the first step there is nothing to save."""
    if received():
        raise KeyboardInterrupt
