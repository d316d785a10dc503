"""The programs that train with TRL: cut and resumed, damaged, refused, on two processes."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shared import cli
from shared.errors import Interrupted, UserError
from shared.language_models import trl as trl_folder
from shared.run.folder import sha256
from tests import tiny
from tests.helpers import Processes, flip_byte, metrics
from tests.rlhf.programs import SMALL, summary, write_rows


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
    lines = [
        [{k: v for k, v in line.items() if k != "step_time"} for line in metrics(run)]
        for run in (a, b)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", ["reward", "dpo", "rloo"])
def test_a_resumed_run_is_the_uninterrupted_one(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Cut in the middle of the second epoch; then once more after the last checkpoint."""
    few = write_rows(tmp_path / "few.jsonl", [{"prompt": w} for w in tiny.WORDS[:10]])
    length = ["--steps", "8", "--prompts", few] if name == "rloo" else ["--epochs", "2"]
    whole = trained(name, *length, "--checkpoint-every", "8")
    with monkeypatch.context() as patch:
        cut(6, patch)
        with pytest.raises(Interrupted) as stop:
            trained(name, *length, "--checkpoint-every", "8", out="cut")
    assert stop.value.exit_code == 128 + signal.SIGTERM
    folder = whole.with_name("cut")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000006"]
    trained(name, "--resume", folder)
    assert_equal_ends(whole, folder)
    ended = summary(folder)["evaluation"]
    assert ended == summary(whole)["evaluation"]

    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "model")
    trained(name, "--resume", folder)  # nothing is left to train
    assert summary(folder)["evaluation"] == ended
    assert_equal_ends(whole, folder)


def test_half_a_checkpoint_is_passed_over_and_a_damaged_one_is_named(
    trained: Callable[..., Path],
) -> None:
    folder = trained("reward", "--checkpoint-every", "2")
    good, newest = sorted((folder / "checkpoints").iterdir())
    half = folder / "checkpoints" / trl_folder.SCRATCH / "checkpoint-9"  # killed while writing
    shutil.copytree(newest, half)
    flip_byte(newest / "adapter_model.safetensors")
    with pytest.raises(UserError, match=rf"adapter_model.*damaged.*--resume {good}"):
        trained("reward", "--resume", folder)
    shutil.rmtree(newest)
    trained("reward", "--resume", good)
    assert summary(folder)["steps"] == 4
    assert sorted((folder / "checkpoints").iterdir()) == [good, newest]


def test_a_checkpoint_that_is_code_is_refused(trained: Callable[..., Path], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    folder = trained("reward")
    path = folder / "checkpoints" / "step-00000002"
    torch.save({"state": Trap()}, path / "optimizer.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["optimizer.pt"] = sha256(path / "optimizer.pt")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="refused"):
        trained("reward", "--resume", path)
    assert not (tmp_path / "sprung").exists()


def test_a_gradient_that_is_no_number_ends_the_run(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tiny.llama()
    broken.model.norm.weight.data[0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tiny.tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="not finite at step 0: not applied"):
        trained("reward", "--model", tmp_path / "broken")


@pytest.mark.parametrize("kilobytes", [60, 150])
def test_a_full_disk_is_one_line(trained: Callable[..., Path], kilobytes: int) -> None:
    """It is full within the weights (100 kB), or within the optimiser's state (200 kB)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, limits[1]))
    try:
        with pytest.raises(UserError, match="the disk is full"):
            trained("reward", "--lora", "0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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
        ("rloo", ["--reward", "rlhf.rewards.gold:nothing"], ["--reward rlhf.rewards.gold:nothing"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    trained: Callable[..., Path],
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    options: list[str],
    words: list[str],
) -> None:
    shutil.copy(pairs, tmp_path)
    given = [option.replace("DATA", str(tmp_path)) for option in options]
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: trained(name, *given) and None, f"rlhf.{name}")
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words), said
    assert not (tmp_path / name).exists()


def test_two_processes_do_what_one_does(
    processes: Processes,
    trained: Callable[..., Path],
    tiny_model: Path,
    pairs: Path,
    tmp_path: Path,
) -> None:
    alone = trained("dpo")
    result = processes(
        *SMALL,
        "--model",
        tiny_model,
        "--preferences",
        pairs,
        "--out",
        tmp_path / "two",
        program="rlhf.dpo",
        ranks=2,
    )
    assert result.codes == [0, 0], result.errs
    assert result.outs[1] == ""
    for one, two in zip(metrics(alone), metrics(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"]
        for key in {"loss", "rewards/margins", "objective/kl"} & one.keys():
            assert one[key] == pytest.approx(two[key], rel=1e-3, abs=1e-5)
    told = [summary(folder)["evaluation"]["kl"] for folder in (alone, tmp_path / "two")]
    assert told[0] == pytest.approx(told[1], rel=1e-3)
