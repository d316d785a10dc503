"""A full disk and a loss that is not a number: one line, and the run can go on from before."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import Processes, assert_same_run, last_state, refused
from tests.programs import SMALLEST


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Path:
    run = tmp_path_factory.mktemp("full") / "whole"
    assert processes(*SMALLEST, "--out", run).code == 0
    return run


@pytest.mark.parametrize("size", [2_000, 60_000])
def test_no_space_for_a_checkpoint(
    size: int, whole: Path, tmp_path: Path, processes: Processes
) -> None:
    """Of about 51 kB weights and 103 kB optimiser state, each size breaks another write."""
    run = tmp_path / "run"
    stopped = processes(*SMALLEST, "--out", run, fault=f"limit:{size}:4")
    refused(stopped, run, "full")
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert not list(run.rglob(".tmp-*"))
    assert processes("--resume", run).code == 0
    assert_same_run(whole, run)


def test_no_space_for_metrics(whole: Path, tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    refused(processes(*SMALLEST, "--out", run, fault="full:4"), run / "metrics.jsonl", "full")
    (run / "metrics.saved").rename(run / "metrics.jsonl")
    assert processes("--resume", run).code == 0
    assert_same_run(whole, run)


def test_half_a_line_of_metrics_is_dropped(
    whole: Path, tmp_path: Path, processes: Processes
) -> None:
    run = tmp_path / "run"
    assert processes(*SMALLEST, "--out", run, fault="signal:SIGTERM:5").code == 143
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    assert processes("--resume", run).code == 0
    assert_same_run(whole, run)


def test_nan_is_not_applied(whole: Path, tmp_path: Path, processes: Processes) -> None:
    run, step = tmp_path / "run", 4
    refused(processes(*SMALLEST, "--out", run, fault=f"poison:{step}"), "loss nan", f"step {step}")
    saved = run / f"checkpoints/step-{step:08d}"
    assert json.loads((saved / "progress.json").read_text())["step"] == step
    assert all(torch.isfinite(w).all() for w in load_file(saved / "model.safetensors").values())
    assert processes("--resume", run).code == 0  # the poison was the test's
    assert_same_run(whole, run)


def test_nan_in_the_first_step(tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    refused(processes(*SMALLEST, "--out", run, fault="poison:0"), "step 0", "nothing was trained")
    refused(processes("--resume", run), "no complete checkpoint")


def test_divergence_is_one_line(tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    argv = [*SMALLEST, "--lr", "1e30", "--out", run]
    refused(processes(*argv), "smaller --lr", run)
    assert all(torch.isfinite(w).all() for w in last_state(run)[0].values())
