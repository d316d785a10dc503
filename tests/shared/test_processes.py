"""Several processes of a program end as one does: its exit code, its one line, nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers import QUIET, ROOT, TINY

LONG = [*TINY, "--epochs", "10000", "--checkpoint-every", "1"]


def start(*argv: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "shared.processes", *map(str, argv)],
        cwd=ROOT, env=os.environ | QUIET, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def begun(run: Path) -> "subprocess.Popen[str]":
    """Two processes that train and have written a checkpoint."""
    launcher = start(2, "cpu", "vae.train", *LONG, "--out", run)
    end = time.monotonic() + 60
    while not list(run.glob("checkpoints/step-*/manifest.json")):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return launcher


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["two", "cpu", "vae.train"], "NPROC=two: must be a whole number"),
        (["0", "cpu", "vae.train"], "NPROC=0: must be a whole number"),
        (["2", "gpu", "vae.train"], "LAUNCH=gpu: is none of cpu, ddp"),
        (["2", "cpu"], "usage:"),
        (["2", "cpu", "vae.train", "smoke", "--beta", "nan"], "vae.train: error: --beta nan"),
    ],
)
def test_an_error_is_one_line(argv: list[str], said: str) -> None:
    launcher = start(*argv)
    _, err = launcher.communicate(timeout=120)
    assert (launcher.returncode, err.count("\n")) == (2, 1), err
    assert said in err


@pytest.mark.parametrize("how", ["cpu", "ddp"])  # torchrun, Accelerate
def test_nothing_is_said_of_what_went_well(how: str, tmp_path: Path) -> None:
    launcher = start(2, how, "vae.train", *TINY, "--out", tmp_path / "run")
    out, err = launcher.communicate(timeout=120)
    assert (launcher.returncode, err) == (0, "")
    assert out.count("epoch 2/2") == 1
    assert "2 process(es) x 12.5" in out
    assert (tmp_path / "run/summary.json").exists()


def test_an_interruption_is_passed_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = begun(run)
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 130
    assert err == f"vae.train: interrupted; everything is saved, go on with --resume {run}\n"


def test_a_process_that_was_killed_is_named(tmp_path: Path) -> None:
    launcher = begun(tmp_path / "run")
    [rank] = [child for child in psutil.Process(launcher.pid).children()
              if child.environ().get("RANK") == "1"]  # fmt: skip
    rank.kill()
    _, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert "vae.train: process 1 was ended by SIGKILL\n" in err
