"""Parquet, Arrow, Hugging Face folders, data frames: each layout read back, each damage named."""

import copy
import datetime
import decimal
import json
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from timemoe_jax.data.formats import columnar, columnar_files
from timemoe_jax.data.formats.columnar import open_columnar
from timemoe_jax.data.formats.frames import frame_source
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.data.series_source import ConcatSource
from timemoe_jax.errors import DataError

HOURS = pd.date_range("2024-01-01", periods=4, freq="h")


def write_stream(path, table, rows=2):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=rows):
            writer.write_batch(batch)


def write(path, table, rows=2):
    """Writes a table in parts of a few rows, in the format that the ending says."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, chunksize=rows)
    else:
        write_stream(path, table, rows)


@pytest.fixture(params=["a.parquet", "a.feather", "a.arrow"])
def path(request, tmp_path):
    return tmp_path / request.param


def check(source, expected, dtypes=None):
    """Holds a source to series: one at a time, in parts, and all in turn."""
    assert source.lengths.tolist() == [len(series) for series in expected]
    for i, (values, wanted) in enumerate(zip(source, expected, strict=True)):
        np.testing.assert_array_equal(values, wanted)
        np.testing.assert_array_equal(source[i], wanted)
        assert values.dtype == source[i].dtype
        for start in range(len(wanted) + 1):
            for stop in range(start, len(wanted) + 1):
                np.testing.assert_array_equal(source.read(i, start, stop), wanted[start:stop])
    if dtypes:
        assert [values.dtype for values in source] == dtypes


def labels(source):
    return [source.label(i) for i in range(len(source))]


def test_wide(path):
    table = pa.table(
        {
            "date": pa.array(HOURS),
            "load": pa.array([1.5, None, 3.0, float("inf")], pa.float32()),
            "count": pa.array([2**31, 7, None, -1], pa.int64()),
            "half": pa.array(np.array([1, 2, 3, 4], np.float16)),
            "price": pa.array([decimal.Decimal("1.25"), None, None, decimal.Decimal("-2")]),
            "nothing": pa.nulls(4),
        }
    )
    write(path, table.drop_columns("half") if path.suffix == ".feather" else table)
    source = open_source(str(path))
    expected = {
        "load": [1.5, np.nan, 3, np.inf],
        "count": [2.0**31, 7, np.nan, -1],
        "half": [1, 2, 3, 4],
        "price": [1.25, np.nan, np.nan, -2],
        "nothing": [np.nan] * 4,
    }
    if path.suffix == ".feather":
        del expected["half"]
    check(source, list(expected.values()))
    assert labels(source) == list(expected)
    kinds = {name: source[i].dtype for i, name in enumerate(expected)}
    assert kinds["load"] == np.float32
    assert {kinds["count"], kinds["price"], kinds["nothing"]} == {np.dtype(np.float64)}
    assert source.name(0) == f"{path} column load"
    assert source.ignored_columns == ()
    chosen = open_source(str(path), ColumnNames(targets=("count", "load")))
    assert labels(chosen) == ["count", "load"]
    assert "price" in chosen.ignored_columns


def test_wide_with_text_dates_and_an_index(path):
    table = pa.table(
        {
            "when": ["2024-01-01", "2024-01-02", "2024-01-03"],
            "a": [1, 2, 3],
            "__index_level_0__": [7, 8, 9],
        }
    )
    write(path, table)
    source = open_source(str(path))
    check(source, [[1, 2, 3]])
    assert source.ignored_columns == ("__index_level_0__",)


def test_wide_rows_out_of_order_are_sorted(path):
    """As those of a CSV are; whatever is read, and however the parts lie."""
    order = [3, 0, 2, 1, 4]
    days = pd.date_range("2024-01-01", periods=5)[order]
    table = {"ds": pa.array(days), "a": pa.array(order, pa.int64()), "b": -np.array(order, "f4")}
    write(path, pa.table(table))
    source = open_source(str(path))
    check(source, [[0, 1, 2, 3, 4], [0, -1, -2, -3, -4]], [np.float64, np.float32])
    np.testing.assert_array_equal(source.times(1), days.sort_values())
    assert source.frequency == "D"


@pytest.mark.parametrize("days", [["2024-01-01", None], ["2024-01-01", "soon"]])
def test_wide_rows_without_a_time(tmp_path, days):
    path = tmp_path / "a.parquet"
    for cells in ([*days, "2024-01-05"], ["2023-01-01", "2023-01-01", *days]):
        write(path, pa.table({"ds": pa.array(cells, pa.string()), "a": range(len(cells))}))
        with pytest.raises(DataError, match=r"a\.parquet.*row [123]"):
            open_source(str(path))
    if "soon" not in days:
        times = pa.array([day and datetime.date.fromisoformat(day) for day in days])
        write(path, pa.table({"ds": times, "a": [1, 2]}))
        with pytest.raises(DataError, match="no time in row 1"):
            open_source(str(path))


# unique_id b: 1 2 3, a: 4 5, ccc: 6
ROWS = [("b", 0, 1.0), ("b", 1, 2.0), ("b", 2, 3.0), ("a", 0, 4.0), ("a", 1, 5.0), ("ccc", 5, 6.0)]
EXPECTED = [[1.0, 2.0, 3.0], [4.0, 5.0], [6.0]]


def long_table(rows, names=("unique_id", "ds", "y")):
    ids, steps, values = zip(*rows, strict=True)
    times = pa.array([pd.Timestamp("2024-01-01") + pd.Timedelta(hours=step) for step in steps])
    return pa.table(
        dict(zip(names, [pa.array(ids), times, pa.array(values, pa.float32())], strict=True))
    )


CONVENTIONS = [
    ("unique_id", "ds", "y"),
    ("item_id", "timestamp", "target"),
    ("id", "timestamp", "target"),
]


@pytest.mark.parametrize("names", CONVENTIONS)
def test_long_by_convention(path, names):
    write(path, long_table(ROWS, names))
    source = open_source(str(path))
    check(source, EXPECTED, [np.float32] * 3)
    assert labels(source) == ["b", "a", "ccc"]
    assert source.name(1) == f"{path} series a"


@pytest.mark.parametrize("order", [[0, 3, 5, 1, 4, 2], [2, 1, 0, 4, 3, 5], [5, 4, 3, 2, 1, 0]])
def test_long_rows_in_any_order(path, order):
    """Sorted by time, or not sorted at all: the series are those of the sorted table."""
    write(path, long_table([ROWS[k] for k in order]))
    source = open_source(str(path))
    first = dict.fromkeys(ROWS[k][0] for k in order)
    assert labels(source) == list(first)
    check(source, [dict(zip("bac", EXPECTED, strict=True))[label[0]] for label in first])


def test_long_without_times_keeps_the_order_of_the_rows(path):
    table = long_table([ROWS[k] for k in [2, 3, 0, 1]]).drop_columns("ds")
    write(path, table)
    check(open_source(str(path)), [[3, 1, 2], [4]])


def test_long_in_blocks(tmp_path, monkeypatch):
    """However many series are read at a time, they are the same."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 40, 500)
    frame = pd.DataFrame({"id": ids, "timestamp": np.arange(500), "target": rng.random(500)})
    path = tmp_path / "a.parquet"
    write(path, pa.table(frame), rows=37)
    expected = [group["target"].to_numpy() for _, group in frame.groupby("id", sort=False)]
    for points in (1, 20, 10**6):
        monkeypatch.setattr(columnar, "POINTS_AT_A_TIME", points)
        for values, wanted in zip(open_source(str(path)), expected, strict=True):
            np.testing.assert_array_equal(values, wanted)


