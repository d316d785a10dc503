"""CPU-seconds and peak memory of an action, for benchmarks with a process for every row."""

import time
from collections.abc import Callable
from pathlib import Path

from shared.errors import UserError


def measured(action: Callable[[], object]) -> tuple[float, float]:
    """CPU-seconds, and the peak of resident memory above what was held before, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is held now
    before = _status("VmRSS")
    start = time.process_time()
    action()
    seconds = time.process_time() - start
    return seconds, _status("VmHWM") - before


def _status(key: str) -> float:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return float(line.split()[1]) * 1024
    raise UserError(f"/proc/self/status has no {key}: the benchmark needs Linux")
