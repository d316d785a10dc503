"""The comparison with the peers: commands, hyperparameters, table rows; the peers are not run."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared import cli
from shared.errors import UserError
from trpo_ppo.config import presets
from trpo_ppo.experiments import compare, peers
from trpo_ppo.experiments.peers import build, require

OPTIONS = compare.Options(steps=5000, seeds=2)


def test_commands_are_valid_and_differ_in_the_program_alone():
    runs = compare.reproduction(OPTIONS)
    assert runs.folder == compare.RUNS / "5000"
    assert len(runs.rows) == 12
    for name, row in runs.rows.items():
        program, arguments, _ = runs.runs[f"{name}-seed1"]
        if row.ours:
            assert program == "trpo_ppo.train"
            _, config = cli.read_config(presets(row.task, row.algo), program, arguments.split())
            assert (config.env, config.algo, config.seed, config.steps) == (
                row.task,
                row.algo,
                1,
                5000,
            )
            ours = arguments.removeprefix("default ")
        else:
            assert program == "trpo_ppo.experiments.peers"
            options = cli.parse(peers.Options, arguments.split(), program)
            assert (options.env, options.algo) == (row.task, row.algo)
            assert arguments == ours


def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Modules in the peers' place that note what they are called with."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def noted(name: str) -> Any:
        return lambda *_, **options: calls.append((name, options))

    for name, content in {
        "sb3_contrib": {"TRPO": noted("TRPO")},
        "stable_baselines3": {"PPO": noted("PPO")},
        "stable_baselines3.common": {},
        "stable_baselines3.common.env_util": {"make_vec_env": noted("make_vec_env")},
        "stable_baselines3.common.vec_env": {"VecNormalize": noted("VecNormalize")},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    return calls


@pytest.mark.parametrize("anneal", [True, False])
def test_the_peers_learning_rate_is_ours_in_every_rollout(
    anneal: bool, monkeypatch: pytest.MonkeyPatch
):
    config = replace(presets("Hopper-v5", "ppo-clip")["default"], steps=10_000, anneal=anneal)
    calls = stand_ins(monkeypatch)
    build(config)
    given = dict(calls)
    assert given["VecNormalize"] == {"gamma": 0.99}
    rate, rollouts = given["PPO"]["learning_rate"], 5  # of 2048 steps
    for k in range(rollouts):
        left = 1 - (k + 1) / rollouts  # stable-baselines3 counts the rollout just collected
        theirs = rate(left) if anneal else rate
        assert theirs == pytest.approx(config.lr * (1 - k / rollouts) if anneal else config.lr)


def test_the_peers_trust_region_is_ours(monkeypatch: pytest.MonkeyPatch):
    """In units of theirs: a mean over the six dimensions where our KL is the sum."""
    calls = stand_ins(monkeypatch)
    build(presets("HalfCheetah-v5", "trpo")["default"])
    given = dict(calls)["TRPO"]
    expected = {
        "target_kl": 0.04,
        "cg_damping": 0.1,
        "n_critic_updates": 20,
        "batch_size": 128,
        "n_steps": 1024,
        "learning_rate": 1e-3,
    }
    assert {name: given[name] for name in expected} == pytest.approx(expected)


def test_without_the_peers_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sb3_contrib" else found("json")
    )
    with pytest.raises(UserError, match=r"sb3_contrib is not installed.*requirements-bench\.txt"):
        require()


def finished(folder: Path, ours: bool, seed: int, score: float) -> None:
    folder.mkdir(parents=True)
    training = {"score": score - 1} | ({"environment_steps": 6144} if ours else {})
    summary = {
        "steps": 3 if ours else 6144,
        "training": training,
        "training_seconds": 2.0 + seed,
        "evaluation": {"deterministic": score, "episodes": 20},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "env.json").write_text(json.dumps({"torch_threads": 1}))


def test_a_row_beside_its_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    runs = compare.reproduction(OPTIONS)
    ours, theirs, alone, *_ = runs.rows
    for row, scores in {ours: (10.0, 30.0), theirs: (12.0, 14.0), alone: (1.0, 2.0)}.items():
        for seed, score in enumerate(scores):
            finished(runs.folder / f"{row}-seed{seed}", row.endswith("ours"), seed, score)
    compare.collect(runs, OPTIONS)
    result = json.loads((tmp_path / "quality.json").read_text())
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    compare.collect(runs, OPTIONS)  # from the records
    assert json.loads((tmp_path / "quality.json").read_text())["rows"] == result["rows"]
    first, second, third = result["rows"]
    assert (first["value"], first["sd"]) == (20.0, pytest.approx(200**0.5))
    assert (first["over_peer"], first["spread"]) == (7.0, pytest.approx(101**0.5))
    assert first["scores"] == [10.0, 30.0]
    assert first["steps"] == second["steps"] == 6144
    assert first["seconds_each"] == [2.0, 3.0]
    assert "over_peer" not in second
    assert "over_peer" not in third  # its peer has no runs yet
