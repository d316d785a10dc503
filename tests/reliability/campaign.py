"""Every fault on every application, at random moments: ``python -m tests.reliability.campaign``.

A run is disturbed, continued in a new process, and compared with one that was left alone: files of
the last checkpoint to the last bit, and the metrics. Writes ``results/faults.json`` beside this
file; any other outcome than the expected one ends the campaign with an error.
"""

import fcntl
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shared import cli
from shared.config import Count, CountOrZero
from shared.errors import UserError
from shared.experiments.tables import write_result
from shared.run.checkpoint import newest_complete
from shared.run.environment import describe
from tests.helpers import Processes, Result, flatten, flip_byte, metrics
from tests.programs import Disturbed, disturbed

RESULTS = Path(__file__).parent / "results"
RENAMES = ["before rename", "after rename"]


@dataclass(frozen=True)
class Options:
    """Disturb small runs of every application and write the table of outcomes anew."""

    kills: Count = 20
    """SIGKILLs of each application in training, and as many in the writing of a checkpoint."""
    only: str = ""
    """Only this application; the table is not written."""
    seed: CountOrZero = 0
    """Seed of the moments."""


def tensors(run: Path) -> dict[str, Any]:
    """Weights and optimiser state of a run's last checkpoint, by file and name."""
    found: dict[str, Any] = {}
    last = newest_complete(run / "checkpoints")
    for file in sorted(last.iterdir()) if last else []:
        if file.suffix == ".safetensors":
            found |= {f"{file.name}/{name}": x for name, x in load_file(file).items()}
        elif file.name in ("optimizers.pt", "optimizer.pt"):
            found |= flatten(torch.load(file, weights_only=True), file.name)
    return dict(sorted(found.items()))


