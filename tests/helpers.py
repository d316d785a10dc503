"""Starting programs in tests, small runs of them, and comparisons of run folders."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.programs import FORKED, ROOT, SPECIMEN
from tests.programs import TINY as TINY
from tests.programs import TINY_DISTILL as TINY_DISTILL

QUIET = {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}
PATIENCE = 1800
"""Seconds after which a process counts as hung; a busy machine makes no test fail."""


@dataclass
class Result:
    """Exit code, standard output and standard error of every rank."""

    codes: list[int]
    outs: list[str]
    errs: list[str]

    @property
    def code(self) -> int:
        return self.codes[0]

    @property
    def out(self) -> str:
        return self.outs[0]

    @property
    def err(self) -> str:
        return self.errs[0]


class Processes:
    """Fresh processes of programs, forked from a process that only imported them."""

    def __init__(self, programs: Sequence[str] = FORKED) -> None:
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", *programs],
            cwd=ROOT,
            env=os.environ | QUIET,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        *argv: Any,
        program: str = SPECIMEN,
        fault: str = "",
        ranks: int = 1,
        env: dict[str, str] | None = None,
        folder: Path = ROOT,
    ) -> Result:
        """Run a program to its end, in ``folder``.

        ``fault`` is one of ``tests.zygote.FAULTS`` with arguments.
        """
        stdin, stdout = self._zygote.stdin, self._zygote.stdout
        assert stdin is not None
        assert stdout is not None
        with tempfile.TemporaryDirectory() as logs, reserved_port() as port:
            job = {
                "program": program,
                "argv": [str(a) for a in argv],
                "fault": fault,
                "ranks": ranks,
                "env": env or {},
                "folder": str(folder),
                "port": port,
                "logs": logs,
                "seconds": PATIENCE,
            }
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
            codes = json.loads(stdout.readline())
            outs, errs = (
                [Path(logs, f"{rank}.{name}").read_text() for rank in range(ranks)]
                for name in ("out", "err")
            )
        return Result(codes, outs, errs)

    def close(self) -> None:
        self._zygote.communicate(timeout=PATIENCE)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that the system hands to nobody else inside the ``with``.

    It stays bound without listening; a server that reuses addresses, as torch's store does, can
    listen on it all the same.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def refused(result: Result, *words: str, rank: int = 0) -> None:
    """Exit code 2 and exactly one line on standard error, which contains ``words``."""
    assert set(result.codes) == {2}, (result.codes, result.errs)
    assert len(result.errs[rank].splitlines()) == 1, result.errs
    for word in words:
        assert str(word) in result.errs[rank], result.errs[rank]


def last_state(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and flat optimiser state of a run's newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    optimizers = torch.load(newest / "optimizers.pt", weights_only=True)
    return load_file(newest / "model.safetensors"), flatten(optimizers)


def flatten(tree: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and sequences -> {path: leaf}; torch loads a tuple of options as a list."""
    if not isinstance(tree, dict | list | tuple):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, value in items for k, v in flatten(value, f"{name}/{key}").items()}


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without the time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimiser state and metrics are equal to the last bit."""
    for ours, theirs in zip(last_state(a), last_state(b), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            same = torch.equal(value, theirs[name]) if torch.is_tensor(value) else None
            assert same if same is not None else value == theirs[name], name
    assert metrics(a) == metrics(b)


def assert_nearly_same_run(a: Path, b: Path, absolute: float = 1e-12) -> None:
    """Equal but for rounding: weights, gradients' averages, metrics.

    ``absolute``: what rounding makes of a metric that is 0.
    """
    (ours, our_state), (theirs, their_state) = last_state(a), last_state(b)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-4
    averages = [name for name in our_state if name.endswith("exp_avg")]
    assert averages
    for name in averages:
        worst = (our_state[name] - their_state[name]).abs().max()
        assert worst < 1e-3 * our_state[name].abs().max() + 1e-7, name
    for first, second in zip(metrics(a), metrics(b), strict=True):
        assert first == pytest.approx(second, rel=1e-4, abs=absolute)


def flip_byte(path: Path) -> None:
    """Change the middle byte of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
