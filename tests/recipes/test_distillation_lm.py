"""The documented commands on the real teacher, and TRL's trainer on a tiny one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distillation.lm.experiments import bench
from tests import tiny
from tests.helpers import PATIENCE, QUIET, ROOT, Processes, metrics


def command(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        cwd=ROOT,
        env=os.environ | QUIET | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.slow
def test_the_smoke_preset_comes_nearer_to_its_teacher(smoke_run: Callable[[str], Path]) -> None:
    run = smoke_run("distillation.lm.train")
    first, last = (line["unseen_kl_teacher_student"] for line in metrics(run))
    assert last < first < 6.4  # where the student starts, on these blocks: 6.5 to 7
    assert (run / "pictures" / "curves.png").exists()


@pytest.mark.slow
def test_trl_as_the_backend(tmp_path: Path) -> None:
    teacher, text = tiny.write_model(tmp_path / "teacher"), tiny.write_texts(tmp_path / "text")
    out = tmp_path / "run"
    result = command(
        "distillation.lm.train",
        "smoke",
        "--backend",
        "trl",
        "--teacher",
        teacher,
        "--text",
        text,
        "--layers",
        "0",
        "--length",
        "8",
        "--prompt",
        "3",
        "--on-policy",
        "1",
        "--epochs",
        "1",
        "--epoch-blocks",
        "8",
        "--evaluation-blocks",
        "4",
        "--out",
        out,
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["unseen"]["kl_teacher_student"] > 0
    assert (out / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("program", ["distillation.lm.train", "distillation.lm.evaluate"])
def test_help(program: str, processes: Processes) -> None:
    result = processes("--help", program=program)
    assert result.code == 0
    assert result.err == ""
    assert "usage:" in result.out


def test_a_row_of_the_benchmark() -> None:
    """Ours and TRL's give the naive path's value."""
    values = []
    for row in bench.METHODS:
        teacher, student = bench.heads(positions=20, vocabulary=300, width=8)
        value = bench.loss(row, teacher, student)
        leaves = (student.hidden, student.head.weight)
        values.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for other in values[1:]:
        for ours, theirs in zip(values[0], other, strict=True):
            assert (ours - theirs).abs().max() < 1e-5
