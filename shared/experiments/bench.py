"""The harness of all benchmarks: every figure in a process of its own, on one thread.

The rows are measured in turn, round after round, and ratios are of one round, so that other work
on the machine disturbs all rows alike.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from shared.config import Count, option
from shared.errors import UserError
from shared.experiments.tables import describe_columns, markdown, write_result
from shared.run.environment import describe
from shared.run.run import Run

P = ParamSpec("P")
R = TypeVar("R")
Figures = dict[str, float]  # of one measurement
Round = dict[str, Figures]  # by row
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Rounds:
    """The options that every benchmark has."""

    repetitions: Count = 3
    """Rounds; each measures every row once, in a new process."""
    only: str = ""
    """Measure this row once, in this process, and print it as JSON: what every round is made of."""


@dataclass(frozen=True)
class Options(Rounds):
    """Those of a benchmark with one table."""

    json: str = ""
    """File that receives every figure, with the environment."""

    def conflicts(self) -> list[str]:
        """A file that cannot be written."""
        folder = Path(self.json).parent
        return [] if folder.is_dir() else [f"--json {self.json}: {folder} is not a folder"]


def measure_rounds(
    program: str,
    options: Rounds,
    rows: Sequence[str],
    measure: Callable[[str], Figures],
    *,
    passed: str,
    figure: str,
    env: Callable[[str], Mapping[str, str]] = lambda _: NO_GPU,
) -> list[Round]:
    """``--repetitions`` rounds over all rows; with ``--only`` that row here, printed as JSON.

    Args:
        measure: one row, in this process.
        passed: names of the options that the processes of the rows are given.
        figure: format of the figures that are printed after a round, such as ``{seconds:.1f} s``.
        env: environment variables of a row's process, beside one thread.

    Returns:
        the rounds; none with ``--only``.

    Raises:
        UserError: no such row; a measurement failed.
    """
    if options.only and options.only not in rows:
        raise UserError(f"--only {options.only}: must be one of {', '.join(rows)}")
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(measure(options.only)))
        return []
    rounds: list[Round] = []
    values = {name: getattr(options, name) for name in passed.split()}
    for count in range(1, options.repetitions + 1):
        rounds.append({row: measure_alone(program, row, values, env(row)) for row in rows})
        shown = (f"{row} {figure.format(**figures)}" for row, figures in rounds[-1].items())
        print(f"round {count}/{options.repetitions}: {', '.join(shown)}", flush=True)
    return rounds


def measure_alone(
    program: str, row: str, options: Mapping[str, Any], env: Mapping[str, str] = NO_GPU
) -> Figures:
    """The JSON that ``python -m program --only row`` prints as its last line.

    Starting the process and importing are outside the clock of what it measures.

    Raises:
        UserError: it failed, with the row and its last line.
    """
    command = [sys.executable, "-m", program, "--only", row]
    for name, value in options.items():
        command += [option(name), *map(str, value if isinstance(value, tuple) else (value,))]
    child = subprocess.run(
        command,
        env={**os.environ, **ONE_THREAD, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        raise UserError(f"{row}: {lines[-1].removeprefix(f'{program}: error: ')}")
    figures: Figures = json.loads(child.stdout.splitlines()[-1])
    return figures


def report(
    options: Rounds,
    columns: Sequence[tuple[str, str, str]],
    table: list[dict[str, Any]],
    path: str,
    **more: Any,
) -> None:
    """Print the table and a note, if there is one; write them with the environment to ``path``."""
    print("\n" + markdown({"columns": describe_columns(columns), "rows": table}))
    if "note" in more:
        print(more["note"])
    if path:
        write_result(
            Path(path),
            columns,
            table,
            **more,
            load_average=os.getloadavg(),
            options=asdict(options),
            environment=describe(),
        )


def median(rounds: Sequence[Round], row: str, key: str) -> float:
    """Over the rounds."""
    return statistics.median(figures[row][key] for figures in rounds)


def spread(rounds: Sequence[Round], row: str, key: str) -> dict[str, float]:
    """The least and the most of the rounds."""
    values = [figures[row][key] for figures in rounds]
    return {"least": min(values), "most": max(values)}


def ratio(rounds: Sequence[Round], row: str, other: str, key: str, other_key: str = "") -> float:
    """Median over the rounds of the ratio within a round, of ``row`` to ``other``."""
    return statistics.median(
        figures[row][key] / figures[other][other_key or key] for figures in rounds
    )


class Finished(Exception):
    """The clock has stopped; ends a loop that would go on."""


class Clock:
    """CPU time of ``steps`` steps of a loop after ``warmup`` ones, and of its phases."""

    def __init__(self, steps: int, warmup: int = 1) -> None:
        self.steps, self.warmup, self.ticks = steps, warmup, 0
        self.start = self.seconds = 0.0
        self.phases: dict[str, float] = {}

    def tick(self) -> int:
        """End a step; returns the number of steps since the clock stopped, negative before."""
        self.ticks += 1
        if self.ticks == self.warmup:
            self.phases = dict.fromkeys(self.phases, 0.0)
            self.start = time.process_time()
        if self.ticks == self.warmup + self.steps:
            self.seconds = time.process_time() - self.start
        return self.ticks - self.warmup - self.steps

    def timed(self, phase: str, function: Callable[P, R]) -> Callable[P, R]:
        """``function``, its CPU-seconds while the clock runs added to a phase."""
        self.phases[phase] = 0.0

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.process_time()
            result = function(*args, **kwargs)
            if self.ticks < self.warmup + self.steps:
                self.phases[phase] += time.process_time() - start
            return result

        return call


@contextmanager
def on_every_step(action: Callable[[Run], object]) -> Iterator[None]:
    """Within it ``action`` follows every step of a run, and ends the training by ``Finished``."""
    Run.on_step = action
    try:
        with suppress(Finished):
            yield
    finally:
        Run.on_step = None


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
