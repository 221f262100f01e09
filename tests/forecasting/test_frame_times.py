"""Times of data frames: dates as text and numbers, how they come back, and unusual calendars."""

import datetime
import warnings

import numpy as np
import pandas as pd
import pytest
from fake_forecaster import FakeForecaster, read_frame
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.data.formats.dates import date_format, date_text, parse_dates
from timemoe_jax.data.seasons import season_of_frequency
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frame_forecast import forecast_frame
from timemoe_jax.forecasting.frames.frames import to_frame
from timemoe_jax.forecasting.frames.prepare import prepare_frame

DAYS = pd.date_range("2024-01-01", periods=60)
MONTHS = pd.date_range("2020-01-01", periods=36, freq="MS")


def frame_of(times, **columns):
    return pd.DataFrame({"ds": times, "y": np.arange(len(times), dtype=float), **columns})


def follow(times, horizon=2, **options):
    """The frequency, and the times that follow as the result holds them."""
    timed = read_frame(frame_of(times), **options)
    return timed.series[0].freq, to_frame(timed, np.zeros((1, horizon)))["ds"]


def predict(df, horizon, **options):
    """A frame as `Forecaster.predict_df` gives it, of known answers."""
    return forecast_frame(FakeForecaster().forecast, prepare_frame(df, horizon, **options)).frame


def named(i):
    return f"row {i}"


# The order of day and month


@pytest.mark.parametrize("layout", ["%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m/%d/%Y", "%d/%m/%y"])
def test_the_order_under_which_the_times_are_regular(layout):
    """First days of months have no day above 12: as the other order they are 1 to 12 January."""
    freq, ahead = follow(MONTHS.strftime(layout), date_format=None)
    expected = pd.to_datetime(["2023-01-01", "2023-02-01"]).strftime(layout)
    assert (freq, ahead.tolist()) == ("MS", expected.tolist())
    # A month that is absent does not hide it.
    assert follow(MONTHS.delete(5).strftime(layout))[1].tolist() == expected.tolist()
    # Nor does another series of the panel, whose months are others.
    later = frame_of((MONTHS + pd.DateOffset(years=5)).strftime(layout), id="b")
    both = pd.concat([frame_of(MONTHS.strftime(layout), id="a"), later])
    assert {series.freq for series in read_frame(both).series} == {"MS"}


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d.%m.%Y 10:00", "%d/%m/%y"])
def test_an_order_that_stays_open_is_an_error_that_names_both(form):
    """Twelve days, or twelve months."""
    text = DAYS[:12].strftime(form)
    with pytest.raises(
        DataError, match=r"row \d holds .* \((day|month) first, date_format='.*'\) or"
    ):
        follow(text)
    with pytest.raises(DataError, match="give date_format, or write dates such as 2024-01-31"):
        follow(text)
    ahead = follow(text, date_format=form)[1]
    assert ahead.tolist() == pd.to_datetime(["2024-01-13", "2024-01-14"]).strftime(form).tolist()
    other = form.replace("%d", "%_").replace("%m", "%d").replace("%_", "%m")
    assert follow(text, date_format=other)[0] == "MS"
    with pytest.raises(DataError, match="row 1 holds"):
        parse_dates(text.tolist(), named)


@pytest.mark.parametrize(
    ("texts", "layout"),
    [
        (["13/01/2024", "14/01/2024", "02/02/2024"], "%d/%m/%Y"),
        (["01/02/2024", "01/14/2024"], "%m/%d/%Y"),
        (["01/01/2024", "02/02/2024", "03/03/2024"], "%d/%m/%Y"),  # alike in both orders
        (["24-01-30", "24-01-31", "24-02-01"], "%y-%m-%d"),
        (["2024-01-02", "2024-01-03"], "%Y-%m-%d"),
        (["2024/01/02", "2024/01/03"], "%Y/%m/%d"),
        (["1/13/2024 0:00", "1/14/2024 13:00"], "%m/%d/%Y %H:%M"),
        (["1/13/2024 12:00:00 AM", "1/14/2024 1:00:00 PM"], "%m/%d/%Y %I:%M:%S %p"),
        (["13-JAN-2024", "14-JAN-2024"], "%d-%b-%Y"),
        (["30-Jan-24", "31-Jan-24", "01-Feb-24"], "%d-%b-%y"),
        (["Jan 2024", "Feb 2024"], "%b %Y"),
        (["01/2024", "02/2024"], "%m/%Y"),
        (["202401", "202402"], "%Y%m"),
    ],
)
def test_layouts_that_all_rows_allow(texts, layout):
    found = date_format(texts, named)
    assert found == layout
    assert date_text(texts, found).write(pd.to_datetime(texts, format=found)) == texts


