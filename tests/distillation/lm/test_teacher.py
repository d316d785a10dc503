"""The teacher's answers: stored ones are the live ones, and a foreign file is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distillation.lm import teacher
from distillation.lm.objective import Head, TopK
from distillation.lm.teacher import ask, fingerprint, look_up, stored, tabulate, write_texts
from shared.errors import UserError
from tests import tiny

TOKENS = torch.randint(3, tiny.VOCABULARY, (20, 9), generator=torch.Generator())
ROWS = torch.tensor([7, 0, 19])


def test_stored_hidden_states_are_the_live_ones(tmp_path: Path) -> None:
    teacher, path = tiny.model(), tmp_path / "a.safetensors"
    table = stored(path, "--x", "f", lambda: tabulate(teacher, TOKENS))
    live, kept = ask(teacher, TOKENS[ROWS]), look_up(table, ROWS, teacher.weight)
    assert isinstance(live, Head)
    assert isinstance(kept, Head)
    assert torch.allclose(live.hidden, kept.hidden, atol=1e-6)
    assert kept.weight is live.weight


def test_stored_topk_is_the_live_one(tmp_path: Path) -> None:
    teacher, path = tiny.model(), tmp_path / "a.safetensors"
    table = stored(path, "--x", "f", lambda: tabulate(teacher, TOKENS, 4, temperature=2.0))
    live, kept = ask(teacher, TOKENS[ROWS], 4, 2.0), look_up(table, ROWS, teacher.weight)
    assert isinstance(live, TopK)
    assert isinstance(kept, TopK)
    assert torch.equal(live.tokens, kept.tokens)
    assert torch.allclose(live.log_p, kept.log_p, atol=1e-6)
    hidden, weight = teacher(TOKENS[ROWS, :-1])
    expected = torch.softmax(hidden @ weight.T / 2, -1).sort(-1, descending=True).values[..., :4]
    assert torch.allclose(live.log_p.exp(), expected, atol=1e-6)


def test_the_fingerprint_changes_with_what_answers_depend_on() -> None:
    teacher = tiny.model()
    first = fingerprint(teacher, TOKENS, topk=3)
    assert first == fingerprint(tiny.model(), TOKENS.clone(), topk=3)
    assert first != fingerprint(teacher, TOKENS, topk=4)
    assert first != fingerprint(teacher, TOKENS.flip(0), topk=3)
    assert first != fingerprint(teacher, TOKENS.reshape(10, 18), topk=3)
    with torch.no_grad():
        teacher.trunk.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    assert first != fingerprint(teacher, TOKENS, topk=3)


def test_a_foreign_or_damaged_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    stored(path, "--teacher-cache", "one", lambda: {"hidden": torch.zeros(2)})
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"--teacher-cache .* belongs to another teacher"):
        stored(path, "--teacher-cache", "two", dict)
    assert path.read_bytes() == before
    path.write_bytes(before[:20])
    with pytest.raises(UserError, match=f"--teacher-cache {path}: cannot be read"):
        stored(path, "--teacher-cache", "one", dict)
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
