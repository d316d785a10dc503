"""The reproduction's commands are valid and in order; finished runs are kept, cut ones resumed."""

import json
import subprocess
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

import pytest

from distillation.config import PRESETS
from distillation.experiments import reproduce as distillation
from distillation.experiments import tables
from distillation.experiments.reproduce import COMMANDS, PROGRAM, ROWS, RUNS
from shared import cli
from shared.errors import UserError
from shared.experiments import reproduce


def test_every_command_is_valid_and_finds_its_teacher():
    trained = []
    for name, arguments in COMMANDS.items():
        _, config = cli.read_config(PRESETS, PROGRAM, arguments.split())
        if config.teacher:
            assert config.teacher in ["pretrained"] + [str(RUNS / earlier) for earlier in trained]
        trained.append(name)


def test_missing_runs_bring_their_teacher(monkeypatch: pytest.MonkeyPatch):
    there = {name for name in COMMANDS if "teacher" in name} | {"plain-soft-seed0"}
    there -= {"mlp-teacher-seed0"}
    monkeypatch.setattr(distillation, "known", lambda name: {} if name not in there else {"a": 1})
    names = distillation.to_train(distillation.Options(only="plain-", missing=True))
    assert (
        names
        == """
        plain-soft-seed1 plain-soft-seed2 plain-hard-seed0 plain-hard-seed1 plain-hard-seed2
    """.split()
    )
    names = distillation.to_train(distillation.Options(only="mlp-soft", missing=True))
    assert names == ["mlp-teacher-seed0", "mlp-soft-seed0"]
    names = distillation.to_train(distillation.Options(only="self-student", missing=True))
    assert names == ["self-teacher-seed0", "self-student-seed0"]  # finished, but not here
    alone = distillation.to_train(distillation.Options(only="plain-hard"))
    assert alone == ["plain-hard-seed0", "plain-hard-seed1", "plain-hard-seed2"]
    with pytest.raises(UserError, match="--only nothing: no run's name begins so; teacher, "):
        distillation.to_train(distillation.Options(only="nothing"))


def test_a_distilled_row_and_its_baseline_differ_in_the_loss_alone():
    for soft, hard in (("plain", "plain"), ("default", "default"), ("long", "long")):
        (_, a), (_, b) = (
            cli.read_config(PRESETS, PROGRAM, COMMANDS[f"{name}-seed0"].split())
            for name in (f"{soft}-soft", f"{hard}-hard")
        )
        ours, theirs = a.recipe("student"), b.recipe("student")
        assert ours._replace(alpha=0.0) == theirs
        assert ours.alpha == 1


def calls(monkeypatch: pytest.MonkeyPatch, code: int = 0) -> list[list[str]]:
    made: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        assert not check
        made.append(command[1:])
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    return made


def test_runs_are_trained_resumed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made, folder = calls(monkeypatch), tmp_path / "run"
    reproduce.make_sure("x.train", "smoke --seed 1", folder)
    assert made.pop() == ["-m", "x.train", "smoke", "--seed", "1", "--out", str(folder)]
    (folder / "checkpoints").mkdir(parents=True)  # killed before its first checkpoint
    reproduce.make_sure("x.train", "smoke --seed 1", folder)
    assert made.pop()[-2:] == ["--out", str(folder)]
    assert not folder.exists()
    (folder / "checkpoints/step-00000003").mkdir(parents=True)
    (folder / "checkpoints/step-00000003/manifest.json").write_text("{}")
    reproduce.make_sure("x.train", "smoke --seed 1", folder)
    assert made.pop() == ["-m", "x.train", "--resume", str(folder)]
    (folder / "summary.json").write_text("{}")
    reproduce.make_sure("x.train", "smoke --seed 1", folder)
    assert made == []


def test_a_failed_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls(monkeypatch, code=3)
    with pytest.raises(UserError, match="run alone ended with exit code 3"):
        reproduce.make_sure("x.train", "smoke", tmp_path / "alone")


def fake(errors: int) -> dict[str, object]:
    way = {"errors": errors, "errors_on_missing": 1}
    return {
        "command": "c",
        "digits": 10_000,
        "environment": {},
        "threads": 1,
        "errors": errors,
        "nll": 0.1,
        "calibration_error": 0.01,
        "training_seconds": 5.0,
        "recipe": {"jitter": 1, "epochs": 2},
        "averaged_errors": 1,
        "averaged_over_shifts": 9,
        "corrected": {
            "digits_of_missing": 9,
            "raw": way,
            "prior_matching": way,
            "best_on_test": way,
        },
    }


def test_tables_have_a_row_for_what_is_there(tmp_path: Path):
    counts = [70, 74, 80]
    there = {"plain-soft", "30-30-T3", "only-78"}
    assert there <= ROWS.keys()

    def read(name: str) -> list[dict[str, object]]:
        assert name in ROWS
        return [fake(n) for n in counts] if name in there else []

    tables.write(read, tmp_path)
    found = {path.stem: json.loads(path.read_text())["rows"] for path in tmp_path.glob("*.json")}
    assert {name: len(rows) for name, rows in found.items()} == {
        "headline": 1,
        "temperatures": 2,
        "objectives": 1,
        "transfer": 3,
    }
    (row,) = found["headline"]
    assert (row["value"], row["spread"]) == (pytest.approx(mean(counts)), stdev(counts))
    assert (row["n"], row["reference"]) == (3, 74)
