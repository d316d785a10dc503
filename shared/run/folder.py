"""The files of a run folder that are written whole: claimed once, read back, cut back."""

import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.cli import with_resume_cleared
from shared.config import RunConfig
from shared.errors import UserError, full_disk_is_a_user_error
from shared.run.environment import describe

_held: dict[Path, int] = {}  # run folders of this process, open


def claim(app: str, preset: str, config: RunConfig) -> Path:
    """The folder of a resumed run, or a new one with its config.json and env.json.

    Raises:
        UserError: ``--out`` is taken; another process trains there; the disk is full (nothing of
            the folder remains).
    """
    if config.resume:
        given = Path(config.resume)
        folder = given if (given / "checkpoints").is_dir() else given.parent.parent
        _hold(folder)
        return folder
    folder = _create(config.out, f"runs/{app}-{preset}")
    stored = asdict(with_resume_cleared(config))
    try:
        write_json(folder / "config.json", {"application": app, "preset": preset, "config": stored})
        write_json(folder / "env.json", describe())
        (folder / "checkpoints").mkdir()
        _hold(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _hold(folder: Path) -> None:
    """Keep other processes out of a run folder until this one ends, however it ends.

    Raises:
        UserError: another process holds it.
    """
    if folder.resolve() in _held:  # a stage, or a run that goes on in this process
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise UserError(f"{folder}: another process trains there") from None
    except OSError:  # a file system without locks
        pass
    _held[folder.resolve()] = held  # open, and so locked, until the process ends


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
                    f"--out {folder}: is there already; continue it with --resume {folder} "
                    f"or name another folder"
                ) from None
    raise UserError(f"--out: {default} and its numbered variants are all taken")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl."""
    path = folder / "metrics.jsonl"
    with full_disk_is_a_user_error(path), open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def keep_metrics(folder: Path, count: int) -> None:
    """Cut metrics.jsonl to its first ``count`` lines, also where the last is half a line."""
    path = folder / "metrics.jsonl"
    if path.exists():
        write_whole(path, "".join(path.read_text().splitlines(keepends=True)[:count]))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, as a whole or not at all; a full disk is one clear error."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, as a whole or not at all; a full disk is one clear error."""
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
