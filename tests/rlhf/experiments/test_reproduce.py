"""Commands that are valid and in order; tables, pictures and models from runs made up here."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf import config, dpo, policies, reward, rewards, rloo
from rlhf.experiments import best_of_n, publish, reproduce, trl_ppo
from rlhf.experiments.reproduce import REWARD, RUNS, Row, rows_of, runs_of
from shared import cli
from shared.errors import UserError
from shared.run.checkpoint import verify_folder
from tests.rlhf import made_up

PRESETS: dict[str, Any] = {
    "rlhf.ppo": config.PRESETS,
    "rlhf.dpo": dpo.PRESETS,
    "rlhf.rloo": rloo.PRESETS,
    "rlhf.reward": reward.PRESETS,
    "rlhf.experiments.trl_ppo": trl_ppo.PRESETS,
}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return made_up.place(tmp_path, monkeypatch)


def test_a_text_in_a_cell_of_a_table() -> None:
    assert reproduce.in_a_cell(" a | b\n\n*c* <br> ") == r"a \| b \*c\* \<br\>"


# -- commands --------------------------------------------------------------------------------------


def test_every_command_is_valid_and_finds_its_reward_model() -> None:
    rows = rows_of(seeds=3)
    assert next(iter(rows)) == "reward"
    assert runs_of("reward", rows["reward"]) == [REWARD]
    for name, row in rows.items():
        words = row.command(1).split()
        if name == "best-of-n":
            options = cli.check(cli.parse(best_of_n.Options, words, name))
            assert options.reward == "pretrained"
            continue
        _, found = cli.read_config(PRESETS[row.program], name, words)
        assert found.seed == 1
        assert cli.check(found) == found
        assert not row.method or (found.beta == row.beta and row.seeds == 3)
        assert getattr(found, "reward", ("pretrained",)) == ("pretrained",)
    assert reproduce.PUBLISHED in runs_of("ppo-beta0.1", rows["ppo-beta0.1"])
    over = cli.read_config(config.PRESETS, "over", rows["over"].command(0).split())[1]
    assert over.beta == 0
    assert over.iterations > config.PRESETS["default"].iterations


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that would be trained, or the program that would be called."""
    found: list[str] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        assert not check
        found.append(command[2])
        return SimpleNamespace(returncode=0)

    def sure(program: str, _: str, folder: Path, env: dict[str, str]) -> None:
        found.append(folder.name)
        peers = env.get("PYTHONPATH") == ".venv-trl-1.12"
        assert peers == (program == "rlhf.experiments.trl_ppo")

    monkeypatch.setattr(reproduce, "make_sure", sure)
    monkeypatch.setattr(
        reproduce, "publish_reward", lambda run: found.append(f"publish {run.name}")
    )
    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_runs_are_trained_seed_after_seed(made: list[str]) -> None:
    rows = rows_of(seeds=2)
    reproduce.train(rows, "")
    everything = [run for name, row in rows.items() for run in runs_of(name, row)]
    assert made[:2] == ["reward-seed0", "publish reward-seed0"]
    assert sorted([made[0], *made[2:-1]]) == sorted(everything)
    assert made[-1] == "rlhf.experiments.study"
    seeds = [name[-1] for name in made[:-1]]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("dpo-beta0.1", ["dpo-beta0.1-seed0", "dpo-beta0.1-seed1"]),
        (
            "rloo-beta0.1",
            ["reward-seed0", "publish reward-seed0", "rloo-beta0.1-seed0", "rloo-beta0.1-seed1"],
        ),
        ("reward", ["reward-seed0", "publish reward-seed0"]),
        ("study", ["rlhf.experiments.study"]),
    ],
)
def test_some_runs_only(only: str, expected: list[str], made: list[str], there: Path) -> None:
    assert not (there / "rlhf").exists()  # no committed reward model
    reproduce.train(rows_of(seeds=2), only)
    assert made == expected


def test_a_committed_reward_model_is_enough(made: list[str], there: Path) -> None:
    made_up.write_adapters()
    publish.publish_reward(RUNS / REWARD)
    reproduce.train(rows_of(seeds=1), "rloo-beta0.1")
    assert made == ["rloo-beta0.1-seed0"]
    assert there.is_dir()


@pytest.mark.usefixtures("there")
def test_what_has_a_record_is_not_missing(made: list[str]) -> None:
    rows = rows_of(seeds=2)
    write_frontier(made_up.write_adapters(), rows)
    publish.publish_reward(RUNS / REWARD)
    with pytest.raises(UserError, match="no row"):
        reproduce.collect({"ppo-beta0.1": rows["ppo-beta0.1"]})  # seed 1 has no run
    reproduce.collect({"ppo-beta0.05": rows["ppo-beta0.05"]})
    before = (reproduce.RESULTS / "frontier.json").read_text()
    shutil.rmtree(RUNS)
    reproduce.train(rows, "ppo-beta0.05", missing=True)
    assert made == []
    reproduce.train(rows, "ppo-beta0.05")
    assert made == ["ppo-beta0.05-seed0", "ppo-beta0.05-seed1"]
    reproduce.collect({"ppo-beta0.05": rows["ppo-beta0.05"]})
    assert (reproduce.RESULTS / "frontier.json").read_text() == before


