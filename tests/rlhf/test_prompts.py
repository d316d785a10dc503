"""Our openings, and prompts and pairs from files and the Hub: what is read and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from vaderSentiment.vaderSentiment import BOOSTER_DICT, NEGATE

from rlhf.prompts import is_held_out, read_preferences, read_prompts
from rlhf.prompts.openings import openings
from rlhf.rewards.gold import analyser, sentiment
from shared.errors import UserError
from tests import tiny

TEMPLATE = (
    "{% for m in messages %}ba {{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}co{% endif %}"
)
TEXTS = tiny.texts(60, words=3)
ROWS: list[dict[str, Any]] = [{"prompt": text, "star": str(i)} for i, text in enumerate(TEXTS)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def read(source: str, limit: int = 0, max_length: int = 70, held_out: bool = False) -> Any:
    words = tiny.tokenizer()
    return read_prompts("--prompts", source, words, max_length, held_out=held_out, limit=limit)


def test_openings_are_many_short_and_neutral() -> None:
    texts = list(openings())
    assert len(set(texts)) == len(texts) >= 1500
    assert {len(text.split()) for text in texts} <= set(range(3, 9))
    assert not any(sentiment(texts, [""] * len(texts)))
    words = {word.strip(",").lower() for text in texts for word in text.split()}
    assert not words & {*NEGATE, *BOOSTER_DICT, *analyser().lexicon, "but"}


def test_every_opening_is_in_one_part_and_the_smaller_is_a_fifth() -> None:
    train, unseen = read("movies").texts, read("movies", held_out=True).texts
    assert sorted(train + unseen) == sorted(openings())
    assert 0.17 < len(unseen) / len(openings()) < 0.23


def test_a_prompt_is_held_out_wherever_it_stands(tmp_path: Path) -> None:
    mixed = [*ROWS[::-1], *({"prompt": text} for text in openings()[:100])]
    source = write(tmp_path / "a.jsonl", mixed)
    unseen = set(read(source, held_out=True).texts)
    assert unseen == {row["prompt"] for row in mixed if is_held_out(row["prompt"])}
    assert not unseen & set(read(source).texts)
    assert unseen & set(openings()) <= set(read("movies", held_out=True).texts)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_files(kind: str, tmp_path: Path) -> None:
    source = write(tmp_path / f"a.{kind}", ROWS)
    train, unseen = read(source), read(source, held_out=True)
    assert len(train.texts) + len(unseen.texts) == len(ROWS)
    stars = dict(zip(train.texts, train.columns["star"], strict=True))
    assert stars == {r["prompt"]: r["star"] for r in ROWS if not is_held_out(r["prompt"])}
    assert train.tokens == [tiny.tokenizer()(text)["input_ids"] for text in train.texts]
    first = read(source, limit=3)
    assert (first.texts, first.columns) == (train.texts[:3], {"star": train.columns["star"][:3]})
    assert train.at([2, 0]).columns == {"star": [train.columns["star"][i] for i in (2, 0)]}
    assert train.at([2, 0]).tokens == [train.tokens[i] for i in (2, 0)]


def test_texts_without_prompts_give_their_first_words(tmp_path: Path) -> None:
    texts = [*tiny.texts(200, words=30), "ba", "ba"]
    source = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    result = read(source).texts + read(source, held_out=True).texts
    lengths = [len(text.split()) for text in result]
    assert set(lengths) == set(range(2, 9))
    assert len(set(result)) == len(result) > 150
    assert all(any(text.startswith(opening) for text in texts) for opening in result)
    short = write(tmp_path / "b.jsonl", [{"text": "ba"}])
    with pytest.raises(UserError, match="none of its 1 texts has more than 2 tokens"):
        read(short)
    with pytest.raises(UserError, match="row 2 has no column text"):
        read(write(tmp_path / "c.jsonl", [{"text": "ba be bi"}, {"prompt": "ba"}]))


def test_conversations_are_read_through_the_chat_template(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    words.chat_template = TEMPLATE
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in TEXTS]
    source = write(tmp_path / "a.jsonl", rows)
    result = read_prompts("--prompts", source, words, 70, held_out=False)
    expected = [
        f"ba user {r['prompt'][0]['content']} co" for r in rows if not is_held_out(r["prompt"])
    ]
    assert result.texts == expected
    assert result.tokens == [words(text)["input_ids"] for text in expected]
    with pytest.raises(UserError, match=r"row \d+ is a conversation, and the tokenizer has no cha"):
        read(source)
    words.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(UserError, match=r"refuses this conversation \(no such role\)"):
        read_prompts("--prompts", source, words, 70, held_out=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "row 61: its prompt is empty"),
        ({"prompt": " \n"}, "row 61: its prompt is empty"),
        ({"prompt": None}, "row 61: its prompt is empty"),
        ({"prompt": []}, "row 61: its prompt is empty"),
        ({"prompt": 3}, "row 61: its prompt is neither text nor a conversation: 3"),
        ({"prompt": ["ba"]}, "row 61: its prompt is neither"),
        (
            {"text": "ba", "star": "1"},
            "row 61 has no column prompt; it has text, star, needed are prompt",
        ),
    ],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_a_bad_row_is_named(
    row: dict[str, Any], message: str, held_out: bool, tmp_path: Path
) -> None:
    source = write(tmp_path / "a.jsonl", [*ROWS, row])
    with pytest.raises(UserError, match=f"--prompts {source}: {message}"):
        read(source, held_out=held_out)


def test_a_prompt_that_is_too_long_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ROWS)
    longest = max(len(tokens) for tokens in read(source).tokens)
    assert read(source, max_length=longest).texts
    with pytest.raises(UserError, match=rf"has {longest} tokens, more than the {longest - 1} all"):
        read(source, max_length=longest - 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.jsonl", b'{"prompt": "ba"}\n\n{"prompt": "bo', r"cannot be read \(line 3, column 12: "),
        ("a.jsonl", b'"ba"\n', "its rows are not JSON objects"),
        ("a.json", b'{"prompt": "ba"}', "its rows are not JSON objects"),
        ("a.jsonl", b"\xff\xfe", "cannot be read"),
        ("a.csv", b"prompt\nba,bo\n", "a row has more cells than the header"),
        ("a.parquet", b"PAR", "cannot be read"),
        ("a.txt", b"ba\n", "its name must end in one of .jsonl"),
    ],
)
def test_files_that_hold_no_rows(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / name))


def test_a_part_without_prompts_is_refused(tmp_path: Path) -> None:
    rows = [row for row in ROWS if not is_held_out(row["prompt"])]
    with pytest.raises(UserError, match=f"none of its {len(rows)} rows is held out"):
        read(write(tmp_path / "a.jsonl", rows), held_out=True)


def test_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    with pytest.raises(UserError, match="is not an existing file of the kinds"):
        read(str(tmp_path / "gone.jsonl"))
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = (
        r"--prompts no/such: is not a file, and the Hub has no such .*\(Couldn't reach the Hub\)$"
    )
    with pytest.raises(UserError, match=message):
        read("no/such")
    hub = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda _, split: {"train": hub}[split])
    assert read("some/set") == read(write(tmp_path / "a.jsonl", ROWS))


def pairs(rows: list[str]) -> list[dict[str, Any]]:
    return [{"prompt": text, "chosen": " ba", "rejected": ""} for text in rows]


def test_pairs_keep_to_the_part_of_their_prompt(tmp_path: Path) -> None:
    rows = pairs(TEXTS) + pairs(TEXTS)
    source = write(tmp_path / "a.jsonl", [row | {"star": 1} for row in rows])
    unseen = read_preferences("--preferences", source, held_out=True)
    train = read_preferences("--preferences", source, held_out=False)
    assert unseen.to_list() == [row for row in rows if is_held_out(row["prompt"])]
    assert train.to_list() == [row for row in rows if not is_held_out(row["prompt"])]
    assert read("movies").texts  # the same rule
    assert not set(train["prompt"]) & set(unseen["prompt"])


def test_pairs_of_conversations_that_begin_alike(tmp_path: Path) -> None:
    def talk(*contents: str) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]

    rows = [{"chosen": talk(text, "ba"), "rejected": talk(text, "bo")} for text in TEXTS]
    source = write(tmp_path / "a.json", rows)
    result = read_preferences("--preferences", source, held_out=False).to_list()
    assert result[0]["prompt"] == talk(result[0]["prompt"][0]["content"])
    assert result[0]["chosen"] == [{"role": "assistant", "content": "ba"}]
    assert len(result) == sum(not is_held_out(talk(text)) for text in TEXTS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "ba", "chosen": "bo"},
            "row 2 has no column rejected; it has prompt, chosen, needed are chosen, rejected",
        ),
        ({"prompt": "", "chosen": "bo", "rejected": "ba"}, "row 2: its prompt is empty"),
        ({"prompt": "ba", "chosen": None, "rejected": "ba"}, "row 2: its chosen is empty"),
        ({"prompt": "ba", "chosen": 1, "rejected": "ba"}, "row 2: its chosen is neither text nor"),
    ],
)
def test_bad_pairs_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [*pairs(TEXTS[:1]), row])
    with pytest.raises(UserError, match=f"--preferences {source}: {message}"):
        read_preferences("--preferences", source, held_out=False)
