"""Checkpoint and model folders, written atomically with checksums; nothing is unpickled.

A folder counts only with its ``manifest.json``, written last. A folder without one is an
interrupted write and is passed over; a file that differs from its checksum is damaged and named.
"""

import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.errors import UserError, first_line, full_disk_is_a_user_error
from shared.run.folder import sha256

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
                entries[str(file.relative_to(temporary))] = sha256(file)
            manifest = temporary / MANIFEST
            manifest.write_text(json.dumps(entries, indent=1) + "\n")
            _sync(manifest)
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_complete(path: Path) -> bool:
    """Whether the folder was written to its end; later damage is not looked for."""
    return (path / MANIFEST).is_file()


def verify_folder(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        UserError: no folder, no manifest, a missing file or a wrong checksum; the file is named.
    """
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    if not is_complete(path):
        raise UserError(
            f"{path} has no {MANIFEST}: not a folder of this zoo, or not written to its end"
        )
    try:
        entries: dict[str, str] = dict(json.loads((path / MANIFEST).read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path / MANIFEST} is damaged ({error})") from error
    for name, expected in entries.items():
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing")
        if sha256(path / name) != expected:
            raise UserError(f"{path / name} is damaged: it differs from its checksum")


def is_intact(path: Path) -> bool:
    """Whether the folder is complete and every file still has its checksum."""
    try:
        verify_folder(path)
        return True
    except UserError:
        return False


def check_architecture(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Compare names and shapes of ``weights``, read from ``path``, with the model's.

    Raises:
        UserError: they differ; the first differing parameter is named with both shapes.
    """
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        ours, theirs = (tuple(s[name].shape) if name in s else "none" for s in (expected, weights))
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
        UserError: a file is damaged or holds more than tensors; no code in it is executed.
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

    A run folder stands for its model, or for its newest checkpoint until it has a model.

    Raises:
        UserError: there is neither, or a file is damaged.
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


def to_resume(run: Path, resume: str) -> Path:
    """The checkpoint that ``--resume`` names, or the newest complete one of the run it names.

    Raises:
        UserError: the run has none.
    """
    path = Path(resume) if Path(resume) != run else newest_complete(run / "checkpoints")
    if path is None:
        raise UserError(f"--resume {run}: holds no complete checkpoint yet; start a new run")
    return path


@contextmanager
def intact_one_named(path: Path) -> Iterator[None]:
    """Around reading a checkpoint: an error also names the newest other one that is intact."""
    try:
        yield
    except UserError as error:
        others = (p for p in path.parent.glob("step-*") if p != path and is_intact(p))
        if (other := max(others, default=None)) is None:
            raise
        raise UserError(f"{error}; {other} is intact, go on with --resume {other}") from error


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and the remains of interrupted writes."""
    complete = sorted(p for p in folder.glob("step-*") if is_complete(p))
    for path in [*complete[:-keep], *folder.glob(".tmp-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
