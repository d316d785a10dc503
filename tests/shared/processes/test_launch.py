import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from shared.processes.launch import keep_freed_memory

def step():
    activations = [torch.ones(2**22) for _ in range(6)]  # 16 MiB each

if sys.argv[1] == "keep":
    keep_freed_memory()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_used_again_without_asking_the_kernel() -> None:
    assert page_faults("keep") < page_faults("leave") / 3
