"""The harness of the six programs that make committed results: runs, their records, the command.

Run folders are large and stay where they were made. A small record of each is committed, so that
tables and pictures can be made again anywhere, and runs can be trained on several machines.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from shared.errors import UserError
from shared.run.checkpoint import newest_complete
from shared.run.folder import write_json

Record = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Train all runs, then write the results of an application."""

    only: str = ""
    """Train only the runs whose names contain this; results are not written."""
    missing: bool = False
    """Train only the runs that have no committed record, and those that they learn from."""
    collect: bool = False
    """Train nothing: write the results of the runs that are finished or have a record; a row
    that lacks a run is left out."""


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seed alone: ``name-seed0`` and so on, or ``name`` without seeds.

    In ``arguments`` the word SEED stands for the seed. A run folder of the same reproduction that
    they name is trained first.
    """

    program: str
    arguments: str
    seeds: Sequence[int] = ()
    variables: Mapping[str, str] = field(default_factory=dict)  # of the environment

    @property
    def command(self) -> str:
        return f"python -m {self.program} {self.arguments}"


class Run(NamedTuple):
    """A training program, its arguments, and variables of its environment."""

    program: str
    arguments: str
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Reproduction:
    """Rows of runs by name, the folder of the runs, and the folder of their records.

    ``details`` adds to a record what the tables need of a run folder beside its summary.
    """

    rows: Mapping[str, Row]
    folder: Path
    records: Path
    details: Callable[[Path], Record] = lambda _: {}

    def names(self, row: str) -> list[str]:
        """The runs of a row."""
        return [f"{row}-seed{seed}" for seed in self.rows[row].seeds] or [row]

    @cached_property
    def runs(self) -> dict[str, Run]:
        """Every run by its name, all of the first seed before the second."""
        every = [
            (place, name, Run(row.program, row.arguments.replace("SEED", str(seed)), row.variables))
            for row_name, row in self.rows.items()
            for place, (name, seed) in enumerate(
                zip(self.names(row_name), row.seeds or [0], strict=True)
            )
        ]
        return {name: run for _, name, run in sorted(every, key=lambda run: run[0])}

    def record(self, name: str) -> Record | None:
        """The result of a run, or None.

        Read from its finished folder, which also writes the record, or else from the committed
        record of this very command.
        """
        run, folder, path = self.runs[name], self.folder / name, self.records / f"{name}.json"
        if is_finished(folder):
            record = read_run(run, folder) | self.details(folder)
            write_json(path, record)
            return record
        if not path.is_file():
            return None
        kept: Record = json.loads(path.read_text())
        return kept if kept["command"] == _command(run) else None

    def row_records(self, row: str) -> list[Record]:
        """The results of a row's runs, as far as they are known."""
        return [record for name in self.names(row) if (record := self.record(name))]

    def complete_rows(self, rows: Mapping[str, Sequence[str]]) -> dict[str, list[Record]]:
        """The results of those rows of a table that lack no run; the others are printed.

        Args:
            rows: the names of the runs of each.

        Raises:
            UserError: every row lacks a run.
        """
        complete, incomplete = {}, []
        for row, names in rows.items():
            records = {name: self.record(name) for name in names}
            missing = [name for name, record in records.items() if record is None]
            if missing:
                which = "all" if len(missing) == len(names) else ", ".join(missing)
                incomplete.append(f"{row} ({which})")
            else:
                complete[row] = [record for record in records.values() if record is not None]
        if not complete:
            raise UserError(
                f"{self.folder}: no row has all of its runs yet; missing: {'; '.join(incomplete)}"
            )
        if incomplete:
            print(f"left out, runs are missing: {'; '.join(incomplete)}")
        return complete

    def chosen(self, options: Options, *others: str) -> list[str]:
        """The names of the runs to train, in order.

        Args:
            others: further names that ``--only`` may choose.

        Raises:
            UserError: ``--only`` is in no name, or stands beside ``--collect``.
        """
        if options.collect and options.only:
            raise UserError("--only: names what is trained, --collect trains nothing; drop one")
        names = [name for name in self.runs if options.only in name]
        if not names and not any(options.only in name for name in others):
            every = ", ".join([*self.rows, *others])
            raise UserError(f"--only {options.only}: is in the name of no run; {every}")
        if options.missing:
            names = [name for name in names if self.record(name) is None]
        needed = {word for name in names for word in self.runs[name].arguments.split()}
        return [name for name in self.runs if name in names or str(self.folder / name) in needed]

    def train(self, names: Sequence[str], after: Callable[[str], None] = lambda _: None) -> None:
        """Train runs one after the other; ``after`` each, it is called with its name.

        Raises:
            UserError: a run failed.
        """
        for name in names:
            ensure_run(self.runs[name], self.folder / name)
            after(name)

    def train_in_parallel(self, names: Sequence[str], jobs: int) -> None:
        """Train runs, ``jobs`` at a time on a thread each; only errors are shown of their output.

        Raises:
            UserError: a run failed; those under way go on to their end, no other is started.
        """
        pool = ThreadPoolExecutor(jobs)
        try:
            runs = ((self.runs[name], self.folder / name) for name in names)
            for job in as_completed(pool.submit(_ensure_quiet_run, *run) for run in runs):
                job.result()
        finally:  # Ctrl-C, too: it reaches the programs, which leave a checkpoint
            pool.shutdown(cancel_futures=True)


def is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def ensure_run(run: Run, folder: Path, **options: Any) -> None:
    """Train a run to its end, from the newest checkpoint in ``folder`` if there is one.

    Args:
        options: of ``subprocess.run``.

    Raises:
        UserError: the training program failed.
    """
    if is_finished(folder):
        return
    if (folder / "checkpoints").is_dir() and newest_complete(folder / "checkpoints"):
        arguments = ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        arguments = [*run.arguments.split(), "--out", str(folder)]
    print(f"== {folder.name}: {run.program} {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", run.program, *arguments]
    options = {"env": os.environ | run.variables} | options
    if code := subprocess.run(command, check=False, **options).returncode:
        raise UserError(f"the run {folder.name} ended with exit code {code}")


def _ensure_quiet_run(run: Run, folder: Path) -> None:
    one_thread = os.environ | run.variables | {"OMP_NUM_THREADS": "1"}
    ensure_run(run, folder, env=one_thread, stdout=subprocess.DEVNULL)


def read_run(run: Run, folder: Path) -> Record:
    """A finished run: the command that makes it, where it ran, and its summary."""
    summary: Record = json.loads((folder / "summary.json").read_text())
    environment = json.loads((folder / "env.json").read_text())
    return {
        "run": folder.name,
        "command": _command(run),
        "environment": environment,
        "threads": environment["torch_threads"],
        **summary,
    }


def read_config(folder: Path) -> Record:
    """The options of a run."""
    config: Record = json.loads((folder / "config.json").read_text())["config"]
    return config


def _command(run: Run) -> str:
    return f"python -m {run.program} {run.arguments}"
