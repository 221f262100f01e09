"""Data frames as series on regular times, and the times that follow."""

import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from fake_forecaster import read_frame
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.data.seasons import season_of_frequency
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.frames import future_index, to_frame

FREQUENCIES = (
    *("s", "30s", "min", "5min", "15min", "h", "3h", "36h", "D", "2D", "5D", "B"),
    *("W-SUN", "W-WED", "2W-MON", "MS", "ME", "2MS", "BMS", "BME", "QS-JAN", "QS-FEB", "QE-DEC"),
    *("QE-NOV", "BQE-DEC", "2QE-DEC", "YS-JAN", "YS-APR", "YE-DEC", "2YS-MAR"),
)
ZONES = (None, "UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe")


def one(df, **options):
    (series,) = read_frame(df, **options).series
    return series


def daily(**columns):
    length = len(next(iter(columns.values())))
    return pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=length), **columns})


@given(
    freq=st.sampled_from(FREQUENCIES),
    zone=st.sampled_from(ZONES),
    unit=st.sampled_from(["s", "ms", "us", "ns"]),
    day=st.integers(0, 3000),
    length=st.integers(12, 40),
    horizon=st.integers(1, 30),
    given_freq=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_gaps_are_filled_and_the_times_that_follow_are_right(
    freq, zone, unit, day, length, horizon, given_freq, seed
):
    """What pandas generates is found again from a third of its rows shuffled or absent."""
    start = pd.Timestamp("2015-01-01") + pd.Timedelta(days=day)
    times = pd.date_range(start, periods=length + horizon, freq=freq, tz=zone, unit=unit)
    rng = np.random.default_rng(seed)
    absent = rng.choice(np.arange(1, length - 1), length // 3, replace=False)
    absent = absent if given_freq else absent[: length // 6]
    frame = pd.DataFrame({"ds": times[:length], "y": np.arange(length, dtype=float)})
    rows = frame.drop(index=absent).sample(frac=1, random_state=seed)
    series = one(rows, freq=freq if given_freq else None)
    pd.testing.assert_index_equal(
        series.timestamps, times[:length], check_names=False, exact="equiv"
    )
    assert series.timestamps.dtype == times.dtype
    future = future_index(series, horizon)
    assert future.dtype == times.dtype
    assert future.tolist() == times[length:].tolist()
    expected = np.arange(length, dtype=float)
    expected[absent] = np.nan
    np.testing.assert_array_equal(series.values, expected)
    assert (series.freq, series.filled, series.missing) == (freq, len(absent), 0)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2024-03-31", 23),
        ("Europe/Berlin", "2024-10-27", 25),
        ("America/New_York", "2024-03-10", 23),
        ("America/New_York", "2024-11-03", 25),
    ],
)
def test_days_on_which_the_clocks_change(zone, day, hours):
    day = pd.Timestamp(day, tz=zone)
    before = pd.date_range(end=day, periods=49, freq="h")[:-1]
    series = one(pd.DataFrame({"ds": before, "y": np.arange(48.0)}))
    future = future_index(series, 30)
    assert future[0] == day
    assert sum(stamp.date() == day.date() for stamp in future) == hours
    assert future[hours] == day + pd.DateOffset(days=1)
    # A gap over the change has as many hours, and days stay at the local midnight.
    around = pd.date_range(day - pd.DateOffset(days=1), day + pd.DateOffset(days=2), freq="h")
    kept = around[(around.date != day.date())]
    series = one(pd.DataFrame({"ds": kept, "y": np.ones(len(kept))}))
    assert series.filled == hours
    days = pd.date_range(end=day - pd.DateOffset(days=1), periods=5)
    series = one(pd.DataFrame({"ds": days.drop(days[2]), "y": np.ones(4)}))
    assert (series.freq, series.filled) == ("D", 1)
    assert future_index(series, 3).tolist() == [day + pd.DateOffset(days=i) for i in range(3)]


def test_a_midnight_that_the_clocks_skip():
    """In Brazil they went from 2018-11-03 23:59 to 2018-11-04 01:00."""
    days = pd.date_range("2018-11-01", periods=8)
    local = days.tz_localize("America/Sao_Paulo", nonexistent="shift_forward")
    assert local[3].hour == 1
    for first in (0, 3):
        times = local[first:]
        series = one(pd.DataFrame({"ds": times, "y": np.ones(len(times))}))
        assert (series.freq, series.filled) == ("D", 0)
    gap = one(pd.DataFrame({"ds": local.delete(3), "y": np.ones(7)}))
    assert gap.timestamps.tolist() == local.tolist()
    ahead = one(pd.DataFrame({"ds": local[:3], "y": np.ones(3)}))
    assert future_index(ahead, 5).tolist() == local[3:].tolist()


@pytest.mark.parametrize(
    ("times", "freq", "follow"),
    [
        (["2023-11-30", "2023-12-31", "2024-01-31"], "ME", ["2024-02-29", "2024-03-31"]),
        (["2022-11-30", "2022-12-31", "2023-01-31"], "ME", ["2023-02-28", "2023-03-31"]),
        (["2023-12-01", "2024-01-01", "2024-02-01"], "MS", ["2024-03-01", "2024-04-01"]),
        (["2024-02-26", "2024-02-27", "2024-02-28"], "D", ["2024-02-29", "2024-03-01"]),
        (["2023-02-26", "2023-02-27", "2023-02-28"], "D", ["2023-03-01", "2023-03-02"]),
        (["2024-01-04", "2024-01-05", "2024-01-08"], "B", ["2024-01-09", "2024-01-10"]),
        (["2023-12-27", "2023-12-28", "2023-12-29"], "D", ["2023-12-30", "2023-12-31"]),
        (["2023-12-17", "2023-12-24", "2023-12-31"], "W-SUN", ["2024-01-07", "2024-01-14"]),
        (["2023-03-31", "2023-06-30", "2023-09-30"], "QE-DEC", ["2023-12-31", "2024-03-31"]),
        (["2021-01-01", "2022-01-01", "2023-01-01"], "YS-JAN", ["2024-01-01", "2025-01-01"]),
        (["2024-02-29 06:00", "2024-02-29 12:00", "2024-02-29 18:00"], "6h", ["2024-03-01"]),
        (["2024-01-30 18:00", "2024-01-31 18:00", "2024-02-01 18:00"], "D", ["2024-02-02 18:00"]),
    ],
)
def test_calendars_by_hand(times, freq, follow):
    series = one(pd.DataFrame({"ds": times, "y": [1.0, 2.0, 3.0]}))
    assert series.freq == freq
    assert future_index(series, len(follow)).tolist() == [pd.Timestamp(text) for text in follow]


def test_a_weekend_is_no_gap_in_business_days_but_a_holiday_is():
    days = pd.bdate_range("2024-05-20", "2024-06-07")
    frame = pd.DataFrame({"ds": days.drop(pd.Timestamp("2024-05-27")), "y": np.arange(14.0)})
    series = one(frame)
    assert (series.freq, series.filled, len(series.values)) == ("B", 1, 15)
    assert np.isnan(series.values[5])
    assert future_index(series, 1)[0] == pd.Timestamp("2024-06-10")
    assert one(frame, freq="D").filled == 19 - 14


def long_frame(names=("unique_id", "ds", "y")):
    times = pd.date_range("2024-01-01", periods=4, freq="h")
    rows = [(s, t, 10.0 * i + j) for i, s in enumerate("ab") for j, t in enumerate(times)]
    return pd.DataFrame(rows, columns=list(names))


@pytest.mark.parametrize(
    "names", [("unique_id", "ds", "y"), ("item_id", "timestamp", "target"), ("id", "ds", "target")]
)
def test_the_names_in_use_are_known(names):
    timed = read_frame(long_frame(names))
    assert (timed.id_column, timed.timestamp_column, timed.targets) == (*names[:2], names[2:])
    assert [series.id for series in timed.series] == ["a", "b"]
    np.testing.assert_array_equal(timed.series[1].values, [10, 11, 12, 13])
    output = to_frame(timed, np.zeros((2, 3)))
    assert list(output.columns) == [names[0], names[1], "target_name", "predictions"]


def test_explicit_names_win():
    frame = long_frame().assign(shop=list("xxxxyyyy"), sales=range(8), unique_id="a")
    timed = read_frame(frame, id_column="shop", target="sales")
    assert [series.id for series in timed.series] == ["x", "y"]
    assert timed.series[1].values.tolist() == [4, 5, 6, 7]
    assert set(timed.ignored) == {"unique_id", "y"}


def test_several_targets():
    timed = read_frame(long_frame().assign(z=lambda f: -f["y"]), target=["y", "z"])
    assert [(s.id, s.target_name) for s in timed.series] == [
        ("a", "y"),
        ("a", "z"),
        ("b", "y"),
        ("b", "z"),
    ]
    np.testing.assert_array_equal(timed.series[3].values, [-10, -11, -12, -13])
    output = to_frame(timed, np.arange(4.0)[:, None])
    assert output["unique_id"].tolist() == list("aabb")
    assert output["target_name"].tolist() == ["y", "z", "y", "z"]


def test_wide_is_long():
    long = long_frame()
    wide = long.pivot(index="ds", columns="unique_id", values="y")
    for frame in (wide, wide.reset_index(), wide.rename_axis(None)):
        timed = read_frame(frame)
        assert timed.timestamp_column == (
            "timestamp" if frame.index.name is None and ("ds" not in frame.columns) else "ds"
        )
        assert [series.target_name for series in timed.series] == ["a", "b"]
        for ours, theirs in zip(timed.series, read_frame(long).series, strict=True):
            np.testing.assert_array_equal(ours.values, theirs.values)
            assert ours.timestamps.equals(theirs.timestamps)
            assert future_index(ours, 2).equals(future_index(theirs, 2))
    assert "unique_id" not in to_frame(timed, np.zeros((2, 1))).columns


def test_one_series_without_an_id():
    series = one(daily(y=[1.0, 2.0, 3.0]))
    assert (series.id, series.target_name, series.name) == (None, "y", "y")
    assert one(daily(y=[1.0, 2, 3], price=[1.0, 2, 3]), target="y").values.tolist() == [1, 2, 3]
    timed = read_frame(daily(y=[1.0, 2, 3], price=[1.0, 2, 3]), covariates=["price"])
    assert (timed.targets, timed.covariates, timed.ignored) == (("y",), ("price",), ())


def test_what_was_done_is_counted():
    """By hand: b's second and third rows come in the wrong order, and one of each is absent."""
    times = pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-05", "2024-01-06"])
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "a", "b", "a", "b", "a", "a", "b", "b"],
            "ds": times[[0, 0, 1, 2, 2, 1, 3, 4, 3, 4]],
            "y": [0.0, 0, 1, 2, None, 1, 4, 5, 4, 5],
        }
    )
    before = frame.copy()
    timed = read_frame(frame)
    a, b = timed.series
    np.testing.assert_array_equal(a.values, [0, 1, np.nan, np.nan, 4, 5])
    np.testing.assert_array_equal(b.values, [0, 1, 2, np.nan, 4, 5])
    assert [(s.filled, s.missing, s.reordered) for s in (a, b)] == [(1, 1, 0), (1, 0, 2)]
    assert (timed.filled, timed.missing, timed.reordered) == (2, 1, 2)
    pd.testing.assert_frame_equal(frame, before)


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_changes_nothing_but_a_count(seed):
    rng = np.random.default_rng(seed)
    parts = []
    for name, freq in (("a", "h"), ("b", "D"), ("c", "ME"), ("d", "h")):
        times = pd.date_range("2024-01-01", periods=int(rng.integers(4, 30)), freq=freq)
        parts.append(pd.DataFrame({"id": name, "ds": times, "y": rng.normal(size=len(times))}))
    frame = pd.concat(parts, ignore_index=True)
    shuffled = frame.sample(frac=1, random_state=seed)
    found = {series.id: series for series in read_frame(shuffled).series}
    for series in read_frame(frame).series:
        other = found[series.id]
        np.testing.assert_array_equal(series.values, other.values)
        assert series.timestamps.equals(other.timestamps)
        assert series.freq == other.freq
        alone = one(frame[frame["id"] == series.id])
        np.testing.assert_array_equal(series.values, alone.values)
        assert series.freq == alone.freq


