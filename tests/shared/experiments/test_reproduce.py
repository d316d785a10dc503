"""Several runs at a time, and which rows of a table have all their runs."""

import json
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import UserError
from shared.experiments import reproduce
from tests.helpers import PATIENCE


def test_so_many_at_a_time_each_on_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, seen = threading.Barrier(2, timeout=PATIENCE), []

    def run(command: list[str], check: bool, env: dict[str, str], stdout: int) -> SimpleNamespace:
        both.wait()  # ends only if another run is under way
        seen.append((command[2], env["OMP_NUM_THREADS"], stdout, check))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    reproduce.make_all_sure([(f"x{i}.train", "smoke", tmp_path / f"{i}") for i in range(4)], jobs=2)
    assert sorted(seen) == [(f"x{i}.train", "1", subprocess.DEVNULL, False) for i in range(4)]


def test_after_a_failure_no_other_run_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        started.append(command[-1])
        threading.Event().wait(0.2)  # long enough for the failure to be seen
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="the run 0 ended with exit code 2"):
        reproduce.make_all_sure([("x", "", tmp_path / f"{i}") for i in range(50)], jobs=1)
    assert len(started) < 50  # how many were under way depends on the machine


def test_a_row_is_there_with_all_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"a": ["a0", "a1"], "b": ["b0", "b1"], "c": ["c0"]}
    there: set[str] = set()
    with pytest.raises(UserError, match=r"no row has all .* a \(all\); b \(all\); c \(all\)"):
        reproduce.complete(rows, tmp_path, there.__contains__)
    there = {"a0", "a1", "b0"}
    assert reproduce.complete(rows, tmp_path, there.__contains__) == ["a"]
    assert capsys.readouterr().out == "left out, runs are missing: b (b1); c (all)\n"


def finished(folder: Path, **summary: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "env.json").write_text('{"torch_threads": 1}')
    (folder / "summary.json").write_text(json.dumps(summary))


def test_a_record_stands_for_its_run(tmp_path: Path) -> None:
    folder, records = tmp_path / "runs" / "a", tmp_path / "records"
    known = ("x.train", "smoke --seed 1", folder, records)
    assert reproduce.recall(*known) is None
    finished(folder, errors=5)
    found = reproduce.recall(*known, more=lambda path: {"where": path.name})
    assert found is not None
    assert (found["errors"], found["where"], found["threads"]) == (5, "a", 1)
    assert found["command"] == "python -m x.train smoke --seed 1"
    shutil.rmtree(folder)
    assert reproduce.recall(*known) == found
    assert reproduce.recall("x.train", "smoke --seed 2", folder, records) is None
    finished(folder, errors=4)  # trained anew
    assert reproduce.recall(*known)["errors"] == 4  # type: ignore[index]
    shutil.rmtree(folder)
    assert reproduce.recall(*known)["errors"] == 4  # type: ignore[index]