@pytest.mark.parametrize(
    ("texts", "row"),
    [
        (["13/01/2024", "01/13/2024"], 1),
        (["13/13/2024"], 0),
        (["01/02/2024 late", "13/02/2024 late"], 0),
        (["2024-01-01", "31/01/2024"], 1),
        (["2024-01-01", ""], 1),
        (["1", "2"], 0),
        (["12:00"], 0),
        (["2024-01-01", "now"], 1),
        (["-1"], 0),
    ],
)
def test_text_that_is_no_date_is_named(texts, row):
    with pytest.raises(DataError, match=rf"row {row} holds '{texts[row]}', not a date"):
        date_format(texts, named)


def test_text_cannot_hold_times_beyond_the_years_of_python():
    # Before version 3, pandas has no dates beyond 2262.
    with pytest.raises(DataError, match=r"beyond the year 9999|'9999-12-29', not a date"):
        follow(["9999-12-29", "9999-12-30", "9999-12-31"])


def test_reading_dates_says_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert follow(pd.date_range("2024-01-14", periods=30).strftime("%d/%m/%Y"))[0] == "D"
    assert capfd.readouterr() == ("", "")


def test_the_future_is_read_as_the_past_is():
    text = MONTHS.strftime("%d/%m/%Y")
    promo = np.tile([0.0, 1, 1, 0, 0], 8)[:36]
    future = pd.DataFrame({"ds": ["01/01/2023", "01/02/2023"], "promo": 1.0})
    out = predict(frame_of(text, promo=promo), 2, future_df=future)
    assert out["ds"].tolist() == future["ds"].tolist()
    # Beside dates of another type the text decides by itself, or not at all.
    week = pd.DataFrame({"ds": pd.date_range("2024-05-01", periods=7).strftime("%d/%m/%Y")})
    past = frame_of(pd.date_range("2024-01-02", periods=120), promo=np.tile(promo, 4)[:120])
    with pytest.raises(DataError, match="future_df: column 'ds': row 0 holds '01/05/2024'"):
        predict(past, 7, future_df=week.assign(promo=1.0))


# Numbers


@pytest.mark.parametrize(
    ("numbers", "like", "layout"),
    [
        (DAYS.strftime("%Y%m%d"), "dates of the form yyyymmdd", "%Y%m%d"),
        (MONTHS.strftime("%Y%m"), "dates of the form yyyymm", "%Y%m"),
        (DAYS.strftime("%Y%j"), "dates of the form yyyyddd", "%Y%j"),
        (DAYS.strftime("%Y%m%d%H"), "dates of the form yyyymmddhh", "%Y%m%d%H"),
        (DAYS.as_unit("s").asi8, "Unix times in seconds", "s"),
        (DAYS.as_unit("ms").asi8, "Unix times in milliseconds", "ms"),
        (DAYS.as_unit("ns").asi8, "Unix times in nanoseconds", "ns"),
        (45292 + np.arange(60), "serial numbers of days of Excel", "excel"),
    ],
)
def test_numbers_that_code_dates_are_no_step_numbers(numbers, like, layout):
    numbers = np.asarray(numbers).astype(np.int64)
    with pytest.raises(DataError, match=f"look like {like}; give date_format='{layout}', or"):
        follow(numbers)
    freq, ahead = follow(numbers, date_format=layout)
    months = layout == "%Y%m"
    assert (freq, ahead.dtype) == ("MS" if months else "D", np.int64)
    then = MONTHS[-1] + pd.DateOffset(months=1) if months else DAYS[-1] + pd.Timedelta(days=1)
    expected = {"s": int(then.timestamp()), "ms": int(then.timestamp()) * 1000}
    expected |= {"ns": int(then.timestamp()) * 10**9, "excel": 45352}
    assert ahead[0] == expected.get(layout, None) or str(ahead[0]) == then.strftime(layout)
    # A step in whole numbers says that they are step numbers.
    step = int(np.diff(numbers).min())
    assert follow(numbers[:2], freq=step)[1].tolist() == [
        numbers[1] + step,
        numbers[1] + 2 * step,
    ]