def test_a_series_that_begins_when_another_ends():
    frame = long_frame()
    frame.loc[4:, "ds"] += pd.Timedelta(hours=3)
    assert frame["ds"][3] == frame["ds"][4]
    for rows in (frame, frame.iloc[::-1]):
        values = {series.id: series.values.tolist() for series in read_frame(rows).series}
        assert values == {"a": [0, 1, 2, 3], "b": [10, 11, 12, 13]}


def test_a_step_that_is_not_the_most_common_one():
    """By hand: steps of 2, 2, 1 and 2 days are days, of which five of eight are there."""
    series = one(daily(y=np.arange(8.0)).iloc[[0, 2, 4, 5, 7]])
    assert (series.freq, series.filled) == ("D", 3)


def test_a_short_series_takes_the_frequency_of_the_others():
    frame = long_frame()
    short = pd.DataFrame({"unique_id": ["c"], "ds": [pd.Timestamp("2024-05-05")], "y": [7.0]})
    series = read_frame(pd.concat([frame, short])).series[2]
    assert series.freq == "h"
    assert future_index(series, 1)[0] == pd.Timestamp("2024-05-05 01:00")
    other = pd.DataFrame(
        {"unique_id": "d", "ds": pd.date_range("2024-01-01", periods=3), "y": np.ones(3)}
    )
    with pytest.raises(DataError, match=r"series c has 1 rows, too few .* others have h, D; give"):
        read_frame(pd.concat([frame, short, other]))
    with pytest.raises(DataError, match="no other series has one; give freq="):
        read_frame(short)
    assert one(short, freq="W-SUN").freq == "W-SUN"


