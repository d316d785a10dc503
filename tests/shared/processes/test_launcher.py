"""Several processes of a program end as one does: its exit code, its one line, nothing else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared.errors import UserError
from shared.processes.launcher import launch
from tests.helpers import PATIENCE, QUIET, ROOT, assert_same_run, reserved_port
from tests.programs import SMALLEST, SPECIMEN

LONG = [*SMALLEST, "--epochs", "10000", "--checkpoint-every", "1"]


_started: list["subprocess.Popen[str]"] = []


@pytest.fixture(autouse=True, scope="module")
def none_is_left() -> Iterator[None]:
    """A launcher waits minutes for another machine; a failed test does not leave it."""
    yield
    for launcher in _started:
        launcher.kill()


def start(*argv: Any, **env: str) -> "subprocess.Popen[str]":
    launcher = subprocess.Popen(
        [sys.executable, "-m", "shared.processes.launcher", *map(str, argv)],
        cwd=ROOT,
        env=os.environ | QUIET | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _started.append(launcher)
    return launcher


def begun(run: Path) -> "subprocess.Popen[str]":
    """Two processes that train and have written a checkpoint."""
    launcher = start(2, "cpu", SPECIMEN, *LONG, "--out", run)
    end = time.monotonic() + PATIENCE
    while not list(run.glob("checkpoints/step-*/manifest.json")):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return launcher


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"NNODES": "0"}, "NNODES=0: must be a whole number"),
        ({"NNODES": "2"}, "needs MASTER_ADDR"),
        ({"NNODES": "2", "MASTER_ADDR": "a"}, "NODE_RANK, 0 on the first"),
        ({"NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "2"}, "must be one of 0 to 1"),
        ({"NNODES": "3", "MASTER_ADDR": "a", "NODE_RANK": "2"}, "a multiple of NNODES=3"),
    ],
)
def test_machines_that_are_none(
    env: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        launch("2", "ddp", [SPECIMEN])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["two", "cpu", SPECIMEN], "NPROC=two: must be a whole number"),
        (["0", "cpu", SPECIMEN], "NPROC=0: must be a whole number"),
        (["2", "gpu", SPECIMEN], "LAUNCH=gpu: must be one of cpu, ddp"),
        (["2", "cpu"], "usage:"),
        (["2", "cpu", SPECIMEN, "smoke", "--beta", "nan"], f"{SPECIMEN}: error: --beta nan"),
    ],
)
def test_an_error_is_one_line(argv: list[str], said: str) -> None:
    launcher = start(*argv)
    _, err = launcher.communicate(timeout=PATIENCE)
    assert (launcher.returncode, err.count("\n")) == (2, 1), err
    assert said in err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes; nothing is said of what went well."""
    run = tmp_path_factory.mktemp("processes") / "whole"
    launcher = start(2, "cpu", SPECIMEN, *SMALLEST, "--out", run)
    out, err = launcher.communicate(timeout=PATIENCE)
    assert (launcher.returncode, err) == (0, "")
    assert out.count("epoch 2/2") == 1
    assert "2 process(es) x 12.5" in out
    return run


@pytest.mark.parametrize("how", ["cpu", "ddp"])  # torchrun, Accelerate
def test_two_machines_do_what_one_does(how: str, whole: Path, tmp_path: Path) -> None:
    """Both of them this one, a process each."""
    run = tmp_path / "run"
    argv = [2, how, SPECIMEN, *SMALLEST, "--out", run]
    with reserved_port() as port:
        where = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        both = [start(*argv, **where, NODE_RANK=rank) for rank in ("0", "1")]
        output = [machine.communicate(timeout=PATIENCE) for machine in both]
    assert [machine.returncode for machine in both] == [0, 0], output
    assert [out.count("epoch 2/2") for out, _ in output] == [1, 0]
    assert_same_run(whole, run)


def test_an_interruption_is_passed_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = begun(run)
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 130
    assert err == f"{SPECIMEN}: interrupted; everything is saved, go on with --resume {run}\n"


def test_a_process_that_was_killed_is_named(tmp_path: Path) -> None:
    launcher = begun(tmp_path / "run")
    [rank] = [
        child
        for child in psutil.Process(launcher.pid).children()
        if child.environ().get("RANK") == "1"
    ]
    rank.kill()
    _, err = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert f"{SPECIMEN}: process 1 was ended by SIGKILL\n" in err


FAILS = """
import os, sys, time
sys.path.insert(0, os.getcwd())
from shared import cli
from shared.errors import UserError

def main():
    rank = os.environ["RANK"]
    time.sleep({seconds} if rank == "0" else 0)
    if rank in "{failing}":
        raise UserError("no such file")
    time.sleep(60)

cli.WAIT_FOR_THE_FIRST = {wait}
cli.run(main, "fails")
"""


@pytest.mark.parametrize(
    ("seconds", "failing", "wait"),
    [(2.0, "01", 60.0), (0.0, "1", 0.5)],
    ids=["process 0 is late", "process 1 alone"],
)
def test_an_error_is_printed_once_whoever_fails_first(
    seconds: float, failing: str, wait: float, tmp_path: Path
) -> None:
    program = FAILS.format(seconds=seconds, failing=failing, wait=wait)
    (tmp_path / "fails.py").write_text(program)
    launcher = start(2, "cpu", "fails", PYTHONPATH=str(tmp_path))
    _, err = launcher.communicate(timeout=PATIENCE)
    assert (launcher.returncode, err) == (2, "fails: error: no such file\n")