@pytest.mark.parametrize(
    ("numbers", "like"),
    [
        ([20201, 20202, 20203, 20204, 20211, 20212], "quarters of the form yyyyq"),
        ([y * 100 + w for y in (2020, 2021) for w in range(1, 53)], "weeks of the form yyyyww"),
    ],
)
def test_parts_of_years_are_no_step_numbers(numbers, like):
    with pytest.raises(DataError, match=f"look like {like}"):
        follow(numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        range(60),
        range(1960, 2020),
        range(0, 600, 10),
        range(-5, 5),
        range(0, 20000, 500),
        range(999_990, 1_000_010),
        range(100_001, 100_100),
        range(10_000_000, 10_000_050),
        range(20_240_101, 20_240_141),  # day 32 is none
    ],
)
def test_step_numbers_stay_step_numbers(numbers):
    freq, ahead = follow(list(numbers))
    assert freq == str(numbers.step)
    assert ahead.tolist() == [numbers.stop, numbers.stop + numbers.step]


def test_a_date_format_that_does_not_fit():
    text = DAYS.strftime("%d/%m/%Y")
    for options in ({"date_format": "%m-%Y"}, {"date_format": "%m/%d/%Y"}):
        with pytest.raises(DataError, match=r"row \d+ holds '.*', which is no date of the date_f"):
            follow(text, **options)
    for layout in ("%Y %Y", "day first", 5):
        with pytest.raises(DataError, match="date_format must be a layout of strptime such as"):
            follow(text, date_format=layout)
    with pytest.raises(DataError, match="for which there is no date_format"):
        follow(DAYS, date_format="%Y")


# What comes back


@pytest.mark.parametrize(
    "times",
    [
        DAYS.strftime("%Y-%m-%d"),
        DAYS.strftime("%Y-%m-%d 00:00:00"),
        DAYS.strftime("%Y-%m-%dT%H:%M:%SZ"),
        DAYS.strftime("%Y-%m-%d %H:%M:%S.000"),
        DAYS.strftime("%d/%m/%Y"),
        DAYS.strftime("%d-%b-%Y").str.upper(),
        DAYS.strftime("%d %B %Y"),
        pd.Index([f"{day.month}/{day.day}/{day.year} 0:00" for day in DAYS]),
        pd.date_range("2024-01-01", periods=60, tz="Asia/Kolkata").map(str),
        pd.Index(DAYS.strftime("%Y-%m-%d"), dtype=object),
        pd.Index(DAYS.date, dtype=object),
        pd.Index(DAYS.to_pydatetime(), dtype=object),
        pd.date_range("2024-01-01", periods=60, tz="Europe/Berlin"),
        pd.period_range("2024-01-01", periods=60),
        pd.Index(range(60)),
        pd.Index(range(60), dtype="Int64"),
        pd.Index(range(60), dtype="uint16"),
        pd.Index(DAYS.strftime("%Y-%m-%d"), dtype="string"),
    ],
)
def test_times_come_back_as_they_were_given(times):
    """So that what came true can be merged."""
    ahead = follow(pd.Series(times[:40]), 20)[1]
    assert ahead.dtype == pd.Series(times).dtype
    assert ahead.tolist() == times[40:].tolist()
    truth = pd.DataFrame({"ds": pd.Series(times), "truth": 1.0})
    assert len(truth.merge(pd.DataFrame({"ds": ahead}), on="ds")) == 20