def test_a_read_takes_only_the_parts_it_needs(tmp_path, monkeypatch):
    ids = np.repeat(np.arange(100), 10)
    table = pa.table({"id": ids, "target": np.arange(1000.0)})
    path = tmp_path / "a.parquet"
    write(path, table, rows=100)
    source = open_source(str(path))
    taken = []
    read = columnar_files.ColumnarFile.read

    def counted(self, part, columns):
        taken.append((part, list(columns)))
        return read(self, part, columns)

    monkeypatch.setattr(columnar_files.ColumnarFile, "read", counted)
    np.testing.assert_array_equal(source[35], np.arange(350.0, 360.0))
    assert taken == [(3, ["target"])]
    taken.clear()
    assert len(list(source)) == 100
    assert len(taken) == 10, "on the way through all, each part is read once"


def test_long_with_several_targets_categories_and_ignored_columns(path):
    table = pa.table(
        {
            "sensor": pa.array(["x", "x", "y"]).dictionary_encode(),
            "low": [1.0, 2.0, 3.0],
            "high": pa.array([4, None, 6]),
            "note": ["a", "b", "c"],
        }
    )
    write(path, table)
    source = open_source(str(path), ColumnNames(id="sensor", targets=("low", "high")))
    check(source, [[1, 2], [3], [4, np.nan], [6]])
    assert labels(source) == ["x low", "y low", "x high", "y high"]
    assert source.ignored_columns == ("note",)


