"""Runs are trained once, resumed if they were cut off, and read back from folder or record."""

import json
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared import cli
from shared.errors import UserError
from shared.experiments.reproduce import Options, Reproduction, Row, Run, ensure_run
from tests.helpers import PATIENCE


def reproduction(tmp_path: Path, **more: Any) -> Reproduction:
    runs = tmp_path / "runs"
    rows = {
        "teacher": Row("x.train", "default --seed SEED", range(2)),
        "student": Row("x.train", f"small --teacher {runs}/teacher-seedSEED --seed SEED", range(2)),
        "alone": Row("y.train", "smoke", variables={"A": "1"}),
    }
    return Reproduction(rows, runs, tmp_path / "records", **more)


def finished(folder: Path, **summary: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "env.json").write_text('{"torch_threads": 1}')
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the programs that would be run, without the interpreter."""
    commands: list[list[str]] = []

    def run(command: list[str], check: bool, **_: Any) -> SimpleNamespace:
        assert not check
        commands.append(command[1:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


# -- commands --------------------------------------------------------------------------------------


def test_runs_of_a_seed_come_before_those_of_the_next(tmp_path: Path) -> None:
    runs = reproduction(tmp_path).runs
    assert list(runs) == "teacher-seed0 student-seed0 alone teacher-seed1 student-seed1".split()
    assert runs["student-seed1"] == Run(
        "x.train", f"small --teacher {tmp_path}/runs/teacher-seed1 --seed 1", {}
    )
    assert runs["alone"] == Run("y.train", "smoke", {"A": "1"})


def test_runs_are_chosen_by_name_and_bring_those_that_they_learn_from(tmp_path: Path) -> None:
    all_runs = reproduction(tmp_path)
    assert all_runs.chosen(Options()) == list(all_runs.runs)
    assert all_runs.chosen(Options(only="alone")) == ["alone"]
    assert all_runs.chosen(Options(only="dent-seed1")) == ["teacher-seed1", "student-seed1"]
    assert all_runs.chosen(Options(only="study"), "study") == []
    with pytest.raises(UserError, match="--only x: is in the name of no run; teacher, student, al"):
        all_runs.chosen(Options(only="x"))
    with pytest.raises(UserError, match="--only: names what is trained, --collect trains nothing"):
        all_runs.chosen(Options(only="alone", collect=True))


def test_what_has_a_record_is_not_missing(tmp_path: Path) -> None:
    all_runs = reproduction(tmp_path)
    for name in ("teacher-seed0", "teacher-seed1", "student-seed0"):
        finished(tmp_path / "runs" / name)
        assert all_runs.record(name)
    shutil.rmtree(tmp_path / "runs")
    assert all_runs.chosen(Options(missing=True)) == ["alone", "teacher-seed1", "student-seed1"]


@pytest.mark.parametrize(
    "program",
    """
    vae.experiments.reproduce distillation.experiments.reproduce
    distillation.lm.experiments.reproduce rlhf.experiments.reproduce
    trpo_ppo.experiments.reproduce trpo_ppo.experiments.compare
    """.split(),
)
def test_every_reproduction_takes_the_same_options(program: str) -> None:
    module = __import__(program, fromlist=["Options"])
    assert issubclass(module.Options, Options)
    assert cli.parse(module.Options, ["--only", "a", "--missing"], program).missing


# -- training --------------------------------------------------------------------------------------


def test_runs_are_trained_resumed_and_kept(tmp_path: Path, made: list[list[str]]) -> None:
    run, folder = Run("x.train", "smoke --seed 1", {}), tmp_path / "run"
    ensure_run(run, folder)
    assert made.pop() == ["-m", "x.train", "smoke", "--seed", "1", "--out", str(folder)]
    (folder / "checkpoints").mkdir(parents=True)  # killed before its first checkpoint
    ensure_run(run, folder)
    assert made.pop()[-2:] == ["--out", str(folder)]
    assert not folder.exists()
    (folder / "checkpoints/step-00000003").mkdir(parents=True)
    (folder / "checkpoints/step-00000003/manifest.json").write_text("{}")
    ensure_run(run, folder)
    assert made.pop() == ["-m", "x.train", "--resume", str(folder)]
    (folder / "summary.json").write_text("{}")
    ensure_run(run, folder)
    assert made == []


def test_a_failed_run_is_named(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import os, sys; sys.exit(3 if os.environ['WORD'] == 'x' else 0)")
    variables = {"PYTHONPATH": str(tmp_path), "WORD": "x"}
    with pytest.raises(UserError, match="run alone ended with exit code 3"):
        ensure_run(Run("fails", "", variables), tmp_path / "alone")
    ensure_run(Run("fails", "", variables | {"WORD": "y"}), tmp_path / "alone")


def test_each_run_is_announced_when_it_is_trained(tmp_path: Path, made: list[list[str]]) -> None:
    order: list[str] = []
    names = ["alone", "teacher-seed0"]
    reproduction(tmp_path).train(names, after=lambda name: order.append(f"{name} {len(made)}"))
    assert order == ["alone 1", "teacher-seed0 2"]


def many(tmp_path: Path, count: int) -> Reproduction:
    rows = {f"{i}": Row(f"x{i}.train", "smoke") for i in range(count)}
    return Reproduction(rows, tmp_path, tmp_path / "records")


def test_several_at_a_time_each_on_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, seen = threading.Barrier(2, timeout=PATIENCE), []

    def run(command: list[str], check: bool, env: dict[str, str], stdout: int) -> SimpleNamespace:
        both.wait()  # ends only if another run is under way
        seen.append((command[2], env["OMP_NUM_THREADS"], stdout, check))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    four = many(tmp_path, 4)
    four.train_in_parallel(list(four.runs), jobs=2)
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
    fifty = many(tmp_path, 50)
    with pytest.raises(UserError, match="the run 0 ended with exit code 2"):
        fifty.train_in_parallel(list(fifty.runs), jobs=1)
    assert len(started) < 50  # how many were under way depends on the machine


# -- records ---------------------------------------------------------------------------------------


def test_a_row_is_complete_with_all_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_runs = reproduction(tmp_path)
    rows = {row: all_runs.names(row) for row in all_runs.rows}
    with pytest.raises(UserError, match=r"no row has all .* teacher \(all\); student \(all\); al"):
        all_runs.complete_rows(rows)
    for errors, name in enumerate(("teacher-seed0", "teacher-seed1", "student-seed0")):
        finished(tmp_path / "runs" / name, errors=errors)
    (row, records), *others = all_runs.complete_rows(rows).items()
    assert (row, [record["errors"] for record in records], others) == ("teacher", [0, 1], [])
    expected = "left out, runs are missing: student (student-seed1); alone (all)\n"
    assert capsys.readouterr().out == expected
    assert [record["errors"] for record in all_runs.row_records("student")] == [2]


def test_a_record_stands_for_its_run(tmp_path: Path) -> None:
    def read(arguments: str = "smoke --seed 1") -> dict[str, Any] | None:
        return Reproduction(
            {"a": Row("x.train", arguments)},
            tmp_path / "runs",
            tmp_path / "records",
            details=lambda folder: {"where": folder.name},
        ).record("a")

    folder = tmp_path / "runs" / "a"
    assert read() is None
    finished(folder, errors=5)
    found = read()
    assert found is not None
    assert (found["errors"], found["where"], found["threads"]) == (5, "a", 1)
    assert found["command"] == "python -m x.train smoke --seed 1"
    shutil.rmtree(folder)
    assert read() == found
    assert read("smoke --seed 2") is None
    finished(folder, errors=4)  # trained again
    assert read()["errors"] == 4  # type: ignore[index]
    shutil.rmtree(folder)
    assert read()["errors"] == 4  # type: ignore[index]
