"""The generator of preference pairs, with a tiny model, and the committed set it made."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf import preferences
from rlhf.preferences import Options, pairs_of
from rlhf.prompts import PREFERENCES, is_held_out, read_preferences
from rlhf.prompts.openings import openings
from rlhf.rewards.gold import sentiment
from shared.errors import UserError
from tests import tiny

MARGIN = Options().margin
SMALL = ["--count", "12", "--held-out", "6", "--completions", "4", "--pairs", "2"]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(pairs: list[dict[str, Any]]) -> None:
    """What holds for every preference set of ours."""
    for pair in pairs:
        texts = [pair["chosen"], pair["rejected"]]
        assert sentiment([pair["prompt"]] * 2, texts) == [
            pair["chosen_score"],
            pair["rejected_score"],
        ]
        assert pair["chosen_score"] - pair["rejected_score"] >= MARGIN
        assert pair["prompt"] in openings()
        assert list(pair) == ["prompt", "chosen", "rejected", "chosen_score", "rejected_score"]
    as_text = [json.dumps(pair) for pair in pairs]
    assert len(set(as_text)) == len(as_text)


def test_the_committed_set() -> None:
    pairs = read(PREFERENCES)
    check(pairs)
    assert PREFERENCES.stat().st_size < 2**20
    parts = [read_preferences("--preferences", "movies", held_out=part) for part in (False, True)]
    assert sum(map(len, parts)) == len(pairs)
    assert all(map(is_held_out, parts[1]["prompt"]))
    assert not any(map(is_held_out, parts[0]["prompt"]))
    assert len(parts[0]) >= 800
    assert len(parts[1]) >= 100


def test_pairs_keep_their_distance_and_the_better_one_is_chosen() -> None:
    near = 0.2 + MARGIN / 2
    texts, scores = ["a", "b", "c", "cut \ufffd"], [0.2, 0.9, near, -1.0]
    every = pairs_of("p", texts, scores, 6, MARGIN, range(6))
    assert [(pair.chosen, pair.rejected) for pair in every] == [("b", "a"), ("b", "c")]
    assert [(pair.chosen_score, pair.rejected_score) for pair in every] == [(0.9, 0.2), (0.9, near)]
    assert pairs_of("p", texts, scores, 1, MARGIN, [3, 0, 1, 2, 4, 5]) == [every[1]]
    assert pairs_of("p", texts, scores, 6, 0.71, range(6)) == []


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command with a tiny model whose completions VADER has an opinion on."""
    words = tiny.tokenizer()
    folder = tiny.write_model(tmp_path / "model")
    stored = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    for new, old in (("good", "ba"), ("bad", "be"), ("love", "bi"), ("awful", "bo")):
        vocabulary[new] = vocabulary.pop(old)
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    assert len(vocabulary) == len(words)

    def run(name: str, *options: str) -> Path:
        out = tmp_path / name
        argv = ["--model", str(folder), "--out", str(out), *(options or SMALL)]
        monkeypatch.setattr(sys, "argv", ["rlhf.preferences", *argv])
        preferences.main()
        return out

    return run


def test_the_command_writes_pairs_of_both_parts(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = read(write("a.jsonl"))
    check(pairs)
    unseen = [pair for pair in pairs if is_held_out(pair["prompt"])]
    assert 0 < len(unseen) < len(pairs)
    prompts = [
        text
        for part, most in ((False, 12), (True, 6))
        for text in [t for t in openings() if is_held_out(t) == part][:most]
    ]
    assert {pair["prompt"] for pair in pairs} <= set(prompts)
    assert max(sum(pair["prompt"] == prompt for pair in pairs) for prompt in prompts) == 2
    message = capsys.readouterr().out
    assert "gold reward of 72 completions: mean" in message
    assert f"{len(pairs) - len(unseen)} pairs to train on, {len(unseen)} held out" in message


def test_the_seed_changes_the_set_and_the_batch_size_does_not(write: Any) -> None:
    first = read(write("a.jsonl"))
    assert read(write("b.jsonl", *SMALL, "--batch-size", "5")) == first
    assert read(write("c.jsonl", *SMALL, "--seed", "1")) != first
    samples = {pair["chosen"] for pair in first}
    assert len(samples) > len(first) / 2


def test_an_interrupted_write_leaves_the_old_set(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.jsonl")
    before = path.read_bytes()
    real = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        real(self, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be written, the disk is full"):
        write("a.jsonl", *SMALL, "--seed", "1")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["a.jsonl"]


def letters(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_pairs_of_ones_own_prompts_by_ones_own_reward(write: Any, tmp_path: Path) -> None:
    known = [set(text.split()) - {"ba", "be", "bi", "bo"} for text in tiny.texts(80, words=30)]
    texts = [" ".join(sorted(words)) for words in known]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    pairs = read(
        write(
            "a.jsonl",
            *SMALL,
            "--prompts",
            str(tmp_path / "reviews.jsonl"),
            "--reward",
            f"{__name__}:letters",
            "--margin",
            "2",
        )
    )
    assert len(pairs) > 12
    for pair in pairs:
        assert any(text.startswith(pair["prompt"]) for text in texts)
        assert pair["chosen_score"] == len(pair["chosen"]) >= len(pair["rejected"]) + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "100000"], r"--count 100000: there are \d+ such prompts"),
        (["--held-out", "1000"], r"--held-out 1000: there are \d+ such prompts"),
        (["--prompts", "none.jsonl"], r"--prompts none\.jsonl: is not an existing file"),
        (["--reward", "os:sep"], "--reward os:sep: is not a function"),
        (["--completions", "1"], "--completions 1: must be >= 2"),
        (["--tokens", "0"], "--tokens 0: must be >= 1"),
    ],
)
def test_bad_options(write: Any, options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write("a.jsonl", *options)
    assert not (tmp_path / "a.jsonl").exists()
