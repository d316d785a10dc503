"""One thread and no example database: the same examples, at the same speed, on every machine."""

from collections.abc import Iterator

import hypothesis
import pytest
import torch

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
