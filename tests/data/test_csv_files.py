from pathlib import Path

import numpy as np
import pytest

from timemoe_jax.data.formats import csv_files as tables
from timemoe_jax.data.formats.csv_files import read_csv, read_csv_frame
from timemoe_jax.data.formats.frames import row_name
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.table_layout import ColumnNames
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


@pytest.mark.parametrize("cell", ["7", "-12", "007", "NA", "None", "null", "nan", "1e3", "true"])
def test_ids_are_text_as_the_file_has_them(tmp_path, cell):
    for header, names in (("id,y", None), ("shop,y", ColumnNames(id="shop"))):
        frame = read_csv_frame(write(tmp_path, f"{header}\n{cell},1\n,2\n"), names)
        assert frame.iloc[:, 0].tolist() == [cell, None]


HEADED = "date;value;other"
ROWS = ["2024-01-01;1,5;-0,25", "2024-01-02;;1e3", "2024-01-03;NA;1.#IND"]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("end", ["", ";"])
@pytest.mark.parametrize("before", ["", "\ufeff", "sep=;\n"])
@pytest.mark.parametrize("decimal", [",", "."])
def test_other_separators_are_found(tmp_path, separator, end, before, decimal):
    rows = [row.replace(",", decimal) for row in ROWS]
    text = before + "".join(f"{row}{end}\n" for row in (HEADED, *rows))
    table = read_csv(write(tmp_path, text.replace(";", separator)))
    assert (table.timestamp_name, table.columns) == ("date", ("value", "other"))
    np.testing.assert_array_equal(table.values, [[1.5, -0.25], [np.nan, 1000], [np.nan, np.nan]])


def test_separators_are_taken_as_given(tmp_path):
    path = write(tmp_path, "day x~y\n2024-01-01~1,234\n2024-01-02~2,5\n".replace("~", ":"))
    table = read_csv(path, separator=":", decimal=",")
    assert table.columns == ("y",)
    np.testing.assert_array_equal(table.values, [[1.234], [2.5]])
    table = read_csv(write(tmp_path, 'date,y\n2024-01-01,"1,234"\n'), decimal=",")
    np.testing.assert_array_equal(table.values, [[1.234]])
    table = read_csv(write(tmp_path, "v\n1,5\n2,25\n"), decimal=",")
    np.testing.assert_array_equal(table.values, [[1.5], [2.25]])
    # A bar in the name of the only column is no separator.
    assert read_csv(write(tmp_path, "a|b\n1\n2\n")).columns == ("a|b",)
    # The last cell of a line may be missing.
    for rows in ("1;\n3;4\n", ";2\n;\n"):
        assert read_csv(write(tmp_path, f"a;b\n{rows}")).columns == ("a", "b")
    # The header alone decides where the comma divides only some lines.
    table = read_csv(write(tmp_path, "date;price, EUR\n2024-01-01;1\n2024-01-02;2\n"))
    assert table.columns == ("price, EUR",)


def test_separators_at_the_end_of_lines(tmp_path):
    for text in ("date,a,\n2024-01-01,1,\n2024-01-02,2,\n", "date,a\n2024-01-01,1,\n"):
        assert read_csv(write(tmp_path, text)).columns == ("a",)
    with pytest.raises(DataError, match="line 2 has 3 cells, but the header has 2"):
        read_csv(write(tmp_path, "date,a,\n2024-01-01,1,5\n"))


def test_row_counters_are_no_series(tmp_path):
    """Those of pandas, of R and of spreadsheets; in any place, and among dates with rows absent."""
    for name in ("", "Unnamed: 0", "Unnamed: 0.1", "index", "level_0", "rownames", "row_id", "#"):
        for first in (0, 1):
            rows = "".join(f"{i + first},2024-01-{i + 1:02},{i % 7}\n" for i in range(9))
            source = open_source(str(write(tmp_path, f"{name},date,v\n{rows}")))
            assert [source.label(i) for i in range(len(source))] == ["v"]
            assert (source.ignored_columns, source.frequency) == ((name,), "D")
        rows = "".join(f"{i},{i % 7}\n" for i in range(9))
        assert read_csv(write(tmp_path, f"{name},v\n{rows}")).columns == ("v",)
    shuffled = read_csv(write(tmp_path, ",date,v\n5,2024-01-01,1\n2,2024-01-02,2\n"))
    assert shuffled.columns == ("v",)
    # The index of a stock exchange does not count rows.
    assert read_csv(write(tmp_path, "date,index\n2024-01-01,7\n2024-01-02,5\n")).columns == (
        "index",
    )


