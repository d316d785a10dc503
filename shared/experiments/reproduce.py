"""Runs behind committed results: trained once, resumed if they were cut off, read back.

Run folders are large and stay where they were made. What each came to is committed as a small
record, so that tables and pictures can be made anew anywhere, and filled from several machines.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.run.checkpoint import newest_complete
from shared.run.folder import write_json


def is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def make_sure(program: str, arguments: str, folder: Path, **options: Any) -> None:
    """Train the run in ``folder`` to its end, from its newest checkpoint if it has any.

    Args:
        options: of ``subprocess.run``.

    Raises:
        UserError: the training program failed.
    """
    if is_finished(folder):
        return
    if (folder / "checkpoints").is_dir() and newest_complete(folder / "checkpoints"):
        given = ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        given = [*arguments.split(), "--out", str(folder)]
    print(f"== {folder.name}: {program} {' '.join(given)}", flush=True)
    done = subprocess.run([sys.executable, "-m", program, *given], check=False, **options)
    if done.returncode:
        raise UserError(f"the run {folder.name} ended with exit code {done.returncode}")


def make_all_sure(runs: Sequence[tuple[str, str, Path]], jobs: int) -> None:
    """``make_sure`` for (program, arguments, folder) each, ``jobs`` at a time on a thread each.

    Of what the programs say only errors are shown.

    Raises:
        UserError: a run failed; those under way go on to their end, no other is started.
    """
    alone: dict[str, Any] = {
        "env": os.environ | {"OMP_NUM_THREADS": "1"},
        "stdout": subprocess.DEVNULL,
    }
    pool = ThreadPoolExecutor(jobs)
    try:
        for job in as_completed([pool.submit(make_sure, *run, **alone) for run in runs]):
            job.result()
    finally:  # Ctrl-C, too: it reaches the programs, which leave a checkpoint
        pool.shutdown(cancel_futures=True)


def complete(
    rows: Mapping[str, Sequence[str]], root: Path, is_there: Callable[[str], bool]
) -> list[str]:
    """The rows of a table all of whose runs are there; says what others lack.

    Args:
        rows: the names of each row's runs.
        root: the folder of the runs, for messages.

    Raises:
        UserError: no row has all of its runs.
    """
    found, lacking = [], []
    for row, names in rows.items():
        missing = [name for name in names if not is_there(name)]
        if missing:
            lacking.append(f"{row} ({', '.join(missing) if len(missing) < len(names) else 'all'})")
        else:
            found.append(row)
    if not found:
        raise UserError(f"{root}: no row has all of its runs yet; missing: {'; '.join(lacking)}")
    if lacking:
        print(f"left out, runs are missing: {'; '.join(lacking)}")
    return found


def read_run(program: str, arguments: str, folder: Path) -> dict[str, Any]:
    """One finished run: the command that makes it, where it ran, and its summary."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    environment = json.loads((folder / "env.json").read_text())
    return {
        "run": folder.name,
        "command": command_line(program, arguments),
        "environment": environment,
        "threads": environment["torch_threads"],
        **summary,
    }


def recall(
    program: str,
    arguments: str,
    folder: Path,
    records: Path,
    more: Callable[[Path], dict[str, Any]] = lambda _: {},
) -> dict[str, Any] | None:
    """What a run came to: :func:`read_run` of its finished folder, which also writes its record,
    or else the record of this very command in ``records``. None if there is neither.

    Args:
        more: what else of the run folder the tables need.
    """
    path = records / f"{folder.name}.json"
    if is_finished(folder):
        found = read_run(program, arguments, folder) | more(folder)
        records.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        return found
    if not path.is_file():
        return None
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept if kept["command"] == command_line(program, arguments) else None


def command_line(program: str, arguments: str) -> str:
    return f"python -m {program} {arguments}"
