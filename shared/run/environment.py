"""Command, versions and hardware: all that a result depends on besides the code."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = "torch torchvision accelerate transformers trl gymnasium mujoco numpy safetensors"


def describe() -> dict[str, Any]:
    """Command, versions, processor and accelerator, as JSON values; no host or user names."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": command(),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len((_git("status", "--porcelain", "-uno") or "").splitlines()),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES.split()},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": _cores(),
        "torch_threads": torch.get_num_threads(),
        "accelerators": gpus,
    }


def command() -> str:
    """The command line as one would type it in the root of the repository."""
    main = sys.modules["__main__"].__spec__
    program = f"python -m {main.name}" if main else Path(sys.argv[0]).name
    return " ".join([program, *sys.argv[1:]])


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