def test_step_numbers():
    frame = pd.DataFrame({"ds": [7, 1, 3, 9], "y": [3.0, 0, 1, 4]})
    series = one(frame)
    assert (series.freq, series.filled) == ("2", 1)
    assert series.timestamps.tolist() == [1, 3, 5, 7, 9]
    np.testing.assert_array_equal(series.values, [0, 1, np.nan, 3, 4])
    assert future_index(series, 2).tolist() == [11, 13]
    assert future_index(one(frame.astype({"ds": "int32"})), 1).dtype == np.int32
    assert one(frame, freq=1).filled == 5
    with pytest.raises(DataError, match="freq must be an integer of at least 1"):
        read_frame(frame, freq="D")
    with pytest.raises(DataError, match="the time 12 is not on the grid of the frequency '5'"):
        read_frame(pd.DataFrame({"ds": [0, 5, 10, 12, 15], "y": np.ones(5)}))


@pytest.mark.parametrize("freq", ["M", "Q", "D", "h", "W-SUN", "15min"])
def test_periods(freq):
    periods = pd.period_range("2024-01-03", periods=8, freq=freq)
    frame = pd.DataFrame({"y": np.arange(5.0)}, index=periods[:6].delete(3))
    series = one(frame)
    assert series.timestamps.equals(periods[:6])
    assert series.filled == 1
    assert future_index(series, 2).tolist() == periods[6:].tolist()
    assert one(frame, freq=freq).filled == 1
    assert season_of_frequency(series.freq) > 1
    with pytest.raises(DataError, match="holds periods of"):
        read_frame(frame, freq="YE")


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-01", "2024-01-02", "2024-01-03"],
        ["2024-01-01 00:00:00", "2024-01-02 00:00:00", "2024-01-03 00:00:00"],
        [datetime.date(2024, 1, day) for day in (1, 2, 3)],
        [datetime.datetime(2024, 1, day) for day in (1, 2, 3)],
        pd.Series(["2024-01-01", "2024-01-02", "2024-01-03"], dtype="timestamp[us][pyarrow]"),
    ],
)
def test_dates_of_any_kind(times):
    series = one(pd.DataFrame({"ds": times, "y": [1.0, 2, 3]}))
    assert series.freq == "D"
    assert future_index(series, 1)[0] == pd.Timestamp("2024-01-04")


