"""What the teacher says about blocks of tokens, live or from a file, and the texts it writes."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distillation.lm.objective import Head, TopK
from shared.errors import UserError, full_disk_is_a_user_error
from shared.language_models.causal import LanguageModel
from shared.run.interrupt import received
from shared.training.seeding import generator

PER_PASS = 16  # blocks in a forward pass outside training
TEXTS_PER_PASS = 64  # written side by side


def _stop_if_asked() -> None:
    """Before there is a step to save, an interruption ends the program at once."""
    if received():
        raise KeyboardInterrupt


@torch.no_grad()
def ask(
    teacher: LanguageModel, tokens: Tensor, topk: int = 0, temperature: float = 1.0
) -> Head | TopK:
    """The teacher's predictions in blocks of tokens [n, length + 1].

    As hidden states, or with ``topk`` as so many largest probabilities at the temperature.
    """
    head = Head(*teacher(tokens[:, :-1]))
    if not topk:
        return head
    parts = [
        (head.at(row).logits() / temperature).log_softmax(-1).topk(topk, dim=-1)
        for row in range(len(tokens))
    ]
    log_p, found = (torch.stack(part) for part in zip(*parts, strict=True))
    return TopK(log_p, found)


def tabulate(
    teacher: LanguageModel, tokens: Tensor, topk: int = 0, temperature: float = 1.0
) -> dict[str, Tensor]:
    """The same for many blocks as tensors to store; :func:`look_up` reads them."""
    rows: list[tuple[Tensor, ...]] = []
    for part in tokens.split(PER_PASS):
        _stop_if_asked()
        answer = ask(teacher, part, topk, temperature)
        if isinstance(answer, TopK):
            rows.append((answer.log_p, answer.tokens.int()))
        else:
            rows.append((answer.hidden,))
    names = ("log_p", "tokens") if topk else ("hidden",)
    return {name: torch.cat(c) for name, c in zip(names, zip(*rows, strict=True), strict=True)}


def look_up(table: dict[str, Tensor], rows: Tensor, weight: Tensor) -> Head | TopK:
    """What :func:`ask` gave for blocks ``rows``; ``weight``: the teacher's output weights."""
    if "hidden" in table:
        return Head(table["hidden"][rows], weight)
    return TopK(table["log_p"][rows], table["tokens"][rows].long())


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
        _stop_if_asked()

        def write(number: int = number, part: Tensor = part) -> dict[str, Tensor]:
            uniforms = torch.rand(len(part), new, generator=generator("cpu", *key, number))
            return {"texts": model.complete(part, uniforms.to(part.device)).int().cpu()}

        path = folder / f"{number:05d}.safetensors"
        texts.append(stored(path, "--completions teacher:", expected, write)["texts"])
        written = number * TEXTS_PER_PASS + len(part)
        say(f"... {written:,} written after {time.monotonic() - started:.0f} s")
    return torch.cat(texts)


def fingerprint(teacher: LanguageModel, tokens: Tensor, **about: Any) -> str:
    """Changes with any weight of the teacher, any of the tokens, and with ``about``."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in [*sorted(teacher.state_dict().items()), ("tokens", tokens)]:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored(
    path: Path, option: str, expected: str, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of a file, which is made if it is not there.

    Raises:
        UserError: the file was made for something else than ``expected``, or is damaged.
    """
    if not path.exists():
        tensors = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        try:
            with full_disk_is_a_user_error(path):
                save_file(tensors, temporary, {"fingerprint": expected})
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("fingerprint", "none")
            if found == expected:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{option} {path}: cannot be read ({error}); delete it") from error
    raise UserError(
        f"{option} {path}: belongs to another teacher, other text or other options (fingerprint "
        f"{found[:12]}, this run's is {expected[:12]}); name another file"
    )