def test_lists(path):
    lists = pa.array([[1.0, None], [], None, [3.0, 4.0, 5.0]], pa.list_(pa.float32()))
    table = pa.table({"item_id": ["a", "b", "c", "d"], "start": HOURS, "target": lists})
    write(path, table)
    source = open_source(str(path))
    check(source, [[1, np.nan], [], [], [3, 4, 5]], [np.float32] * 4)
    assert labels(source) == ["a", "b", "c", "d"]
    assert source.ignored_columns == ("start",)
    write(path, pa.table({"sequence": pa.array([[1, 2], [3]], pa.large_list(pa.int32()))}))
    source = open_source(str(path))
    check(source, [[1, 2], [3]], [np.float64] * 2)
    assert labels(source) == ["0", "1"]


def test_a_row_group_of_lists_is_taken_some_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar_files, "ROWS_AT_A_TIME", 3)
    path = tmp_path / "a.parquet"
    expected = [[float(row)] * row for row in range(10)]
    write(path, pa.table({"id": range(10), "target": expected}), rows=8)
    source = open_source(str(path))
    check(source, expected)
    assert labels(source) == [str(row) for row in range(10)]
    write(path, pa.table({"target": [[each, each] for each in expected]}), rows=8)
    source = open_source(str(path))
    check(source, [each for each in expected for _ in range(2)])
    assert labels(source)[-3:] == ["8 channel 1", "9 channel 0", "9 channel 1"]


def test_lists_of_lists_are_series_of_their_own(path):
    lists = [[[1.0, 2.0], [3.0]], None, [[]], [[4.0], None, [5.0, 6.0]]]
    table = pa.table({"id": [7, 8, 9, 10], "target": pa.array(lists)})
    write(path, table)
    source = open_source(str(path))
    check(source, [[1, 2], [3], [], [4], [], [5, 6]])
    assert labels(source) == [
        f"{i} channel {c}" for i, c in [(7, 0), (7, 1), (9, 0), (10, 0), (10, 1), (10, 2)]
    ]


def test_lists_of_a_fixed_size(tmp_path):
    lists = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float64(), 2))
    path = tmp_path / "a.arrow"
    write(path, pa.table({"target": lists}), rows=3)
    check(open_source(str(path)), [[1, 2], [], [3, 4]])