def test_text_with_an_offset_keeps_it():
    series = one(
        pd.DataFrame({"ds": [f"2024-01-0{i}T00:00+01:00" for i in (1, 2, 3)], "y": [1.0] * 3})
    )
    assert future_index(series, 1)[0].isoformat() == "2024-01-04T00:00:00+01:00"


def with_times(*times):
    return pd.DataFrame({"ds": list(times), "y": np.ones(len(times))})


HOURS = list(pd.date_range("2024-01-01", periods=6, freq="h"))


@pytest.mark.parametrize(
    ("frame", "options", "says"),
    [
        ([1.0], {}, "must be a pandas DataFrame, not a list"),
        (daily(y=[1.0]).iloc[:0], {}, "no rows"),
        (with_times(*HOURS, HOURS[2]), {}, "two rows or more at 2024-01-01 02:00:00"),
        (pd.concat([long_frame()] * 2), {}, "series a has two rows or more at 2024-01-01 00:00:00"),
        (with_times(*HOURS, pd.NaT), {}, "column 'ds' has no time in row 6"),
        (with_times("2024-01-01", "2024-13-01"), {}, "row 1 holds '2024-13-01', not a date"),
        (
            with_times("2024-01-01T00:00+01:00", "2024-07-01T00:00+02:00"),
            {},
            "mixes time zones or offsets",
        ),
        (
            with_times(
                *(datetime.datetime(2024, 1, 1, tzinfo=ZoneInfo(z)) for z in ("UTC", "Asia/Tokyo"))
            ),
            {},
            "mixes time zones",
        ),
        (with_times(-(2**63), 0, 2**63 - 1), {}, "more than its unit can tell apart"),
        (with_times(1.0, 2.0), {}, "must hold dates, periods or whole step numbers"),
        (
            daily(y=["1", "2", "3"]),
            {},
            "'y' must hold numbers, but holds text; convert .* pandas.to_numeric",
        ),
        (daily(a=["1", "2", "3"]), {}, "'a' must hold numbers"),
        (daily(y=[True, False, True]), {}, "'y' holds booleans; convert it with astype"),
        (daily(y=[1.0, np.inf, 2]), {}, "'y' is infinite at 2024-01-02 00:00:00"),
        (long_frame().replace(12.0, -np.inf), {}, "series b: .* infinite at 2024-01-01 02:00:00"),
        (long_frame().assign(unique_id=[*"aaaa", None, *"bbb"]), {}, "no id in row 4"),
        (long_frame().drop(columns="ds"), {}, "no column of times .* 'unique_id', 'y'"),
        (long_frame().assign(id=1), {}, "'unique_id', 'id', each of which could be the id"),
        (
            long_frame().assign(timestamp=1),
            {},
            "'ds', 'timestamp', each of which could be the time",
        ),
        (long_frame().assign(target=1), {}, "'y', 'target', each of which could be the target"),
        (long_frame(), {"target": "sales"}, "no column 'sales'"),
        (daily(y=[1.0, 2], a=[1.0, 2]), {}, "no id column, and 'y' could be its only target or"),
        (daily(y=[1.0, 2]), {"covariates": ["b"]}, "'b' cannot be a covariate: it is no column"),
        (pd.DataFrame({"target": [[1.0]]}), {}, "a list of values in each row of 'target'"),
        (daily(y=[1.0, 2, 3]), {"freq": "M"}, "freq 'M' is no pandas frequency.*ME"),
        (daily(y=[1.0, 2, 3]), {"freq": "-1D"}, "positive step"),
        (daily(y=[1.0, 2, 3]), {"freq": 1}, "freq must be a pandas alias"),
        (daily(y=[1.0, 2, 3]), {"freq": "bh"}, "'bh' is not supported"),
        # Before version 3, times of pandas are of nanoseconds, and the grid is what is too fine.
        (
            daily(y=[1.0, 2, 3]),
            {"freq": "1ns"},
            "finer than the column of times|would become a grid",
        ),
        (daily(y=[1.0, 2, 3]), {"freq": "MS"}, "2024-01-02 .* not on the grid .* 'MS'"),
    ],
)
def test_frames_that_cannot_be_used(frame, options, says):
    with pytest.raises(DataError, match=says):
        read_frame(frame, **options)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_the_row_that_is_off_the_grid_is_named(at):
    """Wherever it is: the first row, too."""
    times = [*HOURS]
    times[at] += pd.Timedelta(minutes=17)
    with pytest.raises(DataError, match=rf"{times[at]} is not on the grid of the frequency 'h'"):
        read_frame(with_times(*times), freq="h")
    days = list(pd.date_range("2024-01-01", periods=6))
    days[at] += pd.Timedelta(hours=5)
    with pytest.raises(DataError, match=rf"{days[at]} is not on the grid of the frequency 'D'"):
        read_frame(with_times(*days), freq="D")
    with pytest.raises(DataError, match="not on the grid"):
        read_frame(with_times(*times))
    pairs = list(pd.date_range("2024-01-01", periods=6, freq="2D"))
    pairs[at] += pd.Timedelta(days=1)
    with pytest.raises(DataError, match=rf"{pairs[at]} is not on the grid of the frequency '2D'"):
        read_frame(with_times(*pairs), freq="2D")


