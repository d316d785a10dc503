"""How a program ends."""

import os
import subprocess
import sys

import pytest

from tests.helpers import QUIET, ROOT

PROGRAM = """
import atexit
from shared import cli
from shared.errors import UserError

def main():
    atexit.register(print, "the interpreter's end")
    print("done")
    {end}

cli.run(main, "program")
"""


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [("pass", 0, ""), ("raise UserError('no such file')", 2, "program: error: no such file\n")],
)
@pytest.mark.parametrize("world_size", ["1", "2"])
def test_one_of_several_processes_ends_before_the_interpreters_end(
    end: str, code: int, message: str, world_size: str
) -> None:
    """Which gloo's threads do not always survive, also after the process group's end."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)],
        cwd=ROOT,
        env=os.environ | QUIET | {"WORLD_SIZE": world_size, "RANK": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (code, message)
    last = ["the interpreter's end"] if world_size == "1" else []
    assert run.stdout.splitlines() == ["done", *last]