@pytest.mark.parametrize(
    "dtype", ["timestamp[ns][pyarrow]", "date32[day][pyarrow]", "string[pyarrow]", "int64[pyarrow]"]
)
def test_arrow_comes_back_as_arrow(dtype):
    pytest.importorskip("pyarrow")
    days = pd.Series(DAYS.date) if "date32" in dtype else pd.Series(DAYS)
    days = pd.Series(DAYS.strftime("%Y-%m-%d")) if "string" in dtype else days
    times = (pd.Series(range(60)) if "int" in dtype else days).astype(dtype)
    ahead = follow(times[:40], 20)[1]
    assert ahead.dtype == times.dtype
    assert ahead.tolist() == times[40:].tolist()


@given(
    layout=st.sampled_from(["%Y-%m-%d", "%d/%m/%Y", "%m/%d/%y", "%d.%m.%Y %H:%M", "%Y/%m/%d"]),
    short=st.booleans(),
    start=st.integers(0, 15000),
)
def test_text_that_is_read_is_written_the_same(layout, short, start):
    days = pd.date_range(pd.Timestamp("1990-01-01") + pd.Timedelta(days=start), periods=45)
    texts = [f"{day.day}/{day.month}/{day.year}" if short else day.strftime(layout) for day in days]
    found = date_format(texts, named)
    dates = pd.to_datetime(texts, format=found)
    assert dates.tolist() == days.tolist()
    assert date_text(texts, found).write(dates) == texts


# Calendars


@pytest.mark.parametrize(
    ("times", "freq", "ahead"),
    [
        (pd.date_range("2024-01-01", periods=20, freq="28D"), "4W-MON", ["2025-07-14"]),
        (pd.date_range("2024-01-01", periods=20, freq="29D"), "29D", ["2025-08-03"]),
        (pd.date_range("2024-01-01", periods=20, freq="30D"), "30D", ["2025-08-23"]),
        (pd.date_range("2024-01-05", periods=20, freq="4W-FRI"), "4W-FRI", ["2025-07-18"]),
        (["2018-07-15", "2018-08-15", "2018-09-15"], "DateOffset(months=1)", ["2018-10-15"]),
        (["2021-07-10", "2022-07-10", "2023-07-10"], "DateOffset(years=1)", ["2024-07-10"]),
        (
            ["2023-11-30", "2023-12-30", "2024-01-30"],
            "DateOffset(months=1)",
            ["2024-02-29", "2024-03-30"],
        ),
        (["2024-01-15", "2024-04-15", "2024-07-15"], "DateOffset(months=3)", ["2024-10-15"]),
        (["2024-01-15", "2024-02-15", "2024-05-15"], "DateOffset(months=1)", ["2024-06-15"]),
        (["2024-01-01", "2024-01-15", "2024-02-01", "2024-02-15"], "SMS-15", ["2024-03-01"]),
        (["2024-01-15", "2024-01-31", "2024-02-15", "2024-02-29"], "SME-15", ["2024-03-15"]),
    ],
)
def test_calendars_at_any_day(times, freq, ahead):
    found, then = follow(pd.to_datetime(times), len(ahead))
    assert (found, then.tolist()) == (freq, pd.to_datetime(ahead).tolist())
    # What was found may be given.
    assert follow(pd.to_datetime(times), len(ahead), freq=freq)[1].tolist() == then.tolist()


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("day", [1, 15, 28, 30])
def test_the_same_day_of_the_next_months(day, zone):
    first = pd.Timestamp(2019, 1, day, 6, tz=zone)
    every = pd.DatetimeIndex([first + pd.DateOffset(months=i) for i in range(40)])
    kept = every[:30].delete([3, 4, 17])
    for freq in (pd.DateOffset(months=1), "DateOffset(months=1)"):
        timed = read_frame(frame_of(kept), freq=freq)
        assert timed.series[0].timestamps.tolist() == every[:30].tolist()
        assert to_frame(timed, np.zeros((1, 10)))["ds"].tolist() == every[30:].tolist()
    assert follow(kept)[1].tolist() == every[30:32].tolist()
    with pytest.raises(DataError, match=r"not on the grid of the frequency 'DateOffset\(months=1"):
        follow([*kept[:5], kept[4] + pd.Timedelta(days=2)], freq=pd.DateOffset(months=1))


