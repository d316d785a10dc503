"""The same tests at the same speed on every machine, whatever ran before them.

One thread and no example database. Every test starts from the same settings of torch and
Accelerate; every test and every fixture from the same state of the global generators.
``pytest --random-order SEED`` shuffles the files, and the tests in each.
"""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.golden import run_smoke
from tests.helpers import Processes

ENVIRONMENT = dict(os.environ)
hypothesis.settings.register_profile(
    "zoo", derandomize=True, database=None, deadline=None, max_examples=200
)
hypothesis.settings.load_profile("zoo")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--random-order", type=int, metavar="SEED", help="shuffle files and tests")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--random-order") is not None:
        config.option.loadscopereorder = False  # xdist would start with the largest files


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--random-order")
    if seed is not None:
        rng = random.Random(seed)
        place = {path: rng.random() for path in sorted({item.path for item in items})}
        items.sort(key=lambda item: (place[item.path], rng.random()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:  # noqa: ARG001
    """Undo what a training in this process leaves: precision, denormals, threads, variables."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        if name not in ENVIRONMENT:
            del os.environ[name]


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> None:  # noqa: ARG001
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:  # noqa: ARG001
    _seed()


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Starts training programs in fresh processes; see tests.helpers."""
    started = Processes()
    yield started
    started.close()


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished run of a program's smoke preset, for tests that only look at it."""
    runs: dict[str, Path] = {}

    def run(program: str) -> Path:
        if program not in runs:
            out = tmp_path_factory.mktemp("smoke") / program
            run_smoke(program, out)
            runs[program] = out
        return runs[program]

    return run
