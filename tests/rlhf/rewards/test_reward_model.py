"""Reward models against a model called by hand, and folders that hold none."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from rlhf.rewards import load_reward
from rlhf.rewards.reward_model import RewardModel
from shared.data.smollm2 import FOLDER
from shared.errors import UserError
from shared.run.checkpoint import write_folder
from tests import tiny

PROMPTS = ["ba", "ce fu", "da gon he", "ji"] * 3
COMPLETIONS = [" ko lu", " man", " fen gi ho ju ka", ""] * 3


def scores(name: Path | str, root: Path) -> list[float | None]:
    return list(load_reward("--reward", str(name), root)(PROMPTS, COMPLETIONS, star=[1] * 12))


@torch.no_grad()
def by_hand(model: Any, which: int = 0) -> list[float]:
    """One text at a time, no padding, the score of the end-of-text token."""
    words, values = tiny.tokenizer(), []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        tokens = torch.tensor([[*words(prompt + completion)["input_ids"], words.eos_token_id]])
        hidden = model.model(input_ids=tokens).last_hidden_state[0, -1]
        values.append(float(hidden @ model.score.weight[which]))
    return values


def read(folder: Path) -> LlamaForSequenceClassification:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def test_a_reward_model_scores_the_end_of_each_text(tmp_path: Path) -> None:
    folder = tiny.write_reward_model(tmp_path / "reward")
    expected = by_hand(read(folder))
    assert max(expected) - min(expected) > 0.1
    assert scores(folder, tmp_path) == pytest.approx(expected, abs=1e-5)
    one_by_one = RewardModel("a", read(folder), tiny.tokenizer(), batch_size=1)
    assert one_by_one(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert one_by_one([], []) == []


def test_of_two_labels_the_reward_is_the_log_odds_of_the_second(tmp_path: Path) -> None:
    folder = tiny.write_reward_model(tmp_path / "reward", labels=2)
    model = read(folder)
    pairs = zip(by_hand(model, 0), by_hand(model, 1), strict=True)
    expected = [math.log(p / (1 - p)) for a, b in pairs for p in [1 / (1 + math.exp(a - b))]]
    assert scores(folder, tmp_path) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_padding_that_is_the_end_of_text_changes_no_score(tmp_path: Path) -> None:
    """transformers reads the score at the last token that is not padding: TRL trains it there."""
    model, words = read(tiny.write_reward_model(tmp_path / "reward")), tiny.tokenizer()
    words.pad_token = words.eos_token
    values = RewardModel("a", model, words)(PROMPTS, COMPLETIONS)
    for text, score in zip(
        map("".join, zip(PROMPTS, COMPLETIONS, strict=True)), values, strict=True
    ):
        tokens = torch.tensor([words(text)["input_ids"]])
        hidden = model.model(input_ids=tokens).last_hidden_state[0, -1]
        assert score == pytest.approx(float(hidden @ model.score.weight[0]), abs=1e-5)


def adapter(folder: Path, base: Path, task: str = "SEQ_CLS") -> PeftModel:
    """An adapter on a language model, whose base is called smollm2."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
        adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "score" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(folder)
    stored = json.loads((folder / "adapter_config.json").read_text())
    stored |= {"base_model_name_or_path": "smollm2", "task_type": task}
    (folder / "adapter_config.json").write_text(json.dumps(stored))
    return adapted.eval()


def test_an_adapter_finds_its_base_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path / FOLDER, lambda folder: tiny.write_model(folder) and None)
    adapted = adapter(tmp_path / "adapter", tmp_path / FOLDER)
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        tokens = torch.tensor([[*tiny.tokenizer()(prompt + completion)["input_ids"], 1]])
        expected.append(adapted(input_ids=tokens).logits[0, 0].item())
    assert scores(tmp_path / "adapter", tmp_path) == pytest.approx(expected, abs=1e-4)


def test_an_adapter_of_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    write_folder(tmp_path / FOLDER, lambda folder: tiny.write_model(folder) and None)
    adapter(tmp_path / "adapter", tmp_path / FOLDER, task="CAUSAL_LM")
    with pytest.raises(UserError, match="is an adapter for CAUSAL_LM, not for a sequence"):
        scores(tmp_path / "adapter", tmp_path)


def test_models_that_are_no_reward_models(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(UserError, match=f"^--reward {folder}: {message}"):
            scores(folder, tmp_path)

    language_model = tiny.write_model(tmp_path / "language model")
    refused(language_model, r"is not a sequence classifier, it has no score\.weight")
    refused(tiny.write_reward_model(tmp_path / "three", labels=3), "gives 3 scores")
    small = tiny.write_reward_model(tmp_path / "small", vocabulary=40)
    refused(small, f"its tokenizer has {tiny.VOCABULARY} tokens, the model embeds 40")
    unpadded = tiny.write_reward_model(tmp_path / "unpadded")
    words = tiny.tokenizer()
    words.pad_token = None
    words.save_pretrained(unpadded)
    refused(unpadded, "its tokenizer has no padding token")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"cannot be read as a reward model \(")
    assert capfd.readouterr() == ("", "")


def test_hub_unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = "--reward no/such: is not a folder, and the Hub has no such model"
    with pytest.raises(UserError, match=message):
        scores("no/such", tmp_path)


def test_a_text_that_is_too_long_is_refused(tmp_path: Path) -> None:
    reward = load_reward("--reward", str(tiny.write_reward_model(tmp_path / "a")), tmp_path)
    assert reward(["ba " * 63], [""])
    with pytest.raises(UserError, match="reads at most 64 tokens, a text has 65"):
        reward(["ba", "ba " * 63], ["", "bo"])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL 1.16 asks transformers by old names
def test_a_text_is_read_as_the_reward_trainer_trains_it(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    model, words = read(tiny.write_reward_model(tmp_path / "reward")), tiny.tokenizer()
    pairs = [
        {"prompt": p, "chosen": c, "rejected": " ha"}
        for p, c in zip(PROMPTS[:4], COMPLETIONS[:4], strict=True)
    ]
    config = RewardConfig(
        str(tmp_path), bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none"
    )
    trainer = RewardTrainer(
        model, config, train_dataset=Dataset.from_list(pairs), processing_class=words
    )
    batch = next(iter(trainer.get_train_dataloader()))  # chosen ones, then rejected ones
    trained = model(**batch).logits[:4, 0].tolist()
    reward = RewardModel("a", model, words)
    assert sorted(trained) == pytest.approx(sorted(reward(PROMPTS[:4], COMPLETIONS[:4])), abs=1e-5)
