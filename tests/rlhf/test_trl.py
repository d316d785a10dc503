"""The programs that train with TRL: what they leave, their numbers, DPO's optimum."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf import reward, trl
from rlhf.evaluate import evaluate
from rlhf.policies import load_policy
from rlhf.prompts import is_held_out, read_prompts
from rlhf.rewards import load_reward
from rlhf.rewards.environment import Environment
from shared.language_models.trl import train_with
from shared.run.checkpoint import verify_folder
from tests import tiny
from tests.helpers import metrics
from tests.rlhf.programs import PROGRAMS, summary, write_rows


@pytest.mark.parametrize("name", ["sft", "dpo", "rloo"])
@pytest.mark.parametrize("lora", [4, 0])
def test_a_policy_is_left_that_reads_back_as_it_was_measured(
    trained: Callable[..., Path], name: str, lora: int
) -> None:
    folder = trained(name, "--lora", lora)
    assert {p.name for p in folder.iterdir()} == set(
        """
        checkpoints config.json env.json metrics.jsonl model pictures summary.json
    """.split()
    )
    verify_folder(folder / "model")
    evaluation = summary(folder)["evaluation"]
    assert evaluation["kl"] > 1e-3  # it has moved
    policy, tokenizer, about = load_policy(str(folder), Path("data"))
    config = replace(PROGRAMS[name].Config(), gold="gold", completion=8)
    environment = Environment(config, tokenizer, policy.model.config, ())
    prompts = read_prompts("--prompts", "movies", tokenizer, 64, held_out=True, limit=4)
    again = evaluate(policy, environment, prompts)
    assert again["kl"] == pytest.approx(evaluation["kl"], rel=1e-4)
    assert again["samples"] == evaluation["samples"]
    assert about["config"]["lora"] == lora
    steps = [line["step"] for line in metrics(folder) if "loss" in line]
    assert steps == list(range(1, summary(folder)["steps"] + 1))


@pytest.mark.parametrize("name", ["dpo", "rloo"])
def test_reference_kl_in_training_is_the_number_of_the_final_evaluation(
    trained: Callable[..., Path], name: str
) -> None:
    folder = trained(name)
    measured = [line for line in metrics(folder) if "objective/kl" in line]
    evaluation = summary(folder)["evaluation"]
    assert measured[0]["step"] == 0
    assert measured[0]["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert measured[-1]["step"] == summary(folder)["steps"]
    assert measured[-1]["objective/kl"] == evaluation["kl"] > 1e-3
    assert measured[-1]["objective/kl_k1"] == evaluation["kl_k1"]
    assert measured[-1]["rewards/gold/mean"] == evaluation["policy"]["gold"]["mean"]


@pytest.mark.parametrize("lora", [4, 0])
def test_a_reward_model_reads_back_with_equal_scores(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, lora: int
) -> None:
    kept: list[Any] = []
    write_outputs = reward.write_outputs

    def keep(*arguments: Any) -> None:
        kept.extend(arguments)
        write_outputs(*arguments)

    monkeypatch.setattr(reward, "write_outputs", keep)
    folder = trained(
        "reward",
        "--lora",
        lora,
        "--limit",
        "0",
        "--epochs",
        "20",
        "--batch-size",
        "16",
        "--micro-batch",
        "16",
        "--checkpoint-every",
        "100",
    )
    _, _, model, tokenizer, unseen = kept
    read = load_reward("--reward", str(folder / "model"), Path("data"))
    scores = {}
    for side in ("chosen", "rejected"):
        scores[side] = read(unseen["prompt"][:], unseen[side][:])
        for score, prompt, text in zip(scores[side], unseen["prompt"], unseen[side], strict=True):
            tokens = torch.tensor([tokenizer(prompt + text + "<end>")["input_ids"]])
            with torch.no_grad():
                direct = model.eval()(input_ids=tokens).logits.item()
            assert score == pytest.approx(direct, abs=1e-5)
    right = [a > b for a, b in zip(scores["chosen"], scores["rejected"], strict=True)]
    evaluation = summary(folder)["evaluation"]
    p, n = sum(right) / len(right), len(right)
    assert evaluation["accuracy"] == pytest.approx(p)
    assert evaluation["accuracy_standard_error"] == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5)
    assert n >= 10
    assert p >= 0.8  # words of the two sides differ: that is easy to learn


def test_the_score_starts_small_on_an_unchanged_trunk(tiny_model: Path) -> None:
    config = replace(reward.PRESETS["smoke"], model=str(tiny_model))
    made, _ = reward.classifier(config)
    width = made.config.hidden_size
    assert made.score.weight.std().item() == pytest.approx((width + 1) ** -0.5, rel=0.4)
    trunk = tiny.llama().base_model.state_dict()
    assert all(
        torch.equal(value, trunk[name]) for name, value in made.base_model.state_dict().items()
    )


def message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "rloo"])
def test_conversations(trained: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """Every program reads them by the tokenizer's chat template."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    tiny.llama().save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    rows = [
        {
            "prompt": message("user", a),
            "chosen": message("assistant", b),
            "rejected": message("assistant", c),
        }
        for a, b, c in zip(tiny.WORDS[:40], tiny.WORDS[20:60], tiny.WORDS[40:], strict=True)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    chats = [{"messages": row["prompt"] + row["chosen"]} for row in rows]
    options = {
        "sft": ["--text", write_rows(tmp_path / "chats.jsonl", chats), "--prompts", data],
        "reward": ["--preferences", data],
        "dpo": ["--preferences", data, "--prompts", data],
        "rloo": ["--prompts", data],
    }
    folder = trained(name, "--model", tmp_path / "chat", *options[name])
    evaluation = summary(folder)["evaluation"]
    if name != "reward":
        assert evaluation["samples"][0]["prompt"].startswith("user ")
        assert evaluation["samples"][0]["prompt"].endswith(" <end> assistant ")


