"""One thread and no example database: the same examples, at the same speed, on every machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.golden import run_smoke
from tests.helpers import Processes

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "zoo", derandomize=True, database=None, deadline=None, max_examples=200
)
hypothesis.settings.load_profile("zoo")


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
