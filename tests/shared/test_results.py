"""Tables from result files."""

import json

import pytest

from shared.errors import UserError
from shared.results import markdown, with_tables, write_result

COLUMNS = (("name", "model", ""), ("value", "nats", ".2f"), ("share", "share", ".0%"))


def test_a_result_becomes_a_table(tmp_path):
    rows = [{"name": "a", "value": -1.005, "share": 0.5}, {"name": "b", "value": 2}]
    write_result(tmp_path / "r.json", COLUMNS, rows, environment={"cores": 2})
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["environment"] == {"cores": 2}
    assert markdown(result).splitlines() == [
        "| model | nats | share |", "|---|---|---|", "| a | -1.00 | 50% |", "| b | 2.00 |  |",
    ]  # fmt: skip


def test_only_what_is_between_the_marks_changes(tmp_path):
    write_result(tmp_path / "r.json", COLUMNS, [{"name": "a", "value": 1.0, "share": 1.0}])
    text = "before\n<!-- table r.json -->\nold\n<!-- /table -->\nafter\n"
    fresh = with_tables(text, tmp_path)
    assert fresh.startswith("before\n<!-- table r.json -->\n| model |")
    assert fresh.endswith("| a | 1.00 | 100% |\n<!-- /table -->\nafter\n")
    assert with_tables(fresh, tmp_path) == fresh


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(UserError, match=r"r\.json"):
        with_tables("<!-- table r.json -->\n<!-- /table -->", tmp_path)
