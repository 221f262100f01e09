from pathlib import Path

import numpy as np
import pytest

from timemoe_jax.data.formats import csv_files as tables
from timemoe_jax.data.formats.csv_files import read_csv, read_csv_frame
from timemoe_jax.data.formats.frames import row_name
from timemoe_jax.errors import DataError


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_dates_columns_and_values(tmp_path):
    path = write(tmp_path, "date,a,b\n2024-01-01,1,-2.5e3\n2024-01-02, 0.1 ,4\n")
    table = read_csv(path)
    assert table.path == path
    assert table.timestamp_name == "date"
    assert table.columns == ("a", "b")
    assert table.timestamps is not None
    np.testing.assert_array_equal(
        table.timestamps, np.array(["2024-01-01", "2024-01-02"], "datetime64[D]")
    )
    assert table.timestamps.dtype.kind == "M"
    assert table.values.dtype == np.float64
    np.testing.assert_array_equal(table.values, [[1, -2500], [0.1, 4]])


def test_without_dates_the_first_column_is_a_series(tmp_path):
    table = read_csv(write(tmp_path, "a,b\n1,2\n,4\n5,6\n"))
    assert table.timestamps is None
    assert table.timestamp_name is None
    assert table.columns == ("a", "b")
    np.testing.assert_array_equal(table.values, [[1, 2], [np.nan, 4], [5, 6]])


def test_missing_cells_are_nan(tmp_path):
    names = ["", " ", "NA", "N/A", "#N/A", "nan", "NaN", "null", "NULL", "None", "<NA>"]
    rows = "".join(f"2024-01-{i:02},{cell}\n" for i, cell in enumerate(names, 1))
    values = read_csv(write(tmp_path, f"date,a\n{rows}2024-02-01,7\n")).values[:, 0]
    assert np.isnan(values[:-1]).all()
    assert values[-1] == 7


def test_infinities_are_kept(tmp_path):
    values = read_csv(write(tmp_path, "a\ninf\n-inf\n1\n")).values[:, 0]
    np.testing.assert_array_equal(values, [np.inf, -np.inf, 1])


def test_numbers_are_read_exactly(tmp_path):
    numbers = np.random.default_rng(0).standard_normal(200) * 10.0 ** np.arange(-100, 100)
    table = read_csv(write(tmp_path, "a\n" + "\n".join(map(repr, numbers.tolist()))))
    np.testing.assert_array_equal(table.values[:, 0], numbers)


def test_rows_beyond_a_chunk_are_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 4)
    text = "d,a,b\n" + "".join(f"2000-01-{i + 1:02},{i},{-i}\n" for i in range(10))
    table = read_csv(write(tmp_path, text))
    np.testing.assert_array_equal(table.values[:, 0], np.arange(10))
    np.testing.assert_array_equal(table.values[:, 1], -np.arange(10))
    with pytest.raises(DataError, match=r"column 'b' .* line 8 holds 'x'"):
        read_csv(write(tmp_path, text.replace("6,-6", "6,x")))
    with pytest.raises(DataError, match=r"column 'd' .* line 8 holds 'x'"):
        read_csv(write(tmp_path, text.replace("2000-01-07", "x")))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["2024-01-31 13:00:00", "2024-01-31 14:00:00"], ["2024-01-31T13", "2024-01-31T14"]),
        (["01/31/2024", "02/01/2024"], ["2024-01-31", "2024-02-01"]),
        (["2024/01/31", "2024/02/01"], ["2024-01-31", "2024-02-01"]),
        (["2024-01", "2024-02"], ["2024-01-01", "2024-02-01"]),
        (["2024-01-31T00:00:00Z", "2024-01-31T01:00:00Z"], ["2024-01-31T00", "2024-01-31T01"]),
        # Summer time ends between the two: an hour apart in UTC.
        (
            ["2024-10-27T02:30:00+02:00", "2024-10-27T02:30:00+01:00"],
            ["2024-10-27T00:30", "2024-10-27T01:30"],
        ),
        (["2024-01-31", "2024-01-31 12:00"], ["2024-01-31T00", "2024-01-31T12"]),
    ],
)
def test_layouts_of_dates(tmp_path, cells, expected):
    table = read_csv(write(tmp_path, f"when,a\n{cells[0]},1\n{cells[1]},2\n"))
    assert table.timestamp_name == "when"
    np.testing.assert_array_equal(table.timestamps, np.array(expected, "datetime64[m]"))


def test_quotes_blank_lines_windows_line_ends_and_byte_order_mark(tmp_path):
    table = read_csv(write(tmp_path, b'\xef\xbb\xbfdate,"a, b"\r\n\r\n"2024-01-01",1\r\n\r\n'))
    assert table.timestamp_name == "date"
    assert table.columns == ("a, b",)
    np.testing.assert_array_equal(table.values, [[1]])


