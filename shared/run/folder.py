"""A run folder: created or taken over once; its JSON files, written as a whole."""

import fcntl
import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.cli import with_resume_cleared
from shared.config import RunConfig
from shared.errors import UserError, full_disk_is_a_user_error
from shared.run.environment import describe

_locks: dict[Path, int] = {}  # descriptors of this process's run folders


def claim(app: str, preset: str, config: RunConfig) -> Path:
    """The folder of a resumed run, or a new one with its config.json and env.json.

    Raises:
        UserError: ``--out`` exists; another process trains there; the disk is full (nothing of
            the folder remains).
    """
    if config.resume:
        named = Path(config.resume)
        folder = named if (named / "checkpoints").is_dir() else named.parent.parent
        _lock(folder)
        return folder
    folder = _create(config.out, f"runs/{app}-{preset}")
    stored = asdict(with_resume_cleared(config))
    try:
        write_json(folder / "config.json", {"application": app, "preset": preset, "config": stored})
        write_json(folder / "env.json", describe())
        (folder / "checkpoints").mkdir()
        _lock(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _lock(folder: Path) -> None:
    """Keep other processes out of a run folder until this one ends, however it ends.

    Raises:
        UserError: another process has locked it.
    """
    if folder.resolve() in _locks:  # a stage, or a run that goes on in this process
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{folder}: another process trains there") from None
    except OSError:  # a file system without locks
        pass
    _locks[folder.resolve()] = descriptor  # open, and so locked, until the process ends


def _create(out: str, default: str) -> Path:
    for attempt in range(1, 10_000):
        folder = Path(out or (default if attempt == 1 else f"{default}-{attempt}"))
        try:
            with full_disk_is_a_user_error(folder):
                folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if out:
                raise UserError(
                    f"--out {folder}: exists already; continue it with --resume {folder} "
                    f"or name another folder"
                ) from None
    raise UserError(f"--out: {default} and its numbered variants all exist")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl."""
    path = folder / "metrics.jsonl"
    with full_disk_is_a_user_error(path), open(path, "a") as file:
        file.write(json.dumps(as_json(line), allow_nan=False) + "\n")


def keep_metrics(folder: Path, count: int) -> None:
    """Cut metrics.jsonl to its first ``count`` lines; after a kill the last may be incomplete."""
    path = folder / "metrics.jsonl"
    if path.exists():
        write_whole(path, "".join(path.read_text().splitlines(keepends=True)[:count]))


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, as a whole or not at all; a full disk is a UserError."""
    write_whole(path, json.dumps(as_json(value), indent=2, allow_nan=False) + "\n")


def as_json(value: Any) -> Any:
    """The same with null for numbers that JSON does not have: NaN and infinities."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: as_json(part) for key, part in value.items()}
        case list() | tuple():
            return [as_json(part) for part in value]
        case _:
            return value


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, as a whole or not at all; a full disk is a UserError."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with full_disk_is_a_user_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                temporary.write_text(content)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
