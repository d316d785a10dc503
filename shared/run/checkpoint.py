"""Folders that are whole or not there: temporary folder, checksums, rename; nothing is unpickled.

A folder counts only with its ``manifest.json``, written last. A folder without one is an
interrupted write and is passed over; a file that differs from its checksum is damage and is named.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.errors import UserError, first_line, full_disk_is_a_user_error

MANIFEST = "manifest.json"


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder, then make it ``path`` in one rename.

    An existing ``path`` is removed just before the rename; checkpoints never need that, since each
    step has a name of its own.

    Raises:
        UserError: the disk is full; nothing of the new folder remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{path.name}-{os.getpid()}"
    for left_behind in path.parent.glob(f".tmp-{path.name}-*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    try:
        with full_disk_is_a_user_error(path):
            temporary.mkdir()
            write(temporary)
            entries = {}
            for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
                _sync(file)
                entries[str(file.relative_to(temporary))] = _sha256(file)
            manifest = temporary / MANIFEST
            manifest.write_text(json.dumps(entries, indent=1) + "\n")
            _sync(manifest)
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_complete(path: Path) -> bool:
    """Whether the folder was written to its end; says nothing about later damage."""
    return (path / MANIFEST).is_file()


def verify_folder(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        UserError: no folder, no manifest, a missing file or a wrong checksum; the file is named.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not there")
    if not is_complete(path):
        raise UserError(f"{path} has no {MANIFEST}: it was not written to its end")
    try:
        entries: dict[str, str] = dict(json.loads((path / MANIFEST).read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path / MANIFEST} is damaged ({error})") from error
    for name, expected in entries.items():
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing")
        if _sha256(path / name) != expected:
            raise UserError(f"{path / name} is damaged: it differs from its checksum")


def is_intact(path: Path) -> bool:
    """Whether the folder is complete and every file still is what was written."""
    try:
        verify_folder(path)
    except UserError:
        return False
    return True


def check_architecture(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Compare names and shapes of ``weights``, read from ``path``, with the model's.

    Raises:
        UserError: they differ; the first differing parameter is named with both shapes.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        ours, theirs = (tuple(s[name].shape) if name in s else "none" for s in (own, weights))
        if ours != theirs:
            raise UserError(
                f"{path} is of another architecture: {name} has shape {theirs} there, "
                f"{ours} in the model"
            )


def save_training_state(
    path: Path, weights: dict[str, Any], optimizers: Any, progress: dict[str, Any]
) -> None:
    """Write one checkpoint: weights as safetensors, optimisers' tensors, progress as JSON."""

    def write(folder: Path) -> None:
        contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(contiguous, folder / "model.safetensors")
        buffer = io.BytesIO()  # torch.save to a file hides what the operating system said
        torch.save(optimizers, buffer)
        (folder / "optimizers.pt").write_bytes(buffer.getbuffer())
        (folder / "progress.json").write_text(json.dumps(progress, indent=1) + "\n")

    write_folder(path, write)


def load_training_state(path: Path) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """The three parts of a verified checkpoint; see :func:`save_training_state`.

    Raises:
        UserError: a file is damaged, or is none that training wrote; no code in it is executed.
    """
    verify_folder(path)
    file = path
    try:
        file = path / "optimizers.pt"
        with warnings.catch_warnings(action="ignore"):  # about files that are refused
            optimizers = torch.load(file, map_location="cpu", weights_only=True)
        file = path / "progress.json"
        progress = dict(json.loads(file.read_text()))
        file = path / "model.safetensors"
        return load_file(file), optimizers, progress
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: refused, it holds more than tensors and numbers") from error


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and training configuration from a model folder, or from a run folder.

    Of a run folder, its model, or its newest checkpoint while there is no model yet.

    Raises:
        UserError: neither is there, or a file is damaged.
    """
    folder, about = path, path / "training.json"
    if (path / "checkpoints").is_dir():
        newest = newest_complete(path / "checkpoints")
        if is_complete(path / "model"):
            folder, about = path / "model", path / "model" / "training.json"
        elif newest is not None:
            folder, about = newest, path / "config.json"
    verify_folder(folder)
    try:
        return load_file(folder / "model.safetensors"), json.loads(about.read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be read as a model ({first_line(error)})") from error


def newest_complete(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step in ``folder``, if any."""
    return max((p for p in folder.glob("step-*") if is_complete(p)), default=None)


def newest_intact(folder: Path, besides: Path) -> Path | None:
    """The newest other checkpoint in ``folder`` whose files are what was written, if any."""
    return max((p for p in folder.glob("step-*") if p != besides and is_intact(p)), default=None)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what interrupted writes left behind."""
    complete = sorted(p for p in folder.glob("step-*") if is_complete(p))
    for path in [*complete[:-keep], *folder.glob(".tmp-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
