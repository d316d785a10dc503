"""The programs that train with TRL: what they leave, resuming, DPO's optimum, refusals."""

import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from rlhf import dpo, reward, rloo, sft, trl_folder, trl_runs
from rlhf.evaluate import evaluate
from rlhf.policies import load_policy
from rlhf.prompts import is_held_out, read_prompts
from rlhf.rewards import load_reward
from rlhf.task import Task
from shared import cli, interrupt
from shared.checkpoint import verify_folder
from shared.errors import Interrupted, UserError
from tests import tiny
from tests.helpers import Processes, flip_byte, metrics

PROGRAMS = {"sft": sft, "reward": reward, "dpo": dpo, "rloo": rloo}
# 16 examples in batches of 4: 4 steps an epoch; rates at which 8 steps move a tiny model.
SMALL = ["smoke", "--lora-targets", "q_proj", "v_proj", "--lr", "0.02", "--limit", "16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chosen sides are made of other words than the rejected ones."""
    rng = random.Random(1)

    def words(some: list[str], count: int) -> str:
        return " ".join(rng.choices(some, k=count))

    rows = [
        {
            "prompt": words(tiny.WORDS, 4),
            "chosen": " " + words(tiny.WORDS[:40], rng.randint(2, 5)),
            "rejected": " " + words(tiny.WORDS[40:], rng.randint(2, 5)),
        }
        for _ in range(80)
    ]
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Run a program in this process; what it does to signals is undone."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    examples = write_rows(tmp_path / "examples.jsonl", [
        {"prompt": row["prompt"], "completion": row["chosen"]}
        for row in map(json.loads, pairs.read_text().splitlines())
    ])  # fmt: skip
    source = {"sft": ["--text", examples], "rloo": []}

    def start(name: str, *options: Any, out: str = "") -> Path:
        folder = tmp_path / (out or name)
        own = [o for o in SMALL if name != "rloo" or o not in ("--limit", "16")]
        argv = options if "--resume" in options else [
            *own, "--model", model, *source.get(name, ["--preferences", pairs]),
            "--out", folder, *options,
        ]  # fmt: skip
        monkeypatch.setattr(interrupt, "_received", 0)
        AcceleratorState._reset_state(True)  # the precision of the run before
        program: ModuleType = PROGRAMS[name]
        try:
            program.train(*cli.read_config(program.PRESETS, name, [str(a) for a in argv]))
        finally:
            interrupt.uninstall()
        return folder

    return start


def summary(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return told


@pytest.mark.parametrize("name", ["sft", "dpo", "rloo"])
@pytest.mark.parametrize("lora", [4, 0])
def test_a_policy_is_left_that_reads_back_as_it_was_measured(
    run: Callable[..., Path], name: str, lora: int
) -> None:
    folder = run(name, "--lora", lora)
    assert {p.name for p in folder.iterdir()} == {
        "checkpoints", "config.json", "env.json", "metrics.jsonl", "model", "pictures",
        "summary.json",
    }  # fmt: skip
    verify_folder(folder / "model")
    told = summary(folder)["evaluation"]
    assert told["kl"] > 1e-3  # it has moved
    policy, tokenizer, about = load_policy(str(folder), Path("data"))
    config = replace(PROGRAMS[name].Config(), gold="gold", completion=8)
    task = Task(config, tokenizer, policy.model.config, ())
    prompts = read_prompts("--prompts", "movies", tokenizer, 64, held_out=True, limit=4)
    again = evaluate(policy, task, prompts)
    assert again["kl"] == pytest.approx(told["kl"], rel=1e-4)
    assert again["samples"] == told["samples"]
    assert about["config"]["lora"] == lora
    steps = [line["step"] for line in metrics(folder) if "loss" in line]
    assert steps == list(range(1, summary(folder)["steps"] + 1))


@pytest.mark.parametrize("name", ["dpo", "rloo"])
def test_reference_kl_in_training_is_the_number_of_the_final_evaluation(
    run: Callable[..., Path], name: str
) -> None:
    folder = run(name)
    measured = [line for line in metrics(folder) if "objective/kl" in line]
    told = summary(folder)["evaluation"]
    assert measured[0]["step"] == 0
    assert measured[0]["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert measured[-1]["step"] == summary(folder)["steps"]
    assert measured[-1]["objective/kl"] == told["kl"] > 1e-3
    assert measured[-1]["objective/kl_k1"] == told["kl_k1"]
    assert measured[-1]["rewards/gold/mean"] == told["policy"]["gold"]["mean"]


@pytest.mark.parametrize("lora", [4, 0])
def test_a_reward_model_reads_back_with_equal_scores(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, lora: int
) -> None:
    kept: list[Any] = []
    leave = reward.leave

    def keep(*given: Any) -> None:
        kept.extend(given)
        leave(*given)

    monkeypatch.setattr(reward, "leave", keep)
    folder = run("reward", "--lora", lora, "--limit", "0", "--epochs", "20", "--batch-size", "16",
                 "--micro-batch", "16", "--checkpoint-every", "100")  # fmt: skip
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
    told = summary(folder)["evaluation"]
    p, n = sum(right) / len(right), len(right)
    assert told["accuracy"] == pytest.approx(p)
    assert told["accuracy_standard_error"] == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5)
    assert n >= 10
    assert p >= 0.8  # words of the two sides differ: that is easy to learn


def test_the_score_starts_small_on_an_unchanged_trunk(model: Path) -> None:
    config = replace(reward.PRESETS["smoke"], model=str(model))
    made, _ = reward.classifier(config, Path("data"))
    width = made.config.hidden_size
    assert made.score.weight.std().item() == pytest.approx((width + 1) ** -0.5, rel=0.4)
    trunk = tiny.llama().base_model.state_dict()
    assert all(torch.equal(value, trunk[name]) for name, value in
               made.base_model.state_dict().items())  # fmt: skip


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "rloo"])
def test_conversations(run: Callable[..., Path], tmp_path: Path, name: str) -> None:
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
            "prompt": said("user", a),
            "chosen": said("assistant", b),
            "rejected": said("assistant", c),
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
    folder = run(name, "--model", tmp_path / "chat", *options[name])
    told = summary(folder)["evaluation"]
    if name != "reward":
        assert told["samples"][0]["prompt"].startswith("user ")
        assert told["samples"][0]["prompt"].endswith(" <end> assistant ")


