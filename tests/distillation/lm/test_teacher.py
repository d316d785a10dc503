"""The teacher's outputs: stored ones are the live ones, and a foreign file is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from distillation.lm import teacher
from distillation.lm.config import Config
from distillation.lm.data import Blocks
from distillation.lm.objective import HiddenStates, TopK
from distillation.lm.teacher import prepare, write_texts
from shared.errors import UserError
from tests import tiny

TOKENS = torch.randint(3, tiny.VOCABULARY, (20, 9), generator=torch.Generator())
ROWS = torch.tensor([7, 0, 19])


def outputs(path: str, topk: int = 0, temperature: float = 1.0, **changed: Any) -> Any:
    """The tiny teacher, and its outputs for the training blocks ROWS, stored at ``path`` if any."""
    logits: Any = "topk" if topk else "chunked"
    config = Config(
        logits=logits, topk=topk or 1, temperature=temperature, teacher_cache=path, **changed
    )
    blocks = Blocks(TOKENS, torch.ones(20, 8).bool(), torch.zeros(20))
    run: Any = SimpleNamespace(
        accelerator=Accelerator(cpu=True), say=print, on_main=lambda action: action()
    )
    data = prepare(config, run, tiny.model(), tiny.tokenizer(), blocks, blocks.at(ROWS))
    return data, data.outputs(blocks.at(ROWS), ROWS)


def test_stored_hidden_states_are_the_live_ones(tmp_path: Path) -> None:
    path = str(tmp_path / "a.safetensors")
    _, live = outputs("")
    for _ in ("writes it", "reads it"):
        data, kept = outputs(path)
        assert isinstance(live, HiddenStates)
        assert isinstance(kept, HiddenStates)
        assert torch.allclose(live.hidden, kept.hidden, atol=1e-6)
        assert kept.weight is data.teacher.weight


def test_stored_topk_is_the_live_one(tmp_path: Path) -> None:
    path = str(tmp_path / "a.safetensors")
    (data, live), (_, kept) = outputs("", 4, 2.0), outputs(path, 4, 2.0)
    assert isinstance(live, TopK)
    assert isinstance(kept, TopK)
    assert torch.equal(live.tokens, kept.tokens)
    assert torch.allclose(live.log_p, kept.log_p, atol=1e-6)
    hidden, weight = data.teacher(TOKENS[ROWS, :-1])
    expected = torch.softmax(hidden @ weight.T / 2, -1).sort(-1, descending=True).values[..., :4]
    assert torch.allclose(live.log_p.exp(), expected, atol=1e-6)


def test_a_foreign_or_damaged_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    outputs(str(path), 4, 2.0)
    before = path.read_bytes()
    others: list[dict[str, Any]] = [
        {"topk": 0},
        {"topk": 3},
        {"temperature": 1.0},
        {"mixed_precision": "bf16"},
    ]
    for changed in others:
        with pytest.raises(UserError, match=r"--teacher-cache .* belongs to another teacher"):
            outputs(str(path), **({"topk": 4, "temperature": 2.0} | changed))
    assert path.read_bytes() == before
    path.write_bytes(before[:20])
    with pytest.raises(UserError, match=f"--teacher-cache {path}: cannot be read"):
        outputs(str(path), 4, 2.0)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def texts(folder: Path, key: int = 1, say: Callable[[str], None] = print) -> torch.Tensor:
    return write_texts(tiny.model(), TOKENS[:, :3], 5, key, 2, say=say, folder=folder, expected="f")


def test_texts_are_a_function_of_the_key_and_the_prompt_alone(tmp_path: Path) -> None:
    found = texts(tmp_path / "a")
    assert torch.equal(found[:, :3], TOKENS[:, :3].int())
    assert torch.equal(found, texts(tmp_path / "b"))
    assert not torch.equal(found, texts(tmp_path / "c", key=2))


def test_texts_that_were_written_before_an_interruption_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "TEXTS_PER_PASS", 8)
    whole = texts(tmp_path / "whole")
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "received", lambda: len(list(cut.glob("*"))) == 2)
        with pytest.raises(KeyboardInterrupt):
            texts(cut)
    assert [path.name for path in sorted(cut.iterdir())] == [
        "00000.safetensors",
        "00001.safetensors",
    ]
    before = [path.stat().st_mtime_ns for path in sorted(cut.iterdir())]
    assert torch.equal(texts(cut), whole)
    assert [path.stat().st_mtime_ns for path in sorted(cut.iterdir())][:2] == before