@pytest.mark.parametrize("name", ["year", "Year", "date", "time", "month", "week", "day", "t", ""])
def test_rising_numbers_under_the_name_of_a_time(tmp_path, name):
    years = [1960 + i for i in range(9)]
    table = read_csv(write(tmp_path, f"{name},v\n" + "".join(f"{y},{y % 7}\n" for y in years)))
    assert (table.timestamp_name, table.columns) == (name, ("v",))
    assert (table.timestamps.dtype, table.timestamps.tolist()) == (np.int64, years)
    falling = "".join(f"{y % 7},{y}\n" for y in years[::-1])
    table = read_csv(write(tmp_path, f"v,{name or 'year'}\n{falling}"))
    assert (table.columns, table.values[:, 0].tolist()) == (("v",), [y % 7 for y in years])


@pytest.mark.parametrize("cells", [[1, 2, 3, 1, 2, 3], [1949.0, 1949.083, 1949.167], [1, "", 3]])
def test_numbers_under_the_name_of_a_time_that_are_none(tmp_path, cells):
    path = write(tmp_path, "month,v\n" + "".join(f"{cell},5\n" for cell in cells))
    with pytest.raises(DataError, match=r"column 'month' seems to be the time .* name the target"):
        read_csv(path)
    source = open_source(str(path), ColumnNames(targets=("v",)))
    assert [source.label(i) for i in range(len(source))] == ["v"]


def test_parts_of_the_time_are_no_series(tmp_path):
    days = np.arange("2023-12-25", "2024-01-20", dtype="M8[D]")
    dow = (days.view(np.int64) + 3) % 7
    rows = "".join(
        f"{day},{str(day)[:4]},{int(str(day)[8:])},{int(n) + 1},{k % 5}\n"
        for k, (day, n) in enumerate(zip(days, dow, strict=True))
    )
    source = open_source(str(write(tmp_path, f"date,Year,day,weekday,v\n{rows}")))
    assert [source.label(i) for i in range(len(source))] == ["v"]
    assert source.ignored_columns == ("Year", "day", "weekday")
    # The load by day and by night is none, nor is what the caller names.
    assert read_csv(write(tmp_path, f"date,a,night,day,v\n{rows}")).columns == (
        *("a", "night", "day", "v"),
    )
    path = write(tmp_path, f"date,Year,day,weekday,v\n{rows}")
    assert open_source(str(path), ColumnNames(targets=("Year",))).label(0) == "Year"


def test_dates_need_not_be_first(tmp_path):
    for dates in (
        ["2024-01-01", "2024-01-02", "2024-01-03"],
        ["1 Jan 2024", "2 Jan 2024", "3 Jan 2024"],
        ["Jan 01, 2024", "Jan 02, 2024", "Jan 03, 2024"],
    ):
        rows = "".join(f'{i},"{date}"\n' for i, date in enumerate(dates))
        table = read_csv(write(tmp_path, f"v,when\n{rows}"))
        assert (table.timestamp_name, table.columns) == ("when", ("v",))
        assert table.timestamps.astype("M8[D]").astype(str).tolist()[::2] == [
            *("2024-01-01", "2024-01-03")
        ]


def test_rows_are_sorted_by_their_dates(tmp_path):
    text = "date,a\n2024-01-03,3\n2024-01-01,1\n2024-01-03,4\n2024-01-02,2\n"
    with pytest.warns(UserWarning, match="1 row has the same time in 'date' as the row before"):
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
        ("a,2024-01-01,5\na,2024-01-02,6\n", "has no header: its first line is 'a,2024-01-01,5'"),
        ("2024-01-01,\n2024-01-02,6\n", "has no header"),
        ("Jan 2024,5\nFeb 2024,6\n", "has no header: its first line is 'Jan 2024,5'"),
        ("1,,3\n4,5,6\n", "has no header"),
        ("2024-01-01;1,5\n2024-01-02;2,5\n", "has no header: its first line is '2024-01-01;1,5'"),
        ("a;b\n1;2,500\n3;4,125\n", r"holds '2,500', whose comma may .* give --decimal ','"),
        ("a;b;c\n1;2,5;1.5\n", r"holds '2,5', whose comma may"),
        ("a;b,c\nx;2,y\n", r"as separated by ',' or by ';'; say which: give --separator"),
        ("day v\n2024-01-01 1\n2024-01-02 2\n", "looks separated by ' ': give --separator ' '"),
        ("a;b;c\n1;2\n", "looks separated by ';': give --separator ';'"),
        ("date;a\n2024-01-01;1,5\n2024-01-02;1.234,5\n", r"line 3 holds '1.234,5'"),
        ('date,a\n2024-01-01,"1,5"\n', "line 2 holds '1,5'; give --decimal ',' if"),
        ("store,date,sales\nA,2024-01-01,1\n", "'store' .* name it as the id column"),
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
