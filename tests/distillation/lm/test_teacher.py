"""The teacher's predictions: those of many blocks are those of each, and texts are kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distillation.lm import teacher
from distillation.lm.objective import LazyLogits, TopK
from distillation.lm.teacher import predict, predict_all, write_texts
from tests import tiny

TOKENS = torch.randint(3, tiny.VOCABULARY, (20, 9), generator=torch.Generator())
ROWS = torch.tensor([7, 0, 19])


def test_hidden_states_of_all_blocks_are_those_of_each() -> None:
    teacher = tiny.model()
    live, kept = predict(teacher, TOKENS[ROWS]), predict_all(teacher, TOKENS).at(ROWS)
    assert isinstance(live, LazyLogits)
    assert isinstance(kept, LazyLogits)
    assert torch.allclose(live.hidden, kept.hidden, atol=1e-6)
    assert kept.head.weight is live.head.weight


def test_the_largest_probabilities_of_all_blocks_are_those_of_each() -> None:
    teacher = tiny.model()
    live = predict(teacher, TOKENS[ROWS], 4, 2.0)
    kept = predict_all(teacher, TOKENS, 4, temperature=2.0).at(ROWS)
    assert isinstance(live, TopK)
    assert isinstance(kept, TopK)
    assert torch.equal(live.tokens, kept.tokens)
    assert torch.allclose(live.log_p, kept.log_p, atol=1e-6)
    hidden, head = teacher(TOKENS[ROWS, :-1])
    expected = torch.softmax(head.logits(hidden) / 2, -1).sort(-1, descending=True).values[..., :4]
    assert torch.allclose(live.log_p.exp(), expected, atol=1e-6)


def texts(folder: Path, key: int = 1, say: Callable[[str], None] = print) -> torch.Tensor:
    return write_texts(tiny.model(), TOKENS[:, :3], 5, key, 2, say=say, folder=folder, expected="f")


def test_texts_are_a_function_of_the_key_and_the_prompt_alone(tmp_path: Path) -> None:
    first = texts(tmp_path / "a")
    assert torch.equal(first[:, :3], TOKENS[:, :3].int())
    assert torch.equal(first, texts(tmp_path / "b"))
    assert not torch.equal(first, texts(tmp_path / "c", key=2))


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
