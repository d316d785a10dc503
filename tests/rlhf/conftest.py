"""A tiny model, preference pairs it has words for, and the programs run on them in this process."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from shared import cli
from shared.run import interrupt
from tests import tiny
from tests.rlhf.programs import PROGRAMS, SMALL, write_rows


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chosen sides are made of other words than the rejected ones."""
    rng = random.Random(1)

    def words(some: list[str], count: int) -> str:
        return " ".join(rng.choices(some, k=count))

    rows = [
        {
            "prompt": words(tiny.WORDS, 4),
            "chosen": " " + words(tiny.WORDS[:40], rng.randint(2, 5)),
            "rejected": " " + words(tiny.WORDS[40:], rng.randint(2, 5)),
        }
        for _ in range(80)
    ]
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


@pytest.fixture
def trained(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Run a program in this process; what it does to signals is undone."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    examples = write_rows(
        tmp_path / "examples.jsonl",
        [
            {"prompt": row["prompt"], "completion": row["chosen"]}
            for row in map(json.loads, pairs.read_text().splitlines())
        ],
    )
    source = {"sft": ["--text", examples], "rloo": []}

    def start(name: str, *options: Any, out: str = "") -> Path:
        folder = tmp_path / (out or name)
        own = [o for o in SMALL if name != "rloo" or o not in ("--limit", "16")]
        argv = (
            options
            if "--resume" in options
            else [
                *own,
                "--model",
                tiny_model,
                *source.get(name, ["--preferences", pairs]),
                "--out",
                folder,
                *options,
            ]
        )
        monkeypatch.setattr(interrupt, "_received", 0)
        AcceleratorState._reset_state(True)  # the precision of the run before, in the same test
        program: ModuleType = PROGRAMS[name]
        try:
            program.train(*cli.read_config(program.PRESETS, name, [str(a) for a in argv]))
        finally:
            interrupt.uninstall()
        return folder

    return start
