"""The documented commands of distillation at smoke size."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distillation.model import Classifier
from tests.helpers import PATIENCE, QUIET, ROOT, TINY_DISTILL, Processes, metrics

VARIANTS = {
    "reverse": ["--objective", "reverse", "--targets", "clean"],
    "js": ["--objective", "js", "--targets", "matching", "--jitter", "2"],
    "skew": ["--objective", "skew", "--alpha", "0.5"],
    "decoupled": ["--objective", "decoupled", "--temperature", "4"],
    "tiny": ["--student-layers", "8-8", "--teacher-layers", "20-20", "--input-dropout", "0.2"],
    "self": ["--student-layers", "conv-2-3-2", "--validation", "100"],
    "bf16": ["--mixed-precision", "bf16", "--student-layers", "16-16"],
}


def command(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        cwd=ROOT,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.slow
def test_the_smoke_preset_learns(tmp_path: Path, smoke_run: Callable[[str], Path]) -> None:
    run = smoke_run("distillation.train")
    errors = [line["unseen_errors"] for line in metrics(run)]
    assert errors[-1] < errors[0]
    assert errors[-1] < 200  # of 500; guessing leaves 450
    assert {p.name for p in run.iterdir()} == set(
        """
        config.json env.json metrics.jsonl summary.json checkpoints model pictures teacher
        baseline teacher_logits.safetensors
    """.split()
    )
    for picture in ("dark_knowledge", "curves"):
        assert (run / "pictures" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (run / "model").iterdir()} == set(
        """
        config.json model.safetensors training.json README.md manifest.json
    """.split()
    )
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["unseen"]) == ["teacher", "baseline", "student"]

    out = tmp_path / "new" / "result.json"
    result = command("distillation.evaluate", "--model", run, "--test-size", "500", "--json", out)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    stored = json.loads(out.read_text())
    for role, found in stored["networks"].items():
        assert found["errors"] == summary["unseen"][role]["errors"], role
    assert stored["environment"]["command"].startswith("python -m distillation.evaluate --model")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_objective_and_network(variant: str, tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    argv = [*TINY_DISTILL, *VARIANTS[variant], "--out", run]
    result = processes(*argv, program="distillation.train")
    assert result.code == 0, result.err
    assert result.err == ""
    assert result.out.count("epoch 2/2") == 3
    assert "\r" not in result.out
    evaluated = processes("--model", run, "--test-size", "50", program="distillation.evaluate")
    assert evaluated.code == 0, evaluated.err
    for role in ("teacher", "baseline", "student"):
        assert role in evaluated.out


def test_transfer_sets(tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    argv = [*TINY_DISTILL, "--transfer", "012456789", "--out", run]
    result = processes(*argv, program="distillation.train")
    assert result.code == 0, result.err
    for way in ("raw", "prior matching", "best on test"):
        assert f"student, classes [3] never seen, {way}" in result.out


def test_a_run_without_a_teacher_of_its_own(tmp_path: Path, processes: Processes) -> None:
    teacher, run = tmp_path / "large", tmp_path / "run"
    argv = [*TINY_DISTILL, "--stages", "teacher", "--out", teacher]
    assert processes(*argv, program="distillation.train").code == 0
    argv = [*TINY_DISTILL, "--teacher", teacher, "--out", run]
    result = processes(*argv, program="distillation.train")
    assert result.code == 0, result.err
    assert not (run / "teacher").exists()
    student = processes(
        "--model", run / "model", "--test-size", "50", program="distillation.evaluate"
    )
    assert student.code == 0, student.err
    assert "KL(teacher||.)" in student.out
    assert "+-" in student.out


@pytest.mark.parametrize("program", ["distillation.train", "distillation.evaluate"])
def test_help(program: str, processes: Processes) -> None:
    result = processes("--help", program=program)
    assert result.code == 0
    assert result.err == ""
    assert "usage:" in result.out
    assert "--teacher" in result.out


def test_the_committed_networks(processes: Processes) -> None:
    for folder in ("", "/student"):
        result = processes(
            "--model",
            f"distillation/pretrained{folder}",
            "--test-size",
            "500",
            program="distillation.evaluate",
        )
        assert result.code == 0, result.err
        row = next(line for line in result.out.splitlines() if line.startswith("student"))
        assert int(row.split()[1]) <= 5
        assert "%" in row  # agreement: its teacher was found
    from_hub = Classifier.from_pretrained(ROOT / "distillation/pretrained/student")
    assert {p.dtype for p in from_hub.parameters()} == {torch.float32}
