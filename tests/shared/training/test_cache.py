"""Tensors kept in a file: they come back exactly, and the file of others is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from shared.errors import UserError
from shared.training.cache import fingerprint, stored


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_tensors_are_made_once_and_come_back_exactly(tmp_path: Path) -> None:
    path, calls = tmp_path / "new" / "a.safetensors", iter([torch.randn(2, 3), None])
    first = stored(path, "--x", "mark", lambda: {"x": next(calls)})  # type: ignore[dict-item]
    again = stored(path, "--x", "mark", lambda: {"x": next(calls)})  # type: ignore[dict-item]
    assert torch.equal(first["x"], again["x"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_fingerprint_changes_with_everything_it_is_of() -> None:
    tokens = torch.arange(12).reshape(3, 4)
    first = fingerprint("topk 3", model(), tokens=tokens)
    assert first == fingerprint("topk 3", model(), tokens=tokens.clone())
    others = {
        fingerprint("topk 4", model(), tokens=tokens),
        fingerprint("topk 3", model(), tokens=tokens.flip(0)),
        fingerprint("topk 3", model(), tokens=tokens.reshape(4, 3)),
    }
    other = model()
    with torch.no_grad():
        other.weight[0, 0] += 1e-3
    others.add(fingerprint("topk 3", other, tokens=tokens))
    assert len(others | {first}) == 5


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