@pytest.mark.parametrize(
    ("columns", "names", "says"),
    [
        ({"id": [1], "item_id": [1], "target": [1.0]}, {}, r"'item_id', 'id'.*id column"),
        ({"id": [1], "y": [1.0], "target": [1.0]}, {}, r"'y', 'target'.*target column"),
        ({"id": [1], "ds": [1], "timestamp": [1], "y": [1.0]}, {}, r"'ds', 'timestamp'"),
        ({"id": [1], "a": [1.0]}, {}, "called y or target"),
        ({"id": [1], "y": ["x"]}, {}, "'y' must hold numbers"),
        ({"target": [[1.0]], "sequence": [[1.0]]}, {}, "'target', 'sequence'"),
        ({"a": [[1.0]]}, {}, "lists in 'a'"),
        (
            {"a": [1.0], "b": ["x"]},
            {},
            ("'b' must hold numbers, but holds text", "'b' must hold numbers, but row 0 holds 'x'"),
        ),
        ({"a": [True]}, {}, "'a' must hold numbers"),
        ({"a": [{"x": 1}]}, {}, "'a' must hold numbers"),
        ({"a": HOURS[:1], "b": HOURS[:1], "c": [1.0]}, {}, "times in 'a', 'b'"),
        ({"a": HOURS[:1]}, {}, "no numeric column"),
        ({"a": [1.0]}, {"targets": ("b",)}, "no column 'b'; it has 'a'"),
        ({"a": [1.0]}, {"id": "a", "targets": ("a",)}, "must differ"),
        ({"a": [[1.0]], "b": [1.0]}, {"targets": ("a", "b")}, "all hold lists"),
        ({"a": [[1.0]], "y": [1.0]}, {"id": "a"}, "id column 'a'"),
        ({"t": [[1.0]], "y": [1.0]}, {"timestamp": "t"}, "timestamp column 't'"),
        ({"id": [1, None], "y": [1.0, 2.0]}, {}, "has no id in row 1"),
        ({"id": [1, 1], "ds": [5, 5], "y": [1.0, 2.0]}, {}, "rows 0 and 1 .*'1' .*same time"),
        ({"id": [1, 1], "ds": [5, None], "y": [1.0, 2.0]}, {}, "has no time in row 1"),
        ({"id": [1, 1], "ds": ["2024-01-01", "x"], "y": [1.0, 2.0]}, {}, "'ds': row 1 holds 'x'"),
        ({"y": []}, {}, "no rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood(tmp_path, columns, names, says):
    path = tmp_path / "a.parquet"
    write(path, pa.table(columns))
    frame = pd.DataFrame(columns)
    of_file, of_frame = says if isinstance(says, tuple) else (says, says)
    for opened, text in (
        (lambda: open_source(str(path), ColumnNames(**names)), of_file),
        (lambda: frame_source(frame, ColumnNames(**names), str(path)), of_frame),
    ):
        with pytest.raises(DataError, match=text) as error:
            opened()
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_explicit_names_win(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"id": [1, 1, 2], "item_id": [1, 2, 2], "y": [1.0, 2.0, 3.0], "target": [4.0, 5, 6]}
    write(path, pa.table(columns))
    check(open_source(str(path), ColumnNames(id="item_id", targets=("y",))), [[1], [2, 3]])
    check(open_source(str(path), ColumnNames(id="id", targets=("target",))), [[4, 5], [6]])


def test_whole_times_beyond_floats_stay_apart(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, pa.table({"id": [1, 1], "ds": [2**53 + 1, 2**53], "y": [2.0, 1.0]}))
    check(open_source(str(path)), [[1, 2]])


def test_damage(path):
    write(path, long_table(ROWS))
    whole = path.read_bytes()
    for size in (0, 5, 40, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=str(path)):
            open_source(str(path))
    path.write_bytes(b"text" * 100)
    with pytest.raises(DataError, match=str(path)):
        open_source(str(path))


def test_a_stream_cut_between_batches_is_not_taken_for_whole(tmp_path):
    path = tmp_path / "a.arrow"
    write_stream(path, pa.table({"a": [1.0, 2.0]}))
    stream = path.read_bytes()
    path.write_bytes(stream.removesuffix(b"\xff\xff\xff\xff\x00\x00\x00\x00"))
    with pytest.raises(DataError, match="cut short"):
        open_source(str(path))


def test_a_file_that_changes_after_opening(path):
    write(path, long_table(ROWS))
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="changed"):
        source[0]
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        source[0]


def test_columns_of_one_name_and_old_feather(tmp_path):
    path = tmp_path / "a.arrow"
    write(path, pa.Table.from_arrays([pa.array([1.0])] * 2, ["a", "a"]))
    with pytest.raises(DataError, match="more than one column 'a'"):
        open_source(str(path))
    write(path, pa.table({"abcdefgh": [1.0]}))
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"\x80bcdefgh"))
    with pytest.raises(DataError, match=r"a\.arrow cannot be read as a table: .*utf-8"):
        open_source(str(path))
    (tmp_path / "b.feather").write_bytes(b"FEA1" + bytes(30) + b"FEA1")
    with pytest.raises(DataError, match="version 1"):
        open_source(str(tmp_path / "b.feather"))


def test_a_source_can_be_sent_to_another_process(path):
    write(path, long_table(ROWS))
    source = copy.deepcopy(open_source(str(path)))
    check(source, EXPECTED)


