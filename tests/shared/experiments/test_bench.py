"""The harness of the benchmarks: the clock, the arithmetic of rounds, a row in its own process."""

import subprocess
import sys

import pytest

from shared.experiments import bench
from shared.experiments.bench import Clock, Finished, median, on_every_step, ratio, spread
from shared.run.run import Run
from tests.helpers import ROOT

ROUNDS = [
    {"a": {"x": 4.0, "y": 1.0}, "b": {"x": 1.0, "y": 2.0}},
    {"a": {"x": 60.0, "y": 1.0}, "b": {"x": 10.0, "y": 2.0}},
    {"a": {"x": 10.0, "y": 1.0}, "b": {"x": 2.0, "y": 4.0}},
]


def test_only_whole_steps_after_the_warm_up_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(bench.time, "process_time", lambda: now)

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    clock = Clock(steps=2)
    sampled = clock.timed("sampling", work)
    left = []
    for sampling, rest in ((50.0, 40.0), (2.0, 1.0), (4.0, 3.0)):
        sampled(sampling)
        work(rest)
        left.append(clock.tick())
    sampled(100.0)
    assert (clock.seconds, clock.phases, left) == (10.0, {"sampling": 6.0}, [-2, -1, 0])
    assert clock.tick() == 1


def test_ratios_are_of_one_round() -> None:
    assert ratio(ROUNDS, "a", "b", "x") == 5  # the median of 4, 6 and 5
    assert ratio(ROUNDS, "a", "b", "x", "y") == 2.5  # of 2, 30 and 2.5
    assert median(ROUNDS, "a", "x") == 10
    assert spread(ROUNDS, "a", "x") == {"least": 4, "most": 60}


def test_a_hook_of_runs_ends_with_its_block() -> None:
    with on_every_step(lambda _: None):
        assert Run.on_step is not None
        raise Finished
    assert Run.on_step is None


PROGRAM = """
from shared.experiments.bench import measured
held = []
seconds, peak = measured(lambda: held.append(bytearray(b"x" * 2**26)))
print(seconds > 0, 2**26 <= peak < 2**28)
"""


def test_time_and_memory_of_an_action() -> None:
    """In a process of its own, as everywhere: a training in this one makes malloc keep memory."""
    command = [sys.executable, "-c", PROGRAM]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output == "True True\n"
