"""Trained networks from folders, and a teacher's logits as targets, kept in a file."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distillation.config import Config
from distillation.data import padded, shifts, window
from distillation.model import CLASSES, Classifier
from shared.data.splits import Split
from shared.errors import UserError
from shared.processes.launch import on_main
from shared.run.checkpoint import check_architecture, read_model
from shared.training.cache import fingerprint, stored

PRETRAINED = Path("distillation/pretrained")
ROWS = 250  # digits whose logits are computed at a time; more leave a CPU's caches


def named(name: str) -> Path:
    """The folder that ``--teacher`` means."""
    return PRETRAINED / "teacher" if name == "pretrained" else Path(name)


def load(path: Path, device: torch.device | str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """Model, ready to evaluate, and its description, from a model folder or a run folder.

    The description: preset, role, config, and metrics if it was trained to its end.

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
        raise UserError(f"{path}: has {len(last)} classes, the digits are {CLASSES}")
    check_architecture(model, weights, path)
    model.load_state_dict(weights)
    return model.to(device).eval(), about


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


def soft_targets(
    config: Config, accelerator: Accelerator, teacher: Classifier, data: Split, folder: Path
) -> Tensor:
    """The teacher's logits of the transfer set, [slots, n, classes], from the cache or computed.

    A slot is a shift of the digits (``matching``), or there is one of them all.
    """
    radius = {"clean": 0, "matching": config.jitter, "averaged": config.target_radius}
    grid, average = shifts(radius[config.targets]), config.targets == "averaged"
    path = Path(config.teacher_logits or folder / "teacher_logits.safetensors")

    def compute() -> dict[str, Tensor]:
        autocast = accelerator.autocast()
        return {"logits": logits(teacher, data.images, grid, average=average, autocast=autocast)}

    def prepare() -> str:
        about = f"{grid}, average {average}, precision {config.mixed_precision}"
        expected = fingerprint(about, teacher, images=data.images)
        stored(path, "--teacher-logits", expected, compute)
        return expected

    expected = on_main(accelerator, prepare)
    targets = stored(path, "--teacher-logits", expected, compute)["logits"]
    return targets.to(accelerator.device)
