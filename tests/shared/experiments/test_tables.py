"""Tables from result files."""

import json

import pytest

from shared.errors import UserError
from shared.experiments.tables import markdown, with_quotes, with_tables, write_result

COLUMNS = (("name", "model", ""), ("value", "nats", ".2f"), ("share", "share", ".0%"))


def test_a_result_becomes_a_table(tmp_path):
    rows = [{"name": "a", "value": -1.005, "share": 0.5}, {"name": "b", "value": 2}]
    write_result(tmp_path / "r.json", COLUMNS, rows, environment={"cores": 2})
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["environment"] == {"cores": 2}
    assert markdown(result).splitlines() == [
        "| model | nats | share |",
        "|---|---|---|",
        "| a | -1.00 | 50% |",
        "| b | 2.00 |  |",
    ]


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


def quoting(tmp_path, quotation):
    rows = [{"name": "a", "value": 1.25, "n": 3, "on": {"cores": 2}}, {"name": "b", "value": 2.0}]
    write_result(tmp_path / "r.json", COLUMNS, rows, system="Linux")
    return with_quotes(f"at {quotation}.", tmp_path)


def test_a_value_is_quoted_from_another_file(tmp_path):
    assert quoting(tmp_path, "{r.json|name=a&n=3|value|.1f}") == "at 1.2."
    assert quoting(tmp_path, "{r.json|name=a|on/cores|d} {r.json|name=b|value|.0%}") == "at 2 200%."
    assert quoting(tmp_path, "{r.json|name=b|system|}") == "at Linux."  # of all rows


@pytest.mark.parametrize(
    ("quotation", "words"),
    [
        ("{r.json|name=c|value|}", "0 rows with name=c"),
        ("{r.json|nothing=None|value|}", "2 rows with nothing=None"),
        ("{r.json|name=a|mean|}", "mean"),
        ("{s.json|name=a|value|}", "s.json"),
    ],
)
def test_a_quotation_that_is_not_there(tmp_path, quotation, words):
    rows = [{"name": quotation, "value": 1.0, "share": 1.0}]
    quoting(tmp_path, "")
    write_result(tmp_path / "q.json", COLUMNS, rows)
    with pytest.raises(UserError, match=words):
        with_tables("<!-- table q.json -->\n<!-- /table -->", tmp_path)
