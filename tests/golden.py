"""Short curves every application must keep drawing.

``python -m tests.golden`` runs the smoke presets and says how far each metric is from its
committed curve in ``tests/curves``; with ``--write`` the curves are written anew. That is for a
change that is meant to change what is learned: say why in its message.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers import PATIENCE, QUIET, ROOT, metrics
from tests.programs import CURVES

FOLDER = ROOT / "tests" / "curves"
METRICS = {program: names.split() for program, names in CURVES.items()}
LARGEST, MEAN = 0.02, 0.01  # of a curve's largest value; other roundings of sums stay far below


def run_smoke(program: str, out: Path) -> None:
    """The smoke preset as a user runs it, on one thread.

    Raises:
        AssertionError: it failed, or had something to say on standard error.
    """
    done = subprocess.run(
        [sys.executable, "-m", program, "smoke", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def read(program: str, run: Path) -> dict[str, list[float]]:
    """The curves of a run: a value for every line that has the metric."""
    lines = metrics(run)
    return {name: [line[name] for line in lines if name in line] for name in METRICS[program]}


def distances(program: str, run: Path) -> dict[str, tuple[float, float]]:
    """Largest and mean difference from each committed curve, relative to its largest value.

    Raises:
        ValueError: a curve is longer or shorter than the committed one.
    """
    committed = json.loads((FOLDER / f"{program}.json").read_text())["curves"]
    found = {}
    for name, curve in read(program, run).items():
        apart = [abs(a - b) for a, b in zip(curve, committed[name], strict=True)]
        size = max(map(abs, committed[name]))
        found[name] = max(apart) / size, sum(apart) / len(apart) / size
    return found


def main() -> None:
    for program in METRICS:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            run_smoke(program, run)
            if "--write" in sys.argv[1:]:
                environment = json.loads((run / "env.json").read_text())
                environment["command"] = f"python -m {program} smoke"
                content = {"environment": environment, "curves": read(program, run)}
                path = FOLDER / f"{program}.json"
                path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
            for name, (largest, mean) in distances(program, run).items():
                print(f"{program:24}{name:28}{largest:10.1e}{mean:10.1e}", flush=True)


if __name__ == "__main__":
    main()
