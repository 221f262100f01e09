"""One CSV, read for training and for `timemoe forecast`: the same series, gaps and times."""

import argparse

import numpy as np
import pandas as pd
import pytest

from timemoe_jax.cli.forecast import prepare_file
from timemoe_jax.data.formats.csv_files import read_csv, read_csv_frame
from timemoe_jax.data.formats.frames import columns_of, layout_of, wide_columns
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.errors import DataError


def forecast_series(path, **names):
    """The series that the command forecasts: by name their values and times."""
    keys = ("id_column", "timestamp_column", "target", "freq")
    args = argparse.Namespace(horizon=1, **dict.fromkeys(keys) | names)
    timed = prepare_file(str(path), args).timed
    return {
        series.target_name if series.id is None else str(series.id): series
        for series in timed.series
    }


def trained_series(path, names=None):
    source = open_source(str(path), names)
    return {source.label(i): source[i] for i in range(len(source))}


DAYS = [f"2024-01-{day:02}" for day in range(1, 7)]
# Awkward, and yet right: the header, then the cells of the rows.
FILES = {
    "every word for a missing value": (
        "date,a,b",
        ["NA,1", "#N/A,", "null,N/A", "None,<NA>", "NaN, nan ", "7,-NaN"],
        DAYS,
    ),
    "numbers as Python and others write them": (
        "date,a,b",
        ["1e-3,+5", " 0.1 ,-0.0", "1E5,.5", "4.,1e308", "0.1000000000000000055511151231257827,3"]
        + ["9007199254740993,5e-324"],
        DAYS,
    ),
    "rows out of order": (
        "date,a,b",
        ["6,60", "2,20", "1,10", "4,", "5,50", "3,30"],
        [DAYS[i] for i in (5, 1, 0, 3, 4, 2)],
    ),
    "dates with the month first": (
        "when,a",
        list("123456"),
        [f"01/{d:02}/2024" for d in range(13, 19)],
    ),
    "quoted cells and headers": ('"the date","a, b"', ['"1"', '" 2 "', "3", '""', "5", "6"], DAYS),
    "a zone that is kept": ("ds,a", list("123456"), [f"{day}T00:00:00+02:00" for day in DAYS]),
    "an integer column of times": ("ds,a", list("123456"), [str(i) for i in range(6)]),
    "blank lines": ("date,a", ["1\n", "2", "3\n\n", "4", "", "6\n"], DAYS),
    "a byte order mark": ("\ufeffdate,a", list("123456"), DAYS),
}


@pytest.mark.parametrize("name", FILES)
def test_awkward_wide_files(tmp_path, name):
    header, rows, dates = FILES[name]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *map(",".join, zip(dates, rows, strict=True))]) + "\n")
    trained, forecast = trained_series(path), forecast_series(path)
    assert list(trained) == list(forecast)
    for label, values in trained.items():
        np.testing.assert_array_equal(values, forecast[label].values)
        assert values.dtype == forecast[label].values.dtype == np.float64
    frame = columns_of(read_csv_frame(path), "t")
    times, _ = wide_columns(frame, layout_of(frame, ColumnNames(), "t"), "t")
    index = next(iter(forecast.values())).timestamps
    if isinstance(index, pd.DatetimeIndex):
        index = index.tz_convert("UTC").tz_localize(None) if index.tz is not None else index
        assert open_source(str(path)).frequency == index.inferred_freq
    np.testing.assert_array_equal(times, index.to_numpy())
    table = read_csv(path)
    np.testing.assert_array_equal(table.values.T, list(trained.values()))
    np.testing.assert_array_equal(table.timestamps, times)


@pytest.mark.parametrize(
    ("header", "ids", "names"),
    [
        ("unique_id,ds,y", ["001", "1"], {}),
        ("id,timestamp,target", ["7", "12"], {}),
        ("item_id,ds,y", ["NA", "007"], {}),
        ("item_id,ds,y", ["", "b"], None),  # only an empty id is missing
        ("shop,day,sales", ["x y", "é"], {"id_column": "shop", "target": ["sales"]}),
    ],
)
def test_awkward_long_files(tmp_path, header, ids, names):
    path = tmp_path / "t.csv"
    rows = [f"{i},{day},{k}{n}" for k, i in enumerate(ids, 1) for n, day in enumerate(DAYS)]
    path.write_text("\n".join([header, *rows[::-1]]))
    if names is None:
        for read in (trained_series, forecast_series):
            with pytest.raises(
                DataError, match="'item_id' has no id in line 8; every row needs one"
            ):
                read(path)
        return
    columns = ColumnNames(names.get("id_column"), None, tuple(names.get("target", ())))
    trained, forecast = trained_series(path, columns), forecast_series(path, **names)
    assert list(trained) == list(forecast) == ids[::-1]
    for k, i in enumerate(ids, 1):
        np.testing.assert_array_equal(trained[i], [10 * k + n for n in range(6)])
        np.testing.assert_array_equal(trained[i], forecast[i].values)
        assert forecast[i].timestamps.tolist() == list(pd.DatetimeIndex(DAYS))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("date,a\n2024-01-01,1\n2024-01-02,two\n", "'a' must hold numbers, but line 3 holds 'two'"),
        ("date,a\n2024-01-01,1\n\n2024-01-02,1_0\n", "'a' must hold numbers, but line 4 holds '1_"),
        ("date,a\n2024-01-01,1\n2024-13-01,2\n", "'date' is first .* line 3 holds '2024-13-01'"),
        ("ds,a\n2024-01-01,1\n2024-13-01,2\n", "'ds': line 3 holds '2024-13-01', not a date"),
        ("date,a\n2024-01-01,1,2\n", "line 2 has 3 cells, but the header has 2"),
        ("date,a\n2024-01-01,1\n2024-01-02\n", "line 3 has 1 cells, but the header has 2"),
        ("date,a,a\n2024-01-01,1,2\n", "more than one column 'a'"),
        ("2024-01-01,1\n2024-01-02,2\n", "has no header: its first line is '2024-01-01,1'"),
        ("id,day,a\n1,2024-01-01,2\n", "has an id column 'id', but none is called y or target"),
        ("id,ds,y\nx,2024-01-01,1\nx,2024-01-02,two\n", "'y' must hold numbers, but line 3"),
        ("date,a\n", "has a header line but no rows"),
        ('date,a\n2024-01-01,"1', "cannot be read as CSV"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_in_the_same_words(tmp_path, text, says):
    path = tmp_path / "t.csv"
    path.write_text(text)
    errors = []
    for read in (trained_series, forecast_series):
        with pytest.raises(DataError, match=says) as caught:
            read(path)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert str(path) in errors[0]


def test_a_table_of_numbers_has_the_same_series(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,\n2,5\n,6\n4,7\n")
    forecast = forecast_series(path)
    for label, values in trained_series(path).items():
        np.testing.assert_array_equal(values, forecast[label].values)
    assert forecast["a"].timestamps.tolist() == [0, 1, 2, 3]


def test_rows_at_the_same_time_keep_their_order(tmp_path):
    """A calendar has no place for two; a file of the published protocol has such rows."""
    path = tmp_path / "t.csv"
    path.write_text("date,a\n2024-01-03,3\n2024-01-01,1\n2024-01-03,4\n2024-01-02,2\n")
    for read in (lambda: trained_series(path)["a"], lambda: read_csv(path).values[:, 0]):
        with pytest.warns(UserWarning, match="t.csv: 1 row has the same time in 'date'"):
            assert read().tolist() == [1, 2, 3, 4]
    with pytest.raises(DataError, match="two rows or more at 2024-01-03"):
        forecast_series(path)