def alike(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if torch.is_tensor(a) else bool(a == b)


class Campaign:
    """One application's undisturbed run, and what is done to others."""

    def __init__(
        self, app: Disturbed, root: Path, processes: Processes, rng: random.Random
    ) -> None:
        self.app, self.root, self.processes, self.rng = app, root, processes, rng
        self.whole, timed = root / "whole", root / "timed"
        self.expect(self.run("--out", self.whole), 0)
        started = time.perf_counter()
        self.expect(self.run("--out", timed), 0)
        self.seconds = time.perf_counter() - started
        shutil.rmtree(timed)
        self.checkpoints = sorted(path.name for path in (self.whole / "checkpoints").iterdir())

    def run(self, *options: object, fault: str = "", ranks: int = 1) -> Result:
        given = [] if "--resume" in options else [*self.app.arguments, "--keep", "99"]
        return self.processes(*given, *options, program=self.app.program, fault=fault, ranks=ranks)

    def expect(self, result: Result, code: int, *words: str) -> None:
        """UserError unless every process ended with ``code`` and printed ``words``."""
        if set(result.codes) != {code} or not all(word in result.err for word in words):
            raise UserError(
                f"{self.app.program}: expected {code} {words}, got {result.codes}: "
                f"{result.err.strip()[-300:]}"
            )

    def same(self, run: Path, whole: Path) -> None:
        """UserError unless both ended alike: tensors of the last checkpoint, and the metrics."""
        ours, theirs = tensors(run), tensors(whole)
        lines = [
            [{k: x for k, x in line.items() if k != "step_time"} for line in metrics(path)]
            for path in (run, whole)
        ]
        equal = ours.keys() == theirs.keys() and all(map(alike, ours.values(), theirs.values()))
        if not ours or not equal or lines[0] != lines[1]:
            raise UserError(f"{self.app.program}: {run} differs from {whole}")

    def goes_on(self, run: Path) -> str:
        """Continue a run, or start again if there is no checkpoint yet; compare its end."""
        begun = (run / "checkpoints").is_dir() and newest_complete(run / "checkpoints")
        if not begun:
            shutil.rmtree(run, ignore_errors=True)
        self.expect(self.run("--resume", run) if begun else self.run("--out", run), 0)
        self.same(run, self.whole)
        shutil.rmtree(run)
        return "same bits" if begun else "nothing saved yet, started anew"

    # -- faults: each returns its outcomes ---------------------------------------------------------

    def killed_in_training(self, kills: int) -> list[str]:
        run = self.root / "killed"
        found: list[str] = []
        while len(found) < kills:
            seconds = self.rng.uniform(0.1, 0.9) * self.seconds
            result = self.run("--out", run, fault=f"kill:{seconds:.3f}")
            if result.code == 0:  # it ended before the kill
                self.same(run, self.whole)
                shutil.rmtree(run)
                self.seconds *= 0.9
            else:
                self.expect(result, -9)
                found.append(self.goes_on(run))
        return found

    def killed_in_writing(self, kills: int) -> list[str]:
        run = self.root / "killed"
        found = []
        for _ in range(kills):
            stage = self.rng.choice([*self.app.files, *RENAMES])
            fault = f"die:{stage}:{self.rng.choice(self.checkpoints)}"
            self.expect(self.run("--out", run, fault=fault), -9)
            found.append(self.goes_on(run))
        return found

    def terminated_on_one_rank(self, _: int) -> list[str]:
        whole, run = self.root / "two", self.root / "cut"
        self.expect(self.run("--out", whole, ranks=2), 0)
        fault = f"signal:SIGTERM:{self.app.step}:1"
        self.expect(self.run("--out", run, fault=fault, ranks=2), 143, "--resume")
        self.expect(self.run("--resume", run, ranks=2), 0)
        self.same(run, whole)
        shutil.rmtree(run)
        return ["same bits"]

    def disk_full(self, _: int) -> list[str]:
        run = self.root / "full"
        [state] = (self.whole / "checkpoints" / self.checkpoints[0]).glob("optimizer*.pt")
        size = state.stat().st_size
        result = self.run("--out", run, fault=f"limit:{size // 2}:{self.app.step}")
        self.expect(result, 2, "the disk is full")
        return [f"one line, then {self.goes_on(run)}"]

    def damaged(self, _: int, damage: Callable[[Path], None] = flip_byte) -> list[str]:
        found = []
        for file in sorted((self.whole / "checkpoints" / self.checkpoints[-1]).iterdir()):
            run = self.root / "damaged"
            shutil.copytree(self.whole, run)
            damage(run / "checkpoints" / self.checkpoints[-1] / file.name)
            result = self.run("--resume", run)
            words = ["manifest.json"] if file.name == "manifest.json" else [file.name, "damaged"]
            self.expect(result, 2, *words)
            shutil.rmtree(run)
            found.append("refused, the file named")
        return found

    def truncated(self, _: int) -> list[str]:
        return self.damaged(0, lambda path: os.truncate(path, path.stat().st_size // 2))

    def cut_input(self, _: int) -> list[str]:
        run, found = self.root / "cut", []
        for file in self.app.inputs:
            whole = file.read_bytes()
            os.truncate(file, len(whole) // 2)
            self.expect(self.run("--out", run), 2, str(file.parent))
            file.write_bytes(whole)
            if run.exists():
                raise UserError(f"{self.app.program}: half of {file} is refused, but {run} is left")
            found.append("refused, the place named")
        return found

    def not_a_number(self, _: int) -> list[str]:
        return self.poisoned(f"nan:{self.app.gradient}", "not applied")

    def reward_not_a_number(self, _: int) -> list[str]:
        match self.app.program:
            case "rlhf.ppo":  # asked once for their scale, then in every rollout
                return self.poisoned(f"worthless:{self.app.step + 1}", "reward", "nan")
            case "trpo_ppo.train":  # in the third rollout of 256 steps
                return self.poisoned("broken:600", "--env", "non-finite reward")
        return []

    def poisoned(self, fault: str, *words: str) -> list[str]:
        run = self.root / "nan"
        self.expect(self.run("--out", run, fault=fault), 2, *words)
        return [f"one line, then {self.goes_on(run)}"]

    def twice_in_one_folder(self, _: int) -> list[str]:
        held = os.open(self.whole, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        self.expect(self.run("--resume", self.whole), 2, "another process trains there")
        os.close(held)
        return ["refused"]


FAULTS: dict[str, Callable[[Campaign, int], list[str]]] = {
    "SIGKILL at a random moment of the program": Campaign.killed_in_training,
    "SIGKILL while a checkpoint is written": Campaign.killed_in_writing,
    "SIGTERM on one process of two": Campaign.terminated_on_one_rank,
    "disk full while a checkpoint is written": Campaign.disk_full,
    "a flipped byte, in each file of a checkpoint": Campaign.damaged,
    "each file of a checkpoint cut in half": Campaign.truncated,
    "each file of data and pretrained model cut in half": Campaign.cut_input,
    "NaN in a gradient": Campaign.not_a_number,
    "NaN from a reward or an environment": Campaign.reward_not_a_number,
    "a second process on the same folder": Campaign.twice_in_one_folder,
}


def counted(outcomes: list[str]) -> str:
    """Each outcome with its count."""
    return "; ".join(f"{outcomes.count(one)} {one}" for one in dict.fromkeys(sorted(outcomes)))


def main() -> None:
    options = cli.read_options(Options, "tests.reliability.campaign")
    processes, rows = Processes(), []
    with tempfile.TemporaryDirectory() as name:
        runs = disturbed(Path(name))
        if options.only not in ("", *runs):
            raise UserError(f"--only {options.only}: must be one of {', '.join(runs)}")
        chosen = [one for one in runs if options.only in ("", one)]
        for app in chosen:
            folder = Path(name) / "runs" / app
            folder.mkdir(parents=True)
            campaign = Campaign(runs[app], folder, processes, random.Random(options.seed))
            for fault, inflict in FAULTS.items():
                if outcomes := inflict(campaign, options.kills):
                    rows.append(
                        {
                            "application": app,
                            "fault": fault,
                            "n": len(outcomes),
                            "outcome": counted(outcomes),
                        }
                    )
                    print(f"{app}: {fault}: {rows[-1]['outcome']}", flush=True)
    processes.close()
    if not options.only:
        columns = [
            ("application", "application", ""),
            ("fault", "fault", ""),
            ("n", "times", "d"),
            ("outcome", "outcome", ""),
        ]
        write_result(
            RESULTS / "faults.json",
            columns,
            rows,
            kills=options.kills,
            seed=options.seed,
            environment=describe(),
        )
        print(f"{RESULTS / 'faults.json'}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "tests.reliability.campaign")
