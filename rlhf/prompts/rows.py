"""Rows of a data set: from a file, or from the Hub."""

import csv
import json
from pathlib import Path
from typing import Any

from shared.errors import UserError, first_line

KINDS = (".jsonl", ".json", ".csv", ".parquet")
Row = dict[str, Any]


def read_rows(what: str, source: str) -> list[Row]:
    """The rows of a file or of a Hub data set's training split.

    Raises:
        UserError: nothing there, a file that cannot be read, or no rows.
    """
    path = Path(source)
    if not path.is_file():
        rows = _from_hub(what, source, looks_like_a_file=path.suffix in KINDS or path.exists())
    else:
        try:
            rows = _from_file(path)
        except Exception as error:  # JSON, UTF-8, CSV and Parquet each raise their own
            raise UserError(f"{what}: cannot be read ({first_line(error)})") from error
    if not rows:
        raise UserError(f"{what}: holds no rows")
    return rows


def _from_file(path: Path) -> list[Row]:
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
        if any(None in row for row in rows):
            raise ValueError("a row has more cells than the header")
        return rows
    if path.suffix == ".parquet":
        from pyarrow import parquet  # type: ignore[import-untyped]

        table: list[Row] = parquet.read_table(path).to_pylist()
        return table
    if path.suffix not in KINDS:
        raise ValueError(f"its name must end in one of {', '.join(KINDS)}")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        rows = json.loads(text)
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = [_from_line(number, line) for number, line in lines if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its rows are not JSON objects")
    return rows


def _from_line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error


def _from_hub(what: str, name: str, looks_like_a_file: bool) -> list[Row]:
    if looks_like_a_file:
        raise UserError(f"{what}: is not an existing file of the kinds {', '.join(KINDS)}")
    from datasets import load_dataset

    try:
        return list(load_dataset(name, split="train"))
    except Exception as error:  # the Hub, its HTTP client and the network each raise their own
        raise UserError(
            f"{what}: is not a file, and the Hub has no such data set ({first_line(error)})"
        ) from error
