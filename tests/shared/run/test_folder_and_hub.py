"""The run folder, its JSON files, and the upload that never endangers the local model."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.cli import load_config, with_resume_cleared
from shared.errors import UserError
from shared.processes.launch import check_repository
from shared.run import report
from shared.run.folder import append_metrics, claim, keep_metrics, read_metrics, write_json
from shared.template.config import PRESETS, Config


def test_config_survives_the_round_trip(tmp_path: Path) -> None:
    config = Config(out=str(tmp_path / "run"), beta=0.1, trackers=("tensorboard",), seed=7)
    folder = claim("template", "default", config)
    assert load_config(folder, Config) == ("default", with_resume_cleared(config))
    checkpoint = folder / "checkpoints" / "step-00000001"
    assert load_config(checkpoint, Config) == ("default", with_resume_cleared(config))
    assert {p.name for p in folder.iterdir()} == {"config.json", "env.json", "checkpoints"}


def test_default_folder_is_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [str(claim("template", "smoke", PRESETS["smoke"])) for _ in range(3)]
    assert names == ["runs/template-smoke", "runs/template-smoke-2", "runs/template-smoke-3"]


def test_a_folder_that_cannot_be_filled_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: Any) -> None:
        raise UserError(f"{path}: full")

    monkeypatch.setattr("shared.run.folder.write_json", full)
    with pytest.raises(UserError):
        claim("template", "smoke", Config(out=str(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


def test_metrics_are_cut_back(tmp_path: Path) -> None:
    for step in range(3):
        append_metrics(tmp_path, {"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"ste')
    keep_metrics(tmp_path, 2)
    assert read_metrics(tmp_path) == [{"step": 0}, {"step": 1}]


def test_json_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "summary.json"
    write_json(path, {"a": 1})
    original = Path.write_text

    def full(self: Path, text: str) -> int:
        original(self, text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]


class FakeHub:
    """Stands in for HfApi and remembers what it was asked."""

    calls: list[tuple[Any, ...]]
    error: Exception | None = None

    def create_repo(self, name: str, exist_ok: bool) -> str:
        if FakeHub.error:
            raise FakeHub.error
        FakeHub.calls = [("create", name, exist_ok)]
        return f"https://hub/{name}"

    def upload_folder(self, repo_id: str, folder_path: Path) -> None:
        FakeHub.calls.append(("upload", repo_id, folder_path))


def test_push(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "HfApi", FakeHub)
    assert report.push(tmp_path, "me/digits") == "https://hub/me/digits"
    assert FakeHub.calls == [("create", "me/digits", True), ("upload", "me/digits", tmp_path)]


@pytest.mark.parametrize("error", [OSError("no token\nlog in"), RuntimeError(), ValueError("x")])
def test_push_that_fails(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "error", error)
    with pytest.raises(UserError) as refusal:
        report.push(tmp_path, "me/digits")
    message = str(refusal.value)
    assert "--push-to-hub me/digits" in message
    assert f"the model is safe in {tmp_path}" in message
    assert "\n" not in message


def test_repository_names() -> None:
    check_repository("me/digits")
    with pytest.raises(UserError, match="--push-to-hub"):
        check_repository("a b")
