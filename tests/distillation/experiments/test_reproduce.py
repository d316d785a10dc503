"""The reproduction's commands are valid and in order; tables have the rows whose runs are known."""

import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from distillation.config import PRESETS
from distillation.experiments import reproduce, tables
from distillation.experiments.reproduce import PROGRAM, REPRODUCTION, ROWS, RUNS
from shared import cli
from shared.experiments.reproduce import Options


def test_every_command_is_valid_and_finds_its_teacher():
    trained = []
    for name, run in REPRODUCTION.runs.items():
        _, config = cli.read_config(PRESETS, PROGRAM, run.arguments.split())
        if config.teacher:
            assert config.teacher in ["pretrained"] + [str(RUNS / earlier) for earlier in trained]
        trained.append(name)


def test_a_run_brings_its_teacher():
    assert REPRODUCTION.chosen(Options(only="mlp-soft")) == ["mlp-teacher-seed0", "mlp-soft-seed0"]
    names = REPRODUCTION.chosen(Options(only="plain-hard"))
    assert names == ["plain-hard-seed0", "plain-hard-seed1", "plain-hard-seed2"]
    assert REPRODUCTION.chosen(Options(missing=True)) == []  # every run has a committed record


def test_the_first_teacher_is_committed_as_soon_as_it_is_trained(monkeypatch: pytest.MonkeyPatch):
    published = []
    monkeypatch.setattr(reproduce, "publish", lambda *names: published.append(names))
    for name in REPRODUCTION.runs:
        reproduce.publish_teacher(name)
    assert published == [("teacher", "teacher-seed0")]


def test_a_distilled_row_and_its_baseline_differ_in_the_loss_alone():
    for soft, hard in (("plain", "plain"), ("default", "default"), ("long", "long")):
        (_, a), (_, b) = (
            cli.read_config(PRESETS, PROGRAM, REPRODUCTION.runs[f"{name}-seed0"].arguments.split())
            for name in (f"{soft}-soft", f"{hard}-hard")
        )
        ours, theirs = a.recipe("student"), b.recipe("student")
        assert ours._replace(alpha=0.0) == theirs
        assert ours.alpha == 1


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