@pytest.mark.parametrize(
    ("freq", "alias"),
    [
        (pd.DateOffset(days=2), "2D"),
        (pd.DateOffset(weeks=1), "7D"),
        (pd.DateOffset(hours=24), "24h"),
        (pd.DateOffset(2, months=3), "DateOffset(months=6)"),
    ],
)
def test_offsets_of_other_units(freq, alias):
    assert read_frame(frame_of(DAYS[:1]), freq=freq).series[0].freq == alias


def test_months_of_four_and_five_weeks_are_an_error_that_names_them():
    days = pd.Timestamp("2024-01-05") + pd.to_timedelta(np.cumsum([0, *[28, 28, 35] * 5]), "D")
    with pytest.raises(DataError, match=r"give freq=; its steps are of 4 and 5 weeks .*4-4-5"):
        follow(days)


@pytest.mark.parametrize(
    ("freq", "meant"),
    [
        ("M", "did you mean 'ME', the last day, or 'MS', the first\\?$"),
        ("2M", "'2ME'"),
        ("Q-DEC", "'QE-DEC', the last day, or 'QS-DEC'"),
        ("H", "did you mean 'h'\\?$"),
        ("3T", "did you mean '3min'"),
        ("hourly", "did you mean 'h'\\?$"),
        ("Monthly", "did you mean 'MS'"),
        ("xyz", "give an alias such as 'h', 'D', 'W-SUN' or 'MS'$"),
        (pd.DateOffset(months=1, days=2), "not supported; give an alias"),
    ],
)
def test_frequencies_that_are_none(freq, meant):
    with pytest.raises(DataError, match=meant) as caught:
        follow(DAYS, freq=freq)
    assert "\n" not in str(caught.value)


def test_seasons_of_these_calendars():
    freqs = ("DateOffset(months=1)", "DateOffset(months=3)", "DateOffset(years=1)", "4W-FRI", "7D")
    assert [season_of_frequency(freq) for freq in freqs] == [12, 4, 1, 13, 52]


# Panels


def panel(**times):
    return pd.concat([frame_of(pd.DatetimeIndex(t), id=name) for name, t in times.items()])


def test_a_sparse_series_takes_the_frequency_of_the_panel():
    sparse = ["2024-01-03", "2024-01-06", "2024-01-09", "2024-01-15", "2024-01-18"]
    out = predict(panel(a=DAYS, b=sparse), 2)
    assert out["ds"].dt.date.map(str).tolist() == [
        *("2024-03-01", "2024-03-02"),
        *("2024-01-19", "2024-01-20"),
    ]
    assert out.attrs["freq"] == "D"
    week = pd.date_range("2024-01-01", periods=5)  # Monday to Friday
    timed = read_frame(panel(a=pd.bdate_range("2024-01-01", periods=40), b=week))
    assert [series.freq for series in timed.series] == ["B", "B"]


def test_a_series_with_a_frequency_of_its_own_keeps_it():
    months = pd.date_range("2024-01-01", periods=6, freq="MS")
    out = predict(panel(a=DAYS, b=months, c=DAYS + pd.Timedelta(hours=1)), 2)
    assert out.attrs["freq"] == {"a": "D", "b": "MS", "c": "D"}
    gap = read_frame(panel(a=DAYS, b=months.delete(2)))
    assert [series.freq for series in gap.series] == ["D", "MS"]


def test_the_result_says_how_dates_were_read():
    assert predict(frame_of(MONTHS.strftime("%d/%m/%Y")), 1).attrs["date_format"] == "%d/%m/%Y"
    assert predict(frame_of(DAYS), 1).attrs["date_format"] is None


def test_objects_that_are_no_times():
    for times in ([datetime.time(1), datetime.time(2)], ["2024-01-01", DAYS[1]], [b"1", b"2"]):
        with pytest.raises(DataError, match=r"'ds' must hold (times|dates)"):
            read_frame(frame_of(pd.Series(times, dtype=object)), timestamp_column="ds")