def test_a_grid_far_larger_than_the_rows_is_refused():
    seconds = list(pd.date_range("2024-01-01", periods=50, freq="s"))
    says = "51 rows would become a grid of .* gap is from 2024-01-01 00:00:49 to 2074-01-01"
    with pytest.raises(DataError, match=says):
        read_frame(with_times(*seconds, pd.Timestamp("2074-01-01")))
    with pytest.raises(DataError, match="would become a grid"):
        read_frame(pd.DataFrame({"ds": [-(2**61), 0, 1, 2, 2**61], "y": np.ones(5)}), freq=1)


def test_sparse_rows_do_not_become_a_fine_grid():
    """Events at no regular times: no frequency is made up."""
    sparse = with_times(*(HOURS[0] + pd.Timedelta(minutes=m) for m in (0, 7, 60, 61, 500)))
    with pytest.raises(DataError, match=r"too few or too irregular .*; give freq="):
        read_frame(sparse)
    assert one(sparse, freq="min").filled == 501 - 5
    days = daily(y=np.ones(200)).iloc[[0, 1, 50, 130, 199]]
    both = pd.concat([daily(y=np.ones(9)).assign(id="a"), days.assign(id="b")])
    assert read_frame(both).series[1].freq == "D"
    # A long gap between regular rows is none of that.
    assert one(daily(y=np.ones(200)).iloc[[0, 1, 2, 3, 196, 197, 198, 199]]).filled == 192