def test_a_blank_line_in_a_single_column_is_a_missing_value(tmp_path):
    values = read_csv(write(tmp_path, "a\n1\n\n3\n\n")).values[:, 0]
    np.testing.assert_array_equal(values, [1, np.nan, 3])


def test_the_index_that_data_frames_write(tmp_path):
    table = read_csv(write(tmp_path, ",0,1\n2024-01-01,1,2\n"))
    assert table.columns == ("0", "1")
    np.testing.assert_array_equal(table.values, [[1, 2]])


def test_columns_of_a_frame(tmp_path, monkeypatch):
    """Text keeps every digit, also where it only shows to be text after many numbers."""
    monkeypatch.setattr(tables, "CHUNK", 2)
    text = (
        "id,ds,when,flag,late,y\n"
        "01,0,2024-01-01,true,01,1\n"
        "2,1,2024-01-02,False,2.50,\n"
        "\n"
        '"a\nb",2,2024-01-03,TRUE, x ,3\n'
        "4,3,,true,NA,inf\n"
    )
    frame = read_csv_frame(write(tmp_path, text))
    assert frame["id"].tolist() == ["01", "2", "a\nb", "4"]
    assert (frame["ds"].dtype, frame["ds"].tolist()) == (np.int64, [0, 1, 2, 3])
    assert frame["when"].tolist() == ["2024-01-01", "2024-01-02", "2024-01-03", None]
    assert (frame["flag"].dtype, frame["flag"].tolist()) == (bool, [True, False, True, True])
    assert frame["late"].tolist() == ["01", "2.50", "x", None]
    np.testing.assert_array_equal(frame["y"], [1, np.nan, 3, np.inf])
    assert [row_name(frame, row) for row in range(4)] == ["line 2", "line 3", "line 6", "line 7"]
    whole = read_csv_frame(write(tmp_path, "id,y\n7,1\n-12,2\n"))
    assert (whole["id"].dtype, whole["id"].tolist()) == (np.int64, [7, -12])


def test_rows_are_sorted_by_their_dates(tmp_path):
    text = "date,a\n2024-01-03,3\n2024-01-01,1\n2024-01-03,4\n2024-01-02,2\n"
    table = read_csv(write(tmp_path, text))
    assert table.values[:, 0].tolist() == [1, 2, 3, 4]
    assert table.timestamps.astype("M8[D]").astype(str).tolist() == [
        *("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-03")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,ds,y\n1,2024-01-01,2\n", "is a long table, with ids in 'id'"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("date,a\n", "has a header line but no rows"),
        ("date\n2024-01-01\n", "has no numeric column, only 'date'"),
        ("date,a\n2024-01-01,1\n2024-01-02,two\n", r"column 'a' .* line 3 holds 'two'"),
        ("date,a\n2024-01-01,1_000\n", r"column 'a' .* line 2 holds '1_000'"),
        ("a,b\n1,2\n1,\n\n1,2024-01-01\n", r"column 'b' .* line 5 holds '2024-01-01'"),
        ("name,a\nred,1\nblue,2\n", r"column 'name' is first .* dates .* line 2 holds 'red'"),
        ("date,a\n2024-01-01,1\n2024-13-01,1\n", r"column 'date' .* line 3 holds '2024-13-01'"),
        ("date,a\n01/13/2024,1\n13/02/2024,1\n", r"column 'date' .* line 3 holds '13/02/2024'"),
        ("date,a\n2024-01-01,1\n,1\n", r"column 'date' .* line 3 holds ''"),
        # A time of day would become one of today.
        ("time,a\n20:00,1\n21:00,1\n", r"column 'time' .* line 2 holds '20:00'"),
        ("date,a\n2024-01-01,1,2\n", "line 2 has 3 cells, but the header has 2"),
        ("date,a\n2024-01-01,1\n2024-01-02\n", "line 3 has 1 cells, but the header has 2"),
        ("date,a,a\n2024-01-01,1,2\n", "more than one column 'a'"),
        ("2024-01-01,1.5\n2024-01-02,1.5\n", "has no header: its first line is '2024-01-01,1.5'"),
        ("1.5,2.5\n1,2\n", "has no header"),
        ("date,a\n2024-01-01,\xe9".encode("latin-1"), "is not UTF-8 text"),
        (b"date,a\n2024-01-01,1\x00", "t.csv"),
        ('date,a\n2024-01-01,"1', "cannot be read as CSV"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_csv(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_opened(tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(DataError, match="cannot be read: ") as caught:
            read_csv(path)
        assert str(path) in str(caught.value)
