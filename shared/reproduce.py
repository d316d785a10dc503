"""Runs behind committed results: trained once, resumed if they were cut off, read back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared.checkpoint import newest_complete
from shared.errors import UserError


def is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def make_sure(program: str, arguments: str, folder: Path) -> None:
    """Train the run in ``folder`` to its end, from its newest checkpoint if it has any.

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
    done = subprocess.run([sys.executable, "-m", program, *given], check=False)
    if done.returncode:
        raise UserError(f"the run {folder.name} ended with exit code {done.returncode}")


def read_run(program: str, arguments: str, folder: Path) -> dict[str, Any]:
    """One finished run: the command that makes it, where it ran, and its summary."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    environment = json.loads((folder / "env.json").read_text())
    return {
        "run": folder.name,
        "command": f"python -m {program} {arguments}",
        "environment": environment,
        "threads": environment["torch_threads"],
        **summary,
    }