def test_the_hour_that_comes_twice():
    times = pd.date_range("2024-10-26 22:00", periods=6, freq="h", tz="UTC")
    local = times.tz_convert("Europe/Berlin")
    assert one(with_times(*local)).timestamps.tolist() == local.tolist()
    with pytest.raises(DataError, match="two rows or more at 2024-10-27 02:00:00"):
        read_frame(with_times(*local.tz_localize(None)))


def test_days_at_a_time_that_comes_twice():
    """Rows keep the instant that they name; of one that is made, it is the first."""
    days = pd.date_range("2024-10-24 02:30", periods=6)
    first = days.tz_localize("Europe/Berlin", ambiguous=np.ones(6, bool))
    second = days.tz_localize("Europe/Berlin", ambiguous=np.zeros(6, bool))
    assert second[3] - first[3] == pd.Timedelta(hours=1)
    for times in (first, second):
        series = one(with_times(*times.delete(1)))
        assert series.freq == "D"
        assert series.timestamps.tolist() == times.tolist()
    assert one(with_times(*second.delete(3))).timestamps.tolist() == first.tolist()
    assert future_index(one(with_times(*first[:3])), 3).tolist() == first[3:].tolist()


def test_forecasts_as_a_frame():
    """By hand, with ids that are a category and times with a zone."""
    times = pd.date_range("2024-03-29", periods=3, tz="Europe/Berlin")
    frame = pd.DataFrame(
        {
            "item_id": pd.Categorical(["b"] * 3 + ["a"] * 3, categories=["a", "b", "c"]),
            "timestamp": times.append(times),
            "target": np.arange(6.0),
        }
    )
    timed = read_frame(frame)
    point = np.array([[1.0, 2], [3, 4]])
    output = to_frame(timed, point, np.stack([point - 1, point + 1], axis=-1), [0.1, 0.9])
    names = ["item_id", "timestamp", "target_name", "predictions", "0.1", "0.9"]
    assert list(output.columns) == names
    assert output["item_id"].tolist() == ["b", "b", "a", "a"]
    assert output["item_id"].dtype == frame["item_id"].dtype
    assert output["timestamp"].dtype == frame["timestamp"].dtype
    assert [str(stamp) for stamp in output["timestamp"][:2]] == [
        "2024-04-01 00:00:00+02:00",
        "2024-04-02 00:00:00+02:00",
    ]
    assert set(output["target_name"]) == {"target"}
    assert output["predictions"].tolist() == [1, 2, 3, 4]
    assert output["0.1"].tolist() == [0, 1, 2, 3]
    assert output["0.9"].tolist() == [2, 3, 4, 5]
    with pytest.raises(DataError, match=r"'predictions' .* name of a column of the result"):
        to_frame(
            read_frame(frame.rename(columns={"item_id": "predictions"}), id_column="predictions"),
            point,
        )