def test_dpo_reaches_its_optimum(trained: Callable[..., Path], tmp_path: Path) -> None:
    """pi* is proportional to pi_ref exp(r / beta) for pairs drawn as Bradley and Terry have it.

    With r = log k the first of a pair wins with probability k / (k + k'), so that a few rows hold
    the probabilities exactly.
    """
    beta, prompt = 0.5, next(word for word in tiny.WORDS if not is_held_out(word))
    k = {" ba": 1, " ce": 2, " di": 4}
    rows = [
        {"prompt": prompt, "chosen": a, "rejected": b}
        for a in k
        for b in k
        if a != b
        for _ in range(15 * k[a] // (k[a] + k[b]))
    ]
    assert len(rows) == 3 * 15
    data = write_rows(tmp_path / "table.jsonl", rows)
    folder = trained(
        "dpo",
        "--preferences",
        data,
        "--limit",
        "0",
        "--lora",
        "0",
        "--beta",
        beta,
        "--lr",
        "3e-3",
        "--batch-size",
        "45",
        "--micro-batch",
        "45",
        "--epochs",
        "100",
        "--kl-every",
        "100",
        "--checkpoint-every",
        "100",
    )
    policy, tokenizer, _ = load_policy(str(folder), Path("data"))

    def table(lm: Any) -> torch.Tensor:
        """Distribution over the completions, each with its end-of-text."""
        tokens = torch.tensor([tokenizer(prompt + text + "<end>")["input_ids"] for text in k])
        hidden, head = lm(tokens)
        log_probs = (head.logits(hidden)).double().log_softmax(-1)[:, :-1]
        whole = log_probs.gather(-1, tokens[:, 1:, None]).sum((1, 2))
        return whole.softmax(0)

    with torch.no_grad():
        learnt = table(policy.lm)
        with policy.as_reference() as lm:
            reference = table(lm)
    best = reference * torch.tensor(list(k.values())).double() ** (1 / beta)
    best /= best.sum()
    assert (learnt * (learnt / best).log()).sum() < 0.02
    assert (reference * (reference / best).log()).sum() > 0.2


def test_precision_and_recomputation_are_as_asked(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's defaults of both are True, so that forgetting one would not show."""
    modes: list[tuple[str, bool]] = []

    def look(trainer: Any, run: Any, every: int) -> bool:
        done = train_with(trainer, run, every)
        recomputes = trainer.model.is_activation_checkpointing
        modes.append((trainer.accelerator.mixed_precision, recomputes))
        return done

    monkeypatch.setattr(trl, "train_with", look)
    whole = trained("dpo")
    saving = trained("dpo", "--activation-checkpointing", out="saving")
    trained("dpo", "--mixed-precision", "bf16", out="fast")
    assert modes == [("no", False), ("no", True), ("bf16", False)]
    for one, two in zip(metrics(whole), metrics(saving), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)  # also where it samples
