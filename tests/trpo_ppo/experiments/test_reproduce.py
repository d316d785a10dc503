import json
from pathlib import Path

import numpy as np
import pytest

from shared.errors import UserError
from trpo_ppo.experiments import reproduce
from trpo_ppo.experiments.reproduce import TASKS, VARIANTS, Options, interval, normalise


def test_normalised_scores_put_random_at_zero_and_the_best_run_at_one():
    scores = {"a": np.array([[10.0, 30.0], [-5.0, -3.0]]), "b": np.array([[0.0, 50.0], [-9, -4.0]])}
    found = normalise(scores, np.array([10.0, -13.0]))
    np.testing.assert_allclose(found["a"], [[0, 0.5], [0.8, 1.0]])
    np.testing.assert_allclose(found["b"], [[-0.25, 1.0], [0.4, 0.9]])


def test_interval_of_a_mean():
    assert interval(np.full((7, 3), 0.5)) == (0.5, 0.5)
    scores = np.random.default_rng(1).normal(size=(1, 200))
    low, high = interval(scores)
    assert low < scores.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * scores.std() / 200**0.5, rel=0.05)


def test_every_run_has_a_command():
    assert len(TASKS) == 7
    assert [VARIANTS[v][2] for v in VARIANTS] == [-0.39, 0.82, 0.74, 0.71, 0.72, None, None]
    expected = "paper --algo ppo-kl --beta 0 --env Hopper-v5 --seed 2 --steps 1000"
    runs = reproduce.reproduction(Options(steps=1000)).runs
    assert len(runs) == len(TASKS) * len(VARIANTS) * 3
    assert runs["Hopper-v5-none-seed2"].arguments == expected


def finished(folder: Path, score: float) -> None:
    """What a run of two rollouts leaves, as far as the tables read it."""
    folder.mkdir(parents=True)
    line = {"score": score, "kl": 0.01, "clip_fraction": 0.1}
    (folder / "metrics.jsonl").write_text(
        f"{json.dumps(line | {'score': -1e9})}\n{json.dumps(line | {'kl': 0.03})}\n"
    )
    summary = {"evaluation": {"deterministic": score}, "training_seconds": 3.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "env.json").write_text('{"torch_threads": 1}')


def test_tables_have_the_constraints_with_all_their_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(reproduce, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reproduce, "random_score", lambda _: 100.0)
    options = Options(steps=7, seeds=2, collect=True)
    with pytest.raises(UserError, match="no row has all of its runs"):
        reproduce.collect(options)
    for variant, scores in {"clip": (300.0, 500.0), "trpo": (100.0, 300.0)}.items():
        for task in TASKS:
            for seed, score in enumerate(scores):
                finished(tmp_path / "runs/7" / f"{task}-{variant}-seed{seed}", score)
    finished(tmp_path / "runs/7" / f"{TASKS[0]}-none-seed0", 1e9)  # one of fourteen
    reproduce.collect(options)
    assert "left out" in capsys.readouterr().out
    table = json.loads((tmp_path / "results/table1.json").read_text())["rows"]
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    reproduce.collect(options)  # from the records
    assert json.loads((tmp_path / "results/table1.json").read_text())["rows"] == table
    assert [row["what"] for row in table] == [VARIANTS[v][0] for v in ("clip", "trpo")]
    assert [row["value"] for row in table] == [pytest.approx(0.75), pytest.approx(0.25)]
    assert [row["n"] for row in table] == [14, 14]
    assert table[0]["kl"] == pytest.approx(0.02)
    assert table[0]["kl_largest"] == 0.03
    tasks = json.loads((tmp_path / "results/tasks.json").read_text())["rows"]
    assert tasks[0]["Hopper-v5"] == "400 ± 141"
    assert (tmp_path / "results/table1.png").stat().st_size > 10_000
