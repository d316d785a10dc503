"""What the benchmarks share: a figure measured in a process of its own, on one thread."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.config import option
from shared.errors import UserError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def measure_alone(
    program: str, row: str, options: Mapping[str, Any], env: Mapping[str, str] = NO_GPU
) -> dict[str, float]:
    """What ``python -m program --only row`` prints as its last line: JSON.

    Starting the process and importing are outside the clock of what it measures.

    Args:
        options: by the names of their fields.
        env: what is set beside one thread.

    Raises:
        UserError: it failed, with the row and the last line it said.
    """
    command = [sys.executable, "-m", program, "--only", row]
    command += [word for name, value in options.items() for word in (option(name), str(value))]
    child = subprocess.run(
        command,
        env={**os.environ, **ONE_THREAD, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        said = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        raise UserError(f"{row}: {said[-1].removeprefix(f'{program}: error: ')}")
    figures: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return figures


def check_json(path: str) -> None:
    """UserError unless a file can be written at ``path``; an empty one is none."""
    if path and not Path(path).parent.is_dir():
        raise UserError(f"--json {path}: {Path(path).parent} is no folder")