def test_without_pyarrow(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write(path, pa.table({"a": [1.0]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'pyarrow>=18'"):
        open_source(str(path))


def save_to_disk(folder, tables, **state):
    """The files that `Dataset.save_to_disk` of Hugging Face datasets writes."""
    folder.mkdir(parents=True)
    names = [f"data-{k:05}-of-{len(tables):05}.arrow" for k in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_stream(folder / name, table)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None, **state}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_hugging_face_folder(tmp_path):
    lists = [[[1.0, 2.0], [3.0]], [[4.0, 5.0, 6.0]]]
    tables = [pa.table({"target": pa.array(each, pa.list_(pa.float32()))}) for each in lists]
    save_to_disk(tmp_path / "data" / "m4", tables)
    source = open_source(str(tmp_path / "data"))
    check(source, [[1, 2], [3], [4, 5, 6]], [np.float32] * 3)
    assert source.skipped_files == ()
    assert str(tmp_path / "data" / "m4") in source.name(2)
    # The rows of a series may go on in the next file.
    write_stream(tmp_path / "data" / "m4" / "cache-1.arrow", tables[0])
    assert len(open_source(str(tmp_path / "data"))) == 3, "only what state.json names"
    (tmp_path / "data" / "m4" / "state.json").unlink()
    cached = open_source(str(tmp_path / "data"))
    assert len(cached) == 3
    assert str(tmp_path / "data" / "m4" / "cache-1.arrow") in cached.skipped_files
    save_to_disk(tmp_path / "long", [long_table(ROWS[:2]), long_table(ROWS[2:])])
    check(open_source(str(tmp_path / "long")), EXPECTED)


def test_a_hugging_face_folder_that_is_damaged(tmp_path):
    table = pa.table({"target": [[1.0]]})
    save_to_disk(tmp_path / "a", [table], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="flatten_indices"):
        open_source(str(tmp_path / "a"))
    state = tmp_path / "a" / "state.json"
    for text in ("{", "[]", "{}", '{"_data_files": [1]}', '{"_data_files": []}', "\x00"):
        state.write_text(text)
        with pytest.raises(DataError, match=r"state\.json"):
            open_source(str(tmp_path / "a"))
    state.write_text('{"_data_files": [{"filename": "../a.arrow"}]}')
    with pytest.raises(DataError, match="name files"):
        open_source(str(tmp_path / "a"))
    save_to_disk(tmp_path / "b", [table, table])
    next((tmp_path / "b").glob("*1-of*.arrow")).unlink()
    with pytest.raises(DataError, match="00001-of-00002"):
        open_source(str(tmp_path / "b"))
    save_to_disk(tmp_path / "c", [table, pa.table({"target": [[1]]})])
    with pytest.raises(DataError, match="other columns"):
        open_source(str(tmp_path / "c"))


def test_files_that_continue_each_other(tmp_path):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    write(paths[0], long_table(ROWS[:2]))
    write(paths[1], long_table(ROWS[2:]))
    check(open_columnar(paths), EXPECTED)
    joined = open_source(f"{paths[0]},{paths[1]}")
    assert isinstance(joined, ConcatSource)
    check(joined, [[1, 2], [3], [4, 5], [6]])


def test_wide_tables_are_read_as_a_csv_of_them_is(tmp_path):
    """Row counters are left out, dates of text need not be first, and years are the time."""
    path = tmp_path / "a.parquet"
    days = [f"2024-01-{day:02}" for day in range(1, 8)]
    write(path, pa.table({"index": range(7), "v": [1.0] * 7, "day": days}))
    source = open_source(str(path))
    assert [source.label(i) for i in range(len(source))] == ["v"]
    assert source.ignored_columns == ("index",)
    write(path, pa.table({"year": range(1960, 1967), "v": [1.0] * 7}))
    source = open_source(str(path))
    assert [source.label(i) for i in range(len(source))] == ["v"]
    write(path, pa.table({"month": [1, 2, 1, 2], "v": [1.0] * 4}))
    with pytest.raises(DataError, match="column 'month' seems to be the time"):
        open_source(str(path))
    dates = pd.date_range("2024-12-30", periods=4)
    write(path, pa.table({"day": dates, "year": dates.year, "v": [1.0] * 4}))
    assert open_source(str(path)).ignored_columns == ("year",)
    write(path, pa.table({"v": [1.0, 2.0], "day": [days[0]] * 2}))
    with pytest.warns(UserWarning, match="1 row has the same time in 'day'"):
        open_source(str(path))
