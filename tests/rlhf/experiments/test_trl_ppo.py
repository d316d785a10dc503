"""TRL's PPO trainer on our task: what is refused, whose rewards it gets, and a run of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf.experiments import trl_ppo
from rlhf.experiments.trl_ppo import FOLDER, VERSION, PeerConfig, Rewarded
from rlhf.prompts import Prompts
from rlhf.rewards.environment import Environment
from rlhf.rollout import cut_at_end
from shared.errors import UserError
from tests import tiny

ROOT = Path(__file__).parents[3]
END, PAD = 1, 2


def test_what_this_trainer_lacks_is_refused() -> None:
    assert PeerConfig().conflicts() == []
    assert PeerConfig(beta=0.2, seed=3, out="x", value_lr=1e-4).conflicts() == []
    told = replace(PeerConfig(), critic="separate", kl_target=6.0, micro_batch=5).conflicts()
    assert [line.split(":")[0] for line in told] == ["--kl-target", "--critic", "--micro-batch 5"]


def test_another_trl_is_refused() -> None:
    with pytest.raises(UserError, match=rf"is in TRL {VERSION}, found 1\.\d+\.\d; `make"):
        trl_ppo.peer()


def test_rewards_are_those_of_our_loop(tmp_path: Path) -> None:
    """Of text without padding, cut behind the first end; the critic is read as TRL reads it."""
    words = tiny.tokenizer()
    config = PeerConfig(
        reward=(str(tiny.write_reward_model(tmp_path / "reward")),), completion=4, gold=""
    )
    task = Environment(config, words, tiny.configuration(2, tiny.VOCABULARY), config.reward)
    task.scale.fit(torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64))
    asked = [[5, 6, 7], [8], [9, 10]]
    prompts = Prompts(words.batch_decode(asked), asked, {})
    given = torch.tensor([[5, 6, 7], [PAD, PAD, 8], [PAD, 9, 10]])
    answers = torch.tensor([[11, 12, 13, 14], [15, END, PAD, PAD], [16, 17, 18, END]])
    completions = cut_at_end(torch.cat([given, answers], 1), given != PAD, [END], PAD)
    expected, told = task.score(config, prompts, completions)
    assert len(set(expected.tolist())) == 3

    def critic(*asked: Any) -> Any:
        return asked

    rewarded, other = Rewarded(config, task, critic), nn.Linear(1, 1)
    rows = torch.cat([given, answers], 1)
    _, scores, _ = rewarded.get_reward(rewarded, rows, PAD, 3)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert rewarded.measured == [pytest.approx(told)]
    assert rewarded.get_reward(other, rows, PAD, 3) == (other, rows, PAD, 3)


@pytest.mark.skipif(not (ROOT / FOLDER / "trl").is_dir(), reason="`make bench-rlhf` fetches it")
def test_a_run(tmp_path: Path) -> None:
    """Our rewards in its log, a policy that starts at the reference, our evaluation at its end."""
    model = tiny.write_model(tmp_path / "model")
    reward = tiny.write_reward_model(tmp_path / "reward")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in tiny.texts(40, 4)))
    arguments = (
        f"default --model {model} --reward {reward} --prompts {prompts} --lora 2 --completion 5 "
        f"--gold {reward} --iterations 2 --batch-size 8 --micro-batch 4 "
        f"--evaluation-prompts 4 --out {tmp_path / 'run'}"
    )
    path = os.pathsep.join([str(ROOT / FOLDER), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "rlhf.experiments.trl_ppo", *arguments.split()],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2]
    first = records[0]
    assert first["objective/kl_k1"] == pytest.approx(0, abs=1e-4)
    assert first[f"rewards/{reward}/mean"] == first["rewards/gold/mean"]
    told = json.loads((tmp_path / "run/summary.json").read_text())
    assert told["steps"] == 2
    assert told["evaluation"]["kl"] > 0
