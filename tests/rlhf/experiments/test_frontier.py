"""Best-of-n by hand, peaks seen and not seen, fits to curves that are known, the picture."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from rlhf.experiments import frontier, pictures
from rlhf.experiments.overoptimisation import Fit
from shared.figures import COLOURS
from tests.rlhf import made_up

CURVE = Fit("rl", 1.2, 0.6, 1.0)  # its peak is at e


def test_best_of_two_is_the_larger_of_every_pair() -> None:
    proxy, gold = [[1.0, 2.0, 3.0]], [[0.5, -1.0, 0.25]]
    one, two = frontier.best_rows({"proxy": proxy * 2, "gold": gold * 2})
    assert (one["best_of"], one["kl"], two["best_of"]) == (1, 0, 2)
    assert two["kl"] == pytest.approx(math.log(2) - 0.5)
    assert one["gold"] == pytest.approx(-0.25 / 3)
    assert one["gold_by_gold"] == pytest.approx(-0.25 / 3)
    assert two["proxy"] == pytest.approx((2 + 3 + 3) / 3)
    assert two["gold"] == pytest.approx((-1 + 0.25 + 0.25) / 3)
    assert two["gold_by_gold"] == pytest.approx((0.5 + 0.5 + 0.25) / 3)


def test_a_peak_that_nobody_saw_is_not_told() -> None:
    bent = Fit("rl", 2.0, 1.0, 0.9)
    assert frontier.peak_within(bent, 3.0) == pytest.approx(math.e)
    assert frontier.peak_within(bent, 2.7) is None
    assert frontier.peak_within(Fit("rl", 2.0, -1.0, 0.9), 3.0) is None
    assert frontier.peak_within(Fit("rl", 2.0, 1e-9, 0.9), 3.0) is None


def over(d: torch.Tensor) -> dict[str, Any]:
    """A run whose proxy rises in a straight line while its gold reward falls again."""
    records = [
        {
            "objective/kl": far**2,
            "rewards/x/mean": 1 + 3 * 0.7 * far,
            "rewards/gold/mean": 0.5 + 0.2 * gained,
        }
        for far, gained in zip(d.tolist(), CURVE.reward(d).tolist(), strict=True)
    ]
    records[0]["objective/kl"] = -1e-12  # rounding
    return {
        "config": {"reward": ["x"]},
        "records": records,
        "command": "c",
        "environment": {},
        "training_seconds": 9.0,
    }


def test_fits_of_a_run_are_in_standard_deviations_of_the_reference(tmp_path: Path) -> None:
    d = torch.linspace(0, 4, 30, dtype=torch.float64)
    frontier.write([], [over(d), over(d)], made_up.reference(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "best_of_n.json",
        "overoptimisation.json",
        "overoptimisation.png",
    }
    rows = json.loads((tmp_path / "overoptimisation.json").read_text())["rows"]
    found = {(row["method"], row["reward"]): row for row in rows}
    fallen, risen = (found["PPO, beta 0", name] for name in ("gold", "proxy"))
    assert fallen["alpha"] == pytest.approx(CURVE.alpha, rel=1e-9)
    assert fallen["beta"] == pytest.approx(CURVE.beta, rel=1e-9)
    assert fallen["r_squared"] == pytest.approx(1)
    assert fallen["peak"] == pytest.approx(math.e)
    assert (fallen["peak_told"], fallen["points"], fallen["n"]) == ("2.72", 60, 2)
    assert fallen["farthest"] == pytest.approx(4)
    assert risen["alpha"] == pytest.approx(0.7)
    assert (risen["peak"], risen["peak_told"]) == (None, "none seen")
    best = json.loads((tmp_path / "best_of_n.json").read_text())["rows"]
    assert [row["best_of"] for row in best] == [1, 2, 4, 8]
    last = found["best of n", "proxy"]
    assert (last["points"], last["farthest"]) == (4, pytest.approx(best[-1]["kl"] ** 0.5))
    said = last["farthest"] * (last["alpha"] - last["beta"] * last["farthest"])
    assert said == pytest.approx((best[-1]["proxy"] - 1) / 3, abs=0.05)
    assert (tmp_path / "overoptimisation.png").read_bytes()[:4] == b"\x89PNG"


def test_without_samples_there_is_no_scale(tmp_path: Path) -> None:
    frontier.write([], [over(torch.linspace(0, 4, 30))], None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_method_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More methods than colours; one whose training left no trace."""
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "save", lambda figure, _: drawn.append(figure))
    methods = [f"method {i}" for i in range(len(COLOURS) + 2)]
    rows = [
        {
            "method": name,
            "beta": 0.1,
            "kl": i,
            "gold": 0.5,
            "kl_spread": None,
            "gold_spread": 0.1,
            "reference_gold": 0.1,
        }
        for i, name in enumerate(methods)
    ]
    traces = {name: [(1.0, 0.2), (2.0, 0.3)] for name in methods} | {methods[0]: []}
    pictures.frontier(rows, traces, [], tmp_path / "picture.png")
    (axes,) = drawn[0].axes
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["reference", *methods]
