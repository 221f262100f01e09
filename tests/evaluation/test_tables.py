"""What every results file is written with."""

from timemoe_jax.evaluation.tables import error_pair, markdown_table, number


def test_a_table():
    rows = [["a", "1"], ["b", ""]]
    assert markdown_table(["name", "value"], rows) == (
        "| name | value |\n| --- | --- |\n| a | 1 |\n| b |  |\n"
    )


def test_numbers():
    assert (number(0.12345), number(None)) == ("0.1235", "")
    assert error_pair(0.5, 2) == "0.5000 / 2.0000"
    assert error_pair(None, 2) == error_pair(0.5, None) == ""