def test_what_is_refused(made: list[str], there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--only kto: no run's name begins so; reward, best-of-n"):
        reproduce.train(rows_of(seeds=2), "kto")
    monkeypatch.setattr(sys, "argv", ["x", "--collect"])
    with pytest.raises(UserError, match="no row has all of its runs yet; missing: reward"):
        reproduce.main()
    monkeypatch.setattr(sys, "argv", ["x", "--collect", "--only", "ppo"])
    with pytest.raises(UserError, match=r"--only: names what is trained, --collect trains nothing"):
        reproduce.main()
    assert made == []
    assert not (there / "rlhf").exists()


PROXY = str(RUNS / REWARD / "model")
KL = [4.0, 6.0]  # of the two seeds
GOLD = [0.5, 0.7]


def write_frontier(measured: dict[str, Any], rows: dict[str, Row]) -> None:
    """PPO at 0.05 with both seeds, DPO at 0.1 with both, RLOO with one."""
    for name, seeds in (("ppo-beta0.05", 2), ("dpo-beta0.1", 2), ("rloo-beta0.1", 1)):
        for seed in range(seeds):
            told = copy.deepcopy(measured)
            told["kl"], told["kl_standard_error"] = KL[seed], 0.3
            told["policy"]["gold"] = {"mean": GOLD[seed], "standard_error": 0.02, "sd": 0.3}
            told["reference"]["gold"] = {"mean": 0.1, "standard_error": 0.02, "sd": 0.25}
            if name.startswith("dpo"):
                del told["policy"][PROXY]
            else:
                told["policy"][PROXY]["mean"] = 2.0 + seed
                told["reference"][PROXY] |= {"mean": 1.0, "sd": 0.5}
            summary = {"steps": 60, "training_seconds": 100.0 + seed, "evaluation": told}
            records = [
                {"step": i, "objective/kl": i / 9, "rewards/gold/mean": i / 90} for i in range(3)
            ]
            made_up.write_run(
                runs_of(name, rows[name])[seed],
                {"batch_size": 32},
                summary,
                [*records, {"step": 3, "loss": 0.5}],
            )


@pytest.mark.usefixtures("there")
def test_rows_have_all_their_seeds_and_the_others_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(seeds=2)
    write_frontier(made_up.write_adapters(), rows)
    publish.publish_reward(RUNS / REWARD)
    made_up.write_run(REWARD, asdict(made_up.JUDGE), {"training_seconds": 1.0}, [])
    made_up.write_run(reproduce.PUBLISHED, {}, {}, [])
    made_up.write_run("best-of-n-seed0", {}, made_up.reference(), [])
    monkeypatch.setattr(sys, "argv", ["x", "--collect"])
    reproduce.main()
    said = capsys.readouterr().out
    assert "rloo-beta0.1 (rloo-beta0.1-seed1)" in said
    assert "ppo-beta0.2 (all)" in said
    verify_folder(rewards.PRETRAINED)
    verify_folder(policies.PRETRAINED)

    assert {path.name for path in reproduce.RESULTS.iterdir()} == set(
        "best_of_n.json frontier.json frontier.png runs samples.json".split()
    )
    shown = json.loads((reproduce.RESULTS / "samples.json").read_text())["rows"]
    told = json.loads((policies.PRETRAINED / "metrics.json").read_text())["samples"]
    assert [row["prompt"] for row in shown] == [one["prompt"] for one in told] != []
    ppo, by_pairs = json.loads((reproduce.RESULTS / "frontier.json").read_text())["rows"]
    assert (ppo["method"], ppo["beta"], ppo["n"]) == ("PPO", 0.05, 2)
    assert (ppo["kl"], ppo["kl_spread"]) == (mean(KL), stdev(KL))
    assert (ppo["gold"], ppo["gold_spread"]) == (pytest.approx(mean(GOLD)), stdev(GOLD))
    assert (ppo["reference_gold"], ppo["reference_gold_sd"]) == (0.1, 0.25)
    assert ppo["gain"] == pytest.approx(0.5 / 0.25)
    assert (ppo["proxy"], ppo["seconds"], ppo["examples"]) == (2.5, 100.5, 60 * 32)
    reached = [1 / 0.5 - 0.05 * KL[0], 2 / 0.5 - 0.05 * KL[1]]  # the proxy's gain less beta KL
    assert (ppo["objective"], ppo["objective_spread"]) == (
        pytest.approx(mean(reached)),
        pytest.approx(stdev(reached)),
    )
    assert by_pairs["objective"] is None
    assert ppo["command"].startswith("python -m rlhf.ppo default --reward pretrained --beta 0.05")
    assert (by_pairs["method"], by_pairs["beta"], by_pairs["proxy"]) == ("DPO", 0.1, None)
