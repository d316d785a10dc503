"""A run that is cut and continued in a new process equals one that was not, to the last bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import PATIENCE, QUIET, ROOT, Processes, assert_same_run, last_state
from tests.programs import SMALLEST, SPECIMEN


def test_cut_in_the_middle_of_epoch_1(tmp_path: Path, processes: Processes) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert processes(*SMALLEST, "--out", whole).code == 0
    stopped = processes(*SMALLEST, "--out", cut, fault="signal:SIGINT:5")
    assert stopped.code == 130
    assert f"--resume {cut}" in stopped.err
    assert len(stopped.err.splitlines()) == 1
    progress = json.loads((cut / "checkpoints/step-00000005/progress.json").read_text())
    assert (progress["epoch"], progress["steps_in_epoch"]) == (1, 2)
    assert not (cut / "model").exists()
    assert processes("--resume", cut).code == 0
    assert_same_run(whole, cut)
    assert (cut / "model/manifest.json").exists()


def test_cut_at_the_last_step_of_an_epoch_and_of_the_run(
    tmp_path: Path, processes: Processes
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert processes(*SMALLEST, "--out", whole).code == 0
    assert processes(*SMALLEST, "--out", cut, fault="signal:SIGTERM:3").code == 143
    assert processes("--resume", cut, fault="signal:SIGINT:6").code == 130
    assert processes("--resume", cut).code == 0
    assert_same_run(whole, cut)


def test_from_an_earlier_checkpoint(tmp_path: Path, processes: Processes) -> None:
    run = tmp_path / "run"
    assert processes(*SMALLEST, "--out", run).code == 0
    weights, _ = last_state(run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert processes("--resume", run / "checkpoints/step-00000003").code == 0
    again, _ = last_state(run)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == len(lines) == 2


def test_runs_of_different_seeds_differ(tmp_path: Path, processes: Processes) -> None:
    """So that the comparison above can fail."""
    for seed in (0, 1):
        out = tmp_path / str(seed)
        assert processes(*SMALLEST, "--epochs", 1, "--seed", seed, "--out", out).code == 0
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "0", tmp_path / "1")


def test_the_documented_command_stops_and_goes_on(tmp_path: Path) -> None:
    """The command itself, without a helper in between, stopped from outside at any moment."""
    command = [sys.executable, "-m", SPECIMEN]
    out = tmp_path / "run"
    env = os.environ | QUIET
    process = subprocess.Popen(
        [*command, *SMALLEST, "--epochs", "100000", "--out", str(out)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            break
    second = subprocess.run(
        [*command, "--resume", str(out)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert second.stderr == f"{SPECIMEN}: error: {out}: another process trains there\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    assert len(err.splitlines()) == 1
    (newest,) = [max((out / "checkpoints").iterdir())]
    progress = json.loads((newest / "progress.json").read_text())
    assert progress["epoch"] >= 3
    # The signal may come in any of an epoch's three steps. After the last one the checkpoint is
    # written before the epoch is counted and recorded: three steps of an epoch that is still open.
    assert 0 <= progress["steps_in_epoch"] <= 3
    assert progress["step"] == 3 * progress["epoch"] + progress["steps_in_epoch"]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == progress["records"] == progress["epoch"]
