"""Trained networks from folders; a teacher's logits, kept in a file that knows whose they are."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distillation.config import Config
from distillation.data import padded, window
from distillation.model import CLASSES, Classifier
from shared.errors import UserError, full_disk_is_a_user_error
from shared.run.checkpoint import check_architecture, read_model

PRETRAINED = Path("distillation/pretrained")
ROWS = 250  # digits whose logits are computed at a time; more leave a CPU's caches


def named(name: str) -> Path:
    """The folder that ``--teacher`` means."""
    return PRETRAINED / "teacher" if name == "pretrained" else Path(name)


def load(path: Path, device: torch.device | str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """Model, ready to evaluate, and what is known of it, from a model folder or a run folder.

    What is known: preset, role, config, and metrics if it was trained to its end.

    Raises:
        UserError: nothing there, damaged files, weights of another architecture, or a model of
            other classes than the ten digits.
    """
    weights, about = read_model(path)
    try:
        config = Config.stored(about["config"])
        about["role"] = about.get("role", config.role_of(path.name))
        recipe = config.recipe(about["role"])
        model = Classifier(recipe.layers, recipe.dropout, recipe.input_dropout)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not say which model it holds ({error!r})") from error
    last = weights.get(f"linear.{len(model.linear) - 1}.bias")
    if last is not None and len(last) != CLASSES:
        raise UserError(f"{path}: tells {len(last)} classes apart, the digits are {CLASSES}")
    check_architecture(model, weights, path)
    model.load_state_dict(weights)
    return model.to(device).eval(), about


def fingerprint(
    teacher: Classifier, images: Tensor, grid: Sequence[tuple[int, int]], mode: str
) -> str:
    """What logits depend on, as a hash: weights, digits, shifts and how they are computed."""
    digest = hashlib.sha256(repr((list(grid), mode)).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    digest.update(images.cpu().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def logits(
    teacher: Classifier,
    images: Tensor,
    grid: Sequence[tuple[int, int]],
    *,
    average: bool,
    autocast: AbstractContextManager[Any],
) -> Tensor:
    """The teacher's logits of all digits under each shift, or their mean over the shifts.

    Args:
        images: uint8 [n, 784].

    Returns:
        float32 [shifts, n, classes]; [1, n, classes] of the mean.
    """
    teacher.eval()
    moves = [window(*torch.tensor(move, device=images.device)) for move in grid]
    parts = []
    with autocast:
        for chunk in images.split(ROWS):
            wide = padded(chunk)
            views = [teacher(wide[:, move].float() / 255).float() for move in moves]
            stacked = torch.stack(views)
            parts.append(stacked.mean(0, keepdim=True) if average else stacked)
    return torch.cat(parts, 1)


def write_cache(path: Path, values: Tensor, mark: str) -> None:
    """The logits and their fingerprint, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with full_disk_is_a_user_error(path):
            temporary.write_bytes(save({"logits": values.cpu()}, {"fingerprint": mark}))
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_cache(path: Path, mark: str) -> Tensor:
    """The logits of a file that :func:`write_cache` wrote for this very fingerprint.

    Raises:
        UserError: the file is of another teacher, data set or augmentation, or is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("fingerprint", "none")
            values: Tensor = file.get_tensor("logits")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a teacher's logits ({error})") from error
    if found != mark:
        raise UserError(
            f"--teacher-logits {path}: belongs to another teacher, data set or augmentation "
            f"(fingerprint {found[:12]}, here {mark[:12]}); name another file or delete it"
        )
    return values
