"""What every results file is written with."""

import json

from timemoe_jax.evaluation.tables import error_pair, markdown_table, number, without_nan


def test_a_table():
    rows = [["a", "1"], ["b", ""]]
    assert markdown_table(["name", "value"], rows) == (
        "| name | value |\n| --- | --- |\n| a | 1 |\n| b |  |\n"
    )


def test_numbers():
    assert (number(0.12345), number(None)) == ("0.1235", "")
    assert error_pair(0.5, 2) == "0.5000 / 2.0000"
    assert error_pair(None, 2) == error_pair(0.5, None) == ""


def test_json_has_no_nan():
    nested = {96: [1.0, float("nan")], "inf": (float("-inf"), "text", None, 3)}
    cleaned = without_nan(nested)
    assert cleaned == {"96": [1.0, None], "inf": [None, "text", None, 3]}
    json.dumps(cleaned, allow_nan=False)
