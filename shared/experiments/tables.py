"""Tables in READMEs from committed result files: ``python -m shared.experiments.tables [--check]``.

A result file is JSON with ``columns`` (key, title, format of each) and ``rows`` (dicts). Between
``<!-- table FILE -->`` and ``<!-- /table -->`` a README holds its table and nothing else.

A text in ``rows`` may quote other result files: ``{FILE|task=Hopper-v5&n=3|environment/cores|d}``
is a value of the one row for which this holds, in this format.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import cli
from shared.errors import UserError
from shared.run.folder import write_json

_TABLE = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)
_QUOTE = re.compile(r"\{([^{}|]+)\|([^{}|]+)\|([^{}|]+)\|([^{}|]*)\}")


def write_result(
    path: Path,
    columns: Sequence[tuple[str, str, str]],
    rows: Sequence[dict[str, Any]],
    **about: Any,
) -> None:
    """Write a result file; ``columns`` are (key of a row, title, format specification).

    ``about`` is what holds for all rows, such as the environment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"columns": describe_columns(columns), "rows": list(rows)} | about)


def describe_columns(columns: Sequence[tuple[str, str, str]]) -> list[dict[str, str]]:
    """(key, title, format) as they stand in a result file."""
    return [dict(zip(("key", "title", "format"), column, strict=True)) for column in columns]


def markdown(result: dict[str, Any]) -> str:
    """A result as a Markdown table; a value that a row lacks is left empty."""
    columns = result["columns"]
    lines = [
        "| " + " | ".join(column["title"] for column in columns) + " |",
        "|" + "|".join("---" for _ in columns) + "|",
    ]
    for row in result["rows"]:
        values = (row.get(column["key"]) for column in columns)
        cells = [
            "" if value is None else format(value, column["format"])
            for value, column in zip(values, columns, strict=True)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_quotes(text: str, root: Path) -> str:
    """``text`` with the values that it quotes from result files below ``root``.

    Raises:
        ValueError: not one row is as the quotation says.
        KeyError: the row has no such value.
        OSError: no such file.
    """

    def value(match: re.Match[str]) -> str:
        file, selector, path, form = match.groups()
        conditions = [condition.partition("=") for condition in selector.split("&")]
        result = json.loads((root / file).read_text())
        rows = [r for r in result["rows"] if all(str(r.get(k)) == v for k, _, v in conditions)]
        if len(rows) != 1:
            raise ValueError(f"{file}: {len(rows)} rows with {selector}")
        value: Any = result | rows[0]
        for key in path.split("/"):
            value = value[key]
        return format(value, form)

    return _QUOTE.sub(value, text)


def with_tables(text: str, root: Path) -> str:
    """``text`` with every table written from its result file."""

    def table(match: re.Match[str]) -> str:
        path = root / match[2]
        try:
            filled = with_quotes(markdown(json.loads(path.read_text())), root)
            return match[1] + filled + match[4]
        except (OSError, ValueError, KeyError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}: no result file a table can be made of ({what})") from error

    return _TABLE.sub(table, text)


def main() -> None:
    root = Path()
    stale = []
    for readme in sorted(
        p for pattern in ("*.md", "*/README.md", "*/*/README.md") for p in root.glob(pattern)
    ):
        text = readme.read_text()
        fresh = with_tables(text, root)
        if fresh != text:
            stale.append(str(readme))
            if "--check" not in sys.argv:
                readme.write_text(fresh)
    if "--check" in sys.argv and stale:
        raise UserError(f"tables differ from their result files in {', '.join(stale)}: make tables")
    if stale:
        print(f"tables written in {', '.join(stale)}")


if __name__ == "__main__":
    cli.run(main, "shared.experiments.tables")
