"""Adapters as they are committed: rounded, measured again, without a tokenizer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf import policies, rewards
from rlhf.evaluate import evaluate
from rlhf.experiments import publish
from rlhf.experiments.reproduce import PUBLISHED, REWARD, RUNS
from rlhf.policies import load_policy
from rlhf.prompts import read_prompts
from rlhf.rewards.environment import Environment
from shared.errors import UserError
from shared.run.checkpoint import verify_folder
from tests.rlhf import made_up


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return made_up.place(tmp_path, monkeypatch)


@pytest.mark.usefixtures("there")
def test_what_is_published_is_what_was_measured() -> None:
    before = made_up.write_adapters()
    publish.publish_reward(RUNS / REWARD)
    publish.publish_policy(RUNS / PUBLISHED)
    published(rewards.PRETRAINED, RUNS / REWARD / "model")
    published(policies.PRETRAINED, RUNS / PUBLISHED / "model")

    told = json.loads((policies.PRETRAINED / "metrics.json").read_text())
    policy, words, about = load_policy("pretrained", Path("data"))
    assert about["config"]["reward"] == ["pretrained"]
    task = Environment(made_up.POLICY, words, policy.model.config, ("pretrained",))
    prompts = read_prompts("", "movies", words, 64, held_out=True, limit=4)
    assert evaluate(policy, task, prompts) == told
    assert told["kl"] != before["kl"]
    assert told["kl"] == pytest.approx(before["kl"], rel=0.05)
    card = (policies.PRETRAINED / "README.md").read_text()
    assert "trained by PPO, preset" in card
    assert f"{told['kl']:.2f} +-" in card

    judged = json.loads((rewards.PRETRAINED / "metrics.json").read_text())
    assert judged["pairs"] == made_up.REWARD_MODEL.limit
    assert f"accuracy {judged['accuracy']:.3f}" in (rewards.PRETRAINED / "README.md").read_text()


def published(folder: Path, model: Path) -> None:
    verify_folder(folder)
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        publish.WEIGHTS,
        "training.json",
        "metrics.json",
        "README.md",
        "manifest.json",
    }
    whole, half = load_file(model / publish.WEIGHTS), load_file(folder / publish.WEIGHTS)
    assert half.keys() == whole.keys()
    assert all(torch.equal(x, whole[name].bfloat16()) for name, x in half.items())
    assert any(not torch.equal(x.float(), whole[name]) for name, x in half.items())
    assert not list(model.parent.glob(".tmp*"))


def test_what_is_not_published(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up.write_adapters()
    monkeypatch.setattr(publish, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"reward-seed0/model: its adapter has .* --lora makes"):
        publish.publish_reward(RUNS / REWARD)
    model = RUNS / REWARD / "model"
    (model / publish.WEIGHTS).rename(model / "model.safetensors")
    with pytest.raises(UserError, match="reward-seed0/model: holds no adapter"):
        publish.publish_reward(RUNS / REWARD)
    assert not (there / "rlhf").exists()
    assert not list(model.parent.glob(".tmp*"))