@pytest.mark.parametrize("ids", [[3, 7], ["x", "y"], [pd.Timestamp("2024-01-01"), pd.NaT]])
def test_ids_keep_their_dtype(ids):
    frame = long_frame().assign(unique_id=np.repeat(pd.Series(ids[:1] + ids[:1]).array, 4))
    frame = frame.iloc[:4]
    output = to_frame(read_frame(frame), np.zeros((1, 2)))
    assert output["unique_id"].dtype == frame["unique_id"].dtype
    assert output["unique_id"].tolist() == [ids[0]] * 2


@pytest.mark.parametrize(
    "times",
    [
        pd.date_range("2262-04-05", periods=5, unit="ns"),
        pd.date_range("2262-04-11", periods=5, unit="ns", freq="h"),
        np.array([252, 253, 254], np.uint8),
    ],
)
def test_a_forecast_beyond_what_the_times_can_hold_is_refused(times):
    series = one(pd.DataFrame({"ds": times, "y": np.ones(len(times))}))
    assert len(future_index(series, 1)) == 1
    with pytest.raises(DataError, match="more than the column's type"):
        future_index(series, 100)


def test_trailing_values_that_are_missing_keep_their_place():
    """The forecast follows the last row, not the last value."""
    series = one(daily(y=[1.0, 2, 3, None, None]))
    assert (len(series.values), series.missing) == (5, 2)
    assert future_index(series, 1)[0] == pd.Timestamp("2024-01-06")


@pytest.mark.parametrize(
    ("path", "freq"), [("ETT-small/ETTh1.csv", "h"), ("ETT-small/ETTm2.csv", "15min")]
)
def test_real_tables(shared_dir, path, freq):
    file = shared_dir / "data" / path
    if not file.exists():
        pytest.skip(f"{file} is absent")
    frame = pd.read_csv(file)
    timed = read_frame(frame)
    assert {series.freq for series in timed.series} == {freq}
    assert (timed.filled, timed.missing, timed.reordered) == (0, 0, 0)
    assert [series.target_name for series in timed.series] == list(frame.columns[1:])
    np.testing.assert_array_equal(timed.series[-1].values, frame["OT"])
    part = frame.drop(index=range(100, 130)).sample(frac=1, random_state=0)
    again = read_frame(part).series[-1]
    assert again.filled == 30
    np.testing.assert_array_equal(again.values[130:], frame["OT"][130:])
