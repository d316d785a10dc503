"""Finished runs as the programs leave them, without the training; a tiny model as smollm2."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification

from rlhf import reward, rewards
from rlhf.config import Config
from rlhf.evaluate import evaluate
from rlhf.experiments.reproduce import PUBLISHED, REWARD, RUNS
from rlhf.policies import save_model
from rlhf.policy import Policy, quiet_peft, with_adapter
from rlhf.prompts import read_prompts
from rlhf.rewards.environment import Environment
from shared.data.smollm2 import FOLDER
from shared.run.checkpoint import write_folder
from tests import tiny

POLICY = replace(
    Config(),
    model="smollm2",
    lora=2,
    completion=6,
    evaluation_prompts=4,
    reward=(str(RUNS / REWARD / "model"),),
)
REWARD_MODEL = reward.Config(model="smollm2", lora=2, limit=6)


def vowels(completions: list[str], **_: Any) -> list[float]:
    """A gold reward that knows a tiny model's words."""
    return [text.count("o") / max(1, len(text)) for text in completions]


def letters(prompts: list[str], **_: Any) -> list[float]:
    """A gold reward that is another for each prompt."""
    return [float(len(prompt)) for prompt in prompts]


def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make ``folder`` the one to work in, where smollm2 is a tiny model."""

    def write(path: Path) -> None:
        tiny.write_model(path)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(rewards, "PRETRAINED", folder / "rlhf/pretrained/reward")
    write_folder(folder / "data" / FOLDER, write)
    return folder


def write_run(
    name: str, about: Any, summary: dict[str, Any], records: list[dict[str, Any]]
) -> None:
    """The files of a finished run that the tables read."""
    folder = RUNS / name
    folder.mkdir(parents=True, exist_ok=True)
    stored = {"application": "x", "preset": "default", "config": about}
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "env.json").write_text(json.dumps({"torch_threads": 1}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "summary.json").write_text(json.dumps(summary))


def write_adapters() -> dict[str, Any]:
    """A reward model and a policy; what ``evaluate`` says of the policy."""
    shape = tiny.configuration(2, tiny.VOCABULARY)
    shape.num_labels = 1
    classifier = LlamaForSequenceClassification(shape)
    classifier.model.load_state_dict(tiny.llama().model.state_dict())
    lora = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"]
    )
    with quiet_peft():
        reward_model = get_peft_model(classifier, lora)
    policy = Policy(with_adapter(tiny.llama(), 2, ("q_proj", "v_proj")))
    torch.manual_seed(1)
    for name, parameter in [*reward_model.named_parameters(), *policy.named_parameters()]:
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    words, path = tiny.tokenizer(), RUNS / PUBLISHED / "model"
    save_model(RUNS / REWARD / "model", "default", REWARD_MODEL, reward_model, words, {}, "card")
    save_model(path, "default", POLICY, policy.model, words, {}, "card")
    environment = Environment(POLICY, words, policy.model.config, POLICY.reward)
    prompts = read_prompts("", "movies", words, 64, held_out=True, limit=4)
    return evaluate(policy, environment, prompts)


def reference() -> dict[str, Any]:
    """Best-of-n scores: proxy of mean 1 and sd 3, gold reward of mean 0.5 and sd 0.2."""
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 48, generator=rng, dtype=torch.float64)
    a, b = torch.linalg.qr((drawn - drawn.mean(1, True)).T)[0].T * 47**0.5
    proxy, gold = 1 + 3 * a, 0.5 + 0.2 * (0.6 * a + 0.8 * b)
    return {
        "prompts": ["a"] * 6,
        "samples": 8,
        "seconds": 5.0,
        "command": "c",
        "environment": {},
        "proxy": proxy.reshape(6, 8).tolist(),
        "gold": gold.reshape(6, 8).tolist(),
    }
