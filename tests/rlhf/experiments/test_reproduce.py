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
from rlhf.experiments.frontier import SweptRow
from rlhf.experiments.reproduce import REWARD, RUNS, Options, reproduction, rows_of
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
    runs = reproduction(rows_of(seeds=3))
    assert next(iter(runs.runs)) == REWARD
    for name, row in runs.rows.items():
        program, arguments, _ = runs.runs[runs.names(name)[-1]]
        if name == "best-of-n":
            options = cli.check(cli.parse(best_of_n.Options, arguments.split(), name))
            assert options.reward == "pretrained"
            continue
        _, found = cli.read_config(PRESETS[program], name, arguments.split())
        assert found.seed == row.seeds[-1]
        assert cli.check(found) == found
        if isinstance(row, SweptRow):
            assert (found.beta, len(row.seeds)) == (row.beta, 3)
        assert getattr(found, "reward", ("pretrained",)) == ("pretrained",)
    assert reproduce.PUBLISHED in runs.names("ppo-beta0.1")
    over = cli.read_config(config.PRESETS, "over", runs.runs["over-seed0"].arguments.split())[1]
    assert over.beta == 0
    assert over.iterations > config.PRESETS["default"].iterations


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that would be trained, or the program that would be called."""
    found: list[str] = []

    def run(command: list[str], check: bool, env: dict[str, str] | None = None) -> SimpleNamespace:
        assert not check
        found.append(Path(command[-1]).name if env else command[2])
        peers = (env or {}).get("PYTHONPATH") == ".venv-trl-1.12"
        assert peers == (command[2] == "rlhf.experiments.trl_ppo")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(
        reproduce, "publish_reward", lambda run: found.append(f"publish {run.name}")
    )
    monkeypatch.setattr(subprocess, "run", run)
    return found


def train(only: str, seeds: int = 2, missing: bool = False) -> None:
    reproduce.train(reproduction(rows_of(seeds)), Options(only=only, missing=missing))


def test_the_reward_model_comes_first_and_the_study_last(made: list[str], there: Path) -> None:
    assert there.is_dir()
    train("")
    every = list(reproduction(rows_of(seeds=2)).runs)
    assert made == [REWARD, f"publish {REWARD}", *every[1:], "rlhf.experiments.study"]


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
    train(only)
    assert made == expected


def test_a_committed_reward_model_is_enough(made: list[str], there: Path) -> None:
    made_up.write_adapters()
    publish.publish_reward(RUNS / REWARD)
    train("rloo-beta0.1", seeds=1)
    assert made == ["rloo-beta0.1-seed0"]
    assert there.is_dir()


@pytest.mark.usefixtures("there")
def test_what_has_a_record_is_not_missing(made: list[str]) -> None:
    write_frontier(made_up.write_adapters())
    publish.publish_reward(RUNS / REWARD)
    rows = rows_of(seeds=2)
    with pytest.raises(UserError, match="no row"):
        reproduce.collect(reproduction({"rloo-beta0.1": rows["rloo-beta0.1"]}))  # seed 1 has no run
    swept = reproduction({"ppo-beta0.05": rows["ppo-beta0.05"]})
    reproduce.collect(swept)
    before = (reproduce.RESULTS / "frontier.json").read_text()
    shutil.rmtree(RUNS)
    train("ppo-beta0.05", missing=True)
    assert made == []
    train("ppo-beta0.05")
    assert made == ["ppo-beta0.05-seed0", "ppo-beta0.05-seed1"]
    reproduce.collect(swept)
    assert (reproduce.RESULTS / "frontier.json").read_text() == before


def test_what_is_refused(made: list[str], there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--only kto: is in the name of no run; reward, best-of-n"):
        train("kto")
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


def write_frontier(measured: dict[str, Any]) -> None:
    """PPO at 0.05 with both seeds, DPO at 0.1 with both, RLOO with one."""
    for name, seeds in (("ppo-beta0.05", 2), ("dpo-beta0.1", 2), ("rloo-beta0.1", 1)):
        for seed in range(seeds):
            found = copy.deepcopy(measured)
            found["kl"], found["kl_standard_error"] = KL[seed], 0.3
            found["policy"]["gold"] = {"mean": GOLD[seed], "standard_error": 0.02, "sd": 0.3}
            found["reference"]["gold"] = {"mean": 0.1, "standard_error": 0.02, "sd": 0.25}
            if name.startswith("dpo"):
                del found["policy"][PROXY]
            else:
                found["policy"][PROXY]["mean"] = 2.0 + seed
                found["reference"][PROXY] |= {"mean": 1.0, "sd": 0.5}
            summary = {"steps": 60, "training_seconds": 100.0 + seed, "evaluation": found}
            records = [
                {"step": i, "objective/kl": i / 9, "rewards/gold/mean": i / 90} for i in range(3)
            ]
            made_up.write_run(
                f"{name}-seed{seed}",
                {"batch_size": 32},
                summary,
                [*records, {"step": 3, "loss": 0.5}],
            )


@pytest.mark.usefixtures("there")
def test_rows_have_all_their_seeds_and_the_others_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frontier(made_up.write_adapters())
    publish.publish_reward(RUNS / REWARD)
    made_up.write_run(REWARD, asdict(made_up.REWARD_MODEL), {"training_seconds": 1.0}, [])
    made_up.write_run(reproduce.PUBLISHED, {}, {}, [])
    made_up.write_run("best-of-n-seed0", {}, made_up.reference(), [])
    monkeypatch.setattr(sys, "argv", ["x", "--collect"])
    reproduce.main()
    output = capsys.readouterr().out
    assert "rloo-beta0.1 (rloo-beta0.1-seed1)" in output
    assert "ppo-beta0.2 (all)" in output
    verify_folder(rewards.PRETRAINED)
    verify_folder(policies.PRETRAINED)

    assert {path.name for path in reproduce.RESULTS.iterdir()} == set(
        "best_of_n.json frontier.json frontier.png runs samples.json".split()
    )
    shown = json.loads((reproduce.RESULTS / "samples.json").read_text())["rows"]
    samples = json.loads((policies.PRETRAINED / "metrics.json").read_text())["samples"]
    assert [row["prompt"] for row in shown] == [sample["prompt"] for sample in samples] != []
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
