"""The curves of the smoke presets are the committed ones, up to other roundings of sums."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import golden


@pytest.mark.slow
@pytest.mark.parametrize("program", golden.METRICS)
def test_the_curve_is_the_committed_one(program: str, smoke_run: Callable[[str], Path]) -> None:
    found = golden.distances(program, smoke_run(program))
    far = {n: d for n, d in found.items() if d[0] > golden.LARGEST or d[1] > golden.MEAN}
    assert not far, "meant to change? python -m tests.golden --write"


def test_a_changed_curve_is_seen(tmp_path: Path) -> None:
    """A loss that is three per cent too large on every line."""
    program = next(name for name, metrics in golden.METRICS.items() if "loss" in metrics)
    committed = json.loads((golden.FOLDER / f"{program}.json").read_text())["curves"]
    committed["loss"] = [1.03 * loss for loss in committed["loss"]]
    rows = [{n: curve[i] for n, curve in committed.items()} for i in range(len(committed["loss"]))]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    found = golden.distances(program, tmp_path)
    assert [name for name, d in found.items() if d[1] > golden.MEAN] == ["loss"]