def said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def test_dpo_reaches_its_optimum(run: Callable[..., Path], tmp_path: Path) -> None:
    """pi* is proportional to pi_ref exp(r / beta) for pairs drawn as Bradley and Terry have it.

    With r = log k the first of a pair wins with probability k / (k + k'), so that a few rows hold
    the probabilities exactly.
    """
    beta, prompt = 0.5, next(word for word in tiny.WORDS if not is_held_out(word))
    k = {" ba": 1, " ce": 2, " di": 4}
    rows = [
        {"prompt": prompt, "chosen": a, "rejected": b}
        for a in k for b in k if a != b
        for _ in range(15 * k[a] // (k[a] + k[b]))
    ]  # fmt: skip
    assert len(rows) == 3 * 15
    data = write_rows(tmp_path / "table.jsonl", rows)
    folder = run(
        "dpo", "--preferences", data, "--limit", "0", "--lora", "0", "--beta", beta, "--lr", "3e-3",
        "--batch-size", "45", "--micro-batch", "45", "--epochs", "100", "--kl-every", "100",
        "--checkpoint-every", "100",
    )  # fmt: skip
    policy, tokenizer, _ = load_policy(str(folder), Path("data"))

    def table(lm: Any) -> torch.Tensor:
        """Distribution over the completions, each with its end-of-text."""
        tokens = torch.tensor([tokenizer(prompt + text + "<end>")["input_ids"] for text in k])
        hidden, weight = lm(tokens)
        said = (hidden @ weight.T).double().log_softmax(-1)[:, :-1]
        whole = said.gather(-1, tokens[:, 1:, None]).sum((1, 2))
        return whole.softmax(0)

    with torch.no_grad():
        learnt = table(policy.lm)
        with policy.as_reference() as lm:
            reference = table(lm)
    best = reference * torch.tensor(list(k.values())).double() ** (1 / beta)
    best /= best.sum()
    assert (learnt * (learnt / best).log()).sum() < 0.02
    assert (reference * (reference / best).log()).sum() > 0.2


def cut(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM during an optimiser step."""
    ours = trl_folder.InOurFolder
    original = ours.on_pre_optimizer_step

    def send(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, args, state, control, **more)

    monkeypatch.setattr(ours, "on_pre_optimizer_step", send)


def assert_equal_ends(a: Path, b: Path) -> None:
    """Weights, optimiser and metrics to the last bit."""
    newest = [max((run / "checkpoints").glob("step-*")) for run in (a, b)]
    ours, theirs = (load_file(path / "adapter_model.safetensors") for path in newest)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    first, second = (torch.load(path / "optimizer.pt", weights_only=True) for path in newest)
    for index, state in first["state"].items():
        assert torch.equal(state["exp_avg_sq"], second["state"][index]["exp_avg_sq"])
    lines = [[{k: v for k, v in line.items() if k != "step_time"} for line in metrics(run)]
             for run in (a, b)]  # fmt: skip
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", ["reward", "dpo", "rloo"])
def test_a_resumed_run_is_the_uninterrupted_one(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Cut in the middle of the second epoch; then once more after the last checkpoint."""
    few = write_rows(tmp_path / "few.jsonl", [{"prompt": w} for w in tiny.WORDS[:10]])
    length = ["--steps", "8", "--prompts", few] if name == "rloo" else ["--epochs", "2"]
    whole = run(name, *length, "--checkpoint-every", "8")
    with monkeypatch.context() as patch:
        cut(6, patch)
        with pytest.raises(Interrupted) as stop:
            run(name, *length, "--checkpoint-every", "8", out="cut")
    assert stop.value.exit_code == 128 + signal.SIGTERM
    folder = whole.with_name("cut")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000006"]
    run(name, "--resume", folder)
    assert_equal_ends(whole, folder)
    ended = summary(folder)["evaluation"]
    assert ended == summary(whole)["evaluation"]

    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "model")
    run(name, "--resume", folder)  # nothing is left to train
    assert summary(folder)["evaluation"] == ended
    assert_equal_ends(whole, folder)


def test_half_a_checkpoint_is_passed_over_and_a_damaged_one_is_named(
    run: Callable[..., Path],
) -> None:
    folder = run("reward", "--checkpoint-every", "2")
    good, newest = sorted((folder / "checkpoints").iterdir())
    half = folder / "checkpoints" / trl_folder.SCRATCH / "checkpoint-9"  # killed while writing
    shutil.copytree(newest, half)
    flip_byte(newest / "adapter_model.safetensors")
    with pytest.raises(UserError, match=rf"adapter_model.*damaged.*--resume {good}"):
        run("reward", "--resume", folder)
    shutil.rmtree(newest)
    run("reward", "--resume", good)
    assert summary(folder)["steps"] == 4
    assert sorted((folder / "checkpoints").iterdir()) == [good, newest]


def test_a_checkpoint_that_is_code_is_refused(run: Callable[..., Path], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    folder = run("reward")
    path = folder / "checkpoints" / "step-00000002"
    torch.save({"state": Trap()}, path / "optimizer.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["optimizer.pt"] = trl_folder.checkpoint._sha256(path / "optimizer.pt")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="refused"):
        run("reward", "--resume", path)
    assert not (tmp_path / "sprung").exists()


def test_a_gradient_that_is_no_number_ends_the_run(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tiny.llama()
    broken.model.norm.weight.data[0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tiny.tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="not finite at step 0: not applied"):
        run("reward", "--model", tmp_path / "broken")


@pytest.mark.parametrize("kilobytes", [60, 150])
def test_a_full_disk_is_one_line(run: Callable[..., Path], kilobytes: int) -> None:
    """It is full within the weights (100 kB), or within the optimiser's state (200 kB)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, limits[1]))
    try:
        with pytest.raises(UserError, match="the disk is full"):
            run("reward", "--lora", "0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_precision_and_recomputation_are_as_asked(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's defaults of both are True, so that forgetting one would not show."""
    found: list[tuple[str, bool]] = []

    def look(trainer: Any, given: Any, config: Any) -> bool:
        done = trl_runs.train_with(trainer, given, config)
        recomputes = trainer.model.is_activation_checkpointing
        found.append((trainer.accelerator.mixed_precision, recomputes))
        return done

    monkeypatch.setattr(dpo, "train_with", look)
    whole = run("dpo")
    saving = run("dpo", "--activation-checkpointing", out="saving")
    run("dpo", "--mixed-precision", "bf16", out="fast")
    assert found == [("no", False), ("no", True), ("bf16", False)]
    for one, two in zip(metrics(whole), metrics(saving), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)  # also where it samples


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dpo", ["--preferences", "DATA/examples.jsonl"], ["--preferences", "chosen", "rejected"]),
        ("reward", ["--preferences", "nothing.jsonl"], ["--preferences nothing.jsonl"]),
        ("sft", ["--text", "DATA/pairs.jsonl"], ["row 1", "chosen", "completion", "messages"]),
        ("dpo", ["--lora-targets", "query"], ["--lora-targets query"]),
        ("dpo", ["--batch-size", "6", "--micro-batch", "4"], ["--micro-batch 4", "--batch-size 6"]),
        ("rloo", ["--num-generations", "1"], ["--num-generations 1", ">= 2"]),
        ("rloo", ["--num-generations", "3"], ["--num-generations 3", "--batch-size 4"]),
        ("rloo", ["--reward", "rlhf.gold:nothing"], ["--reward rlhf.gold:nothing"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Callable[..., Path], pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    name: str, options: list[str], words: list[str],
) -> None:  # fmt: skip
    shutil.copy(pairs, tmp_path)
    given = [option.replace("DATA", str(tmp_path)) for option in options]
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: run(name, *given) and None, f"rlhf.{name}")
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words), said
    assert not (tmp_path / name).exists()


def test_two_processes_do_what_one_does(
    processes: Processes, run: Callable[..., Path], model: Path, pairs: Path, tmp_path: Path
) -> None:
    alone = run("dpo")
    result = processes(
        *SMALL, "--model", model, "--preferences", pairs, "--out", tmp_path / "two",
        program="rlhf.dpo", ranks=2,
    )  # fmt: skip
    assert result.codes == [0, 0], result.errs
    assert result.outs[1] == ""
    for one, two in zip(metrics(alone), metrics(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"]
        for key in {"loss", "rewards/margins", "objective/kl"} & one.keys():
            assert one[key] == pytest.approx(two[key], rel=1e-3, abs=1e-5)
    told = [summary(folder)["evaluation"]["kl"] for folder in (alone, tmp_path / "two")]
    assert told[0] == pytest.approx(told[1], rel=1e-3)
