"""The frequency of a series: parsed from what a caller gives, or found from times.

Hours and shorter steps are spans of time: they run in UTC, so that a day has 23 or 25 of them when
the clocks change. Days and longer steps are dates of a calendar, each at one time of day: they run
in local time, so that a day ends where the next one begins, whatever its length.
"""

import contextlib
import re
import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.times import TimeType

DAY = 86400  # seconds


_DATE_OFFSET = re.compile(r"(?:pd\.|pandas\.)?DateOffset\((\w+)=(\d+)\)")
# What is likely to be meant by a name that pandas does not know, or not any more.
_MEANT = {
    **{"M": "ME", "Q": "QE", "Y": "YE", "A": "YE", "BM": "BME", "BQ": "BQE", "BY": "BYE"},
    **{"BA": "BYE", "AS": "YS", "BAS": "BYS", "H": "h", "T": "min", "S": "s", "L": "ms", "U": "us"},
    **{"N": "ns", "CBM": "CBME", "SM": "SME", "HOURLY": "h", "HOUR": "h", "HOURS": "h"},
    **{"DAILY": "D", "DAY": "D", "DAYS": "D", "WEEKLY": "W", "WEEK": "W", "WEEKS": "W"},
    **{"MONTHLY": "MS", "MONTH": "MS", "MONTHS": "MS", "QUARTERLY": "QS", "QUARTER": "QS"},
    **{"YEARLY": "YS", "ANNUAL": "YS", "ANNUALLY": "YS", "YEAR": "YS", "YEARS": "YS"},
    **{"MINUTELY": "min", "MINUTE": "min", "MINUTES": "min", "MINS": "min", "SECONDLY": "s"},
    **{"SECOND": "s", "SECONDS": "s", "SEC": "s", "BUSINESS": "B", "BUSINESS DAY": "B"},
}
_ALIAS = re.compile(r"\s*(\d*)\s*([A-Za-z ]+?)(-[A-Za-z]+)?\s*")


class MonthDay(NamedTuple):
    """A calendar of one day in every month: its last one where the month has no such day."""

    day: int | None  # None is the day that the rows are at

    def of(self, days: Int64[np.ndarray, " rows"]) -> "MonthDay":
        """With the day at which most rows are, which are in days since 1970."""
        if self.day is not None:
            return self
        found, counts = np.unique(_days_of_month(days), return_counts=True)
        return MonthDay(int(found[counts == counts.max()].max()))

    def dates(self, months: Int64[np.ndarray, " months"]) -> Int64[np.ndarray, " months"]:
        """The dates of some months since January 1970, in days since 1970."""
        assert self.day is not None
        firsts = months.astype("M8[M]")
        begin, end = firsts.astype("M8[D]"), (firsts + 1).astype("M8[D]")
        return np.minimum(begin + (self.day - 1), end - 1).astype(np.int64)


def _days_of_month(days: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    dates = days.astype("M8[D]")
    return (dates - dates.astype("M8[M]").astype("M8[D]")).astype(np.int64) + 1


def months_of(days: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """The months of dates, which are in days since 1970, since January 1970."""
    return days.astype("M8[D]").astype("M8[M]").astype(np.int64)


class Frequency(NamedTuple):
    """The step between the times of a series."""

    alias: str  # of pandas, or "DateOffset(months=1)", or for step numbers the step as text
    step: int  # in units of the column, or multiples of `base`
    # The pandas offset of a calendar or a MonthDay; None for spans, periods and step numbers.
    base: Any = None


def parse_frequency(freq: Any, times: TimeType) -> Frequency:
    """Parses the frequency that a caller gives.

    That is a pandas alias such as "h", "15min", "D", "B", "W-SUN", "MS", "2QS", or an offset such
    as `DateOffset(months=1)`, the same day of the next month; for step numbers it is an integer.
    """
    import pandas as pd

    if not times.is_datetime:
        return _parse_step(freq, times)
    if not isinstance(freq, str | pd.offsets.BaseOffset):
        raise DataError(f"freq must be a pandas alias such as 'h', 'D' or 'MS', but is {freq!r}")
    offset = _offset(freq)
    if isinstance(offset, Frequency):
        return offset
    if offset.n < 1:
        raise DataError(f"freq must be a positive step, but is {offset.freqstr!r}")
    if isinstance(offset, pd.offsets.Tick) and not isinstance(offset, pd.offsets.Day):
        # In nanoseconds, since a step may be finer than the column's unit.
        step, rest = divmod(pd.Timedelta(offset).as_unit("ns").value, 10**9 // times.per_second)
        if rest:
            raise DataError(
                f"freq {offset.freqstr!r} is finer than the column of times, whose unit is "
                f"{times.unit!r}"
            )
        return Frequency(offset.freqstr, step)
    if isinstance(offset, pd.offsets.Week) and offset.weekday is None:
        return Frequency(f"{7 * offset.n}D", 7 * offset.n, pd.offsets.Day())
    if isinstance(offset, pd.offsets.BusinessHour | pd.offsets.CustomBusinessHour):
        raise DataError(f"freq {offset.freqstr!r} is not supported; give an alias such as 'h', 'D'")
    return Frequency(offset.freqstr, int(offset.n), offset.base)


def _offset(freq: Any) -> Any:
    """The pandas offset of an alias or offset, or the Frequency of a step in months."""
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    said = _DATE_OFFSET.fullmatch(freq.strip()) if isinstance(freq, str) else None
    if said is not None or type(freq) is pd.DateOffset:
        parts = {said[1]: int(said[2])} if said is not None else freq.kwds or {"days": 1}
        times = 1 if said is not None else int(freq.n)
        unit, count = next(iter(parts.items()))
        count = int(count) * times
        if len(parts) == 1 and count > 0 and unit in ("months", "years"):
            months = count * (12 if unit == "years" else 1)
            return Frequency(f"DateOffset({unit}={count})", months, MonthDay(None))
        aliases = {"weeks": "W", "days": "D", "hours": "h", "minutes": "min", "seconds": "s"}
        if len(parts) != 1 or unit not in aliases:
            raise DataError(
                f"freq {freq!r} is not supported; give an alias such as 'h', 'D' or 'MS', or "
                "DateOffset(months=1)"
            )
        freq = f"{7 * count}D" if unit == "weeks" else f"{count}{aliases[unit]}"
    # Versions of pandas before 3 take names such as M, which are others' or none since.
    parts = _ALIAS.fullmatch(freq) if isinstance(freq, str) else None
    known = parts is None or parts[2] not in _MEANT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names in small letters, which pandas will drop
        with contextlib.suppress(ValueError):
            if known:
                return to_offset(freq)
    raise DataError(f"freq {freq!r} is no pandas frequency; {_meant(freq)}")


def _meant(freq: str) -> str:
    """What to give instead of a name that is none of pandas."""
    parts = _ALIAS.fullmatch(freq)
    meant = None
    if parts is not None:
        meant = _MEANT.get(parts[2]) or _MEANT.get(parts[2].upper())
    if parts is None or meant is None:
        return "give an alias such as 'h', 'D', 'W-SUN' or 'MS'"
    count, suffix = parts[1], parts[3] or ""
    other = {"ME": "MS", "QE": "QS", "YE": "YS"}.get(meant)
    if other:
        last, first = f"{count}{meant}{suffix}", f"{count}{other}{suffix}"
        return f"did you mean {last!r}, the last day, or {first!r}, the first?"
    return f"did you mean '{count}{meant}{suffix}'?"


def _parse_step(freq: Any, times: TimeType) -> Frequency:
    period = getattr(times.dtype, "freq", None)
    if period is not None:
        if not _same_period(freq, period):
            raise DataError(
                f"freq is {freq!r}, but the column of times holds periods of {period.freqstr!r}; "
                "leave freq out, or convert them with asfreq"
            )
        return Frequency(period.freqstr, period.n)
    if isinstance(freq, bool) or not isinstance(freq, int | np.integer) or freq < 1:
        raise DataError(
            f"freq must be an integer of at least 1 for a column of step numbers, but is {freq!r}"
        )
    return Frequency(str(int(freq)), int(freq))


def _same_period(freq: Any, period: Any) -> bool:
    import pandas as pd

    try:
        return pd.PeriodDtype(freq).freq == period
    except (ValueError, TypeError):
        return False


def infer_frequency(instants: Int64[np.ndarray, " rows"], times: TimeType) -> Frequency | None:
    """Finds the frequency of increasing times, of which some may be absent.

    The step is the smallest difference between neighbors, where all others are multiples of it
    and at least a quarter of its grid is there; else the most common one, where at least half of
    all are equal to it. Times at one time of day are dates: business days where weekends are left
    out, weeks, months, quarters and years by their first or last (business) day or by any other day
    of the month, half months, and else days.
    Not every time need be on the grid of the result. It is None where there are fewer than three
    times, or no such step.
    """
    import pandas as pd

    if isinstance(times.dtype, pd.PeriodDtype):
        return Frequency(times.dtype.freq.freqstr, times.dtype.freq.n)
    if len(instants) < 3:
        return None
    if not times.is_datetime:
        step = _common_step(instants)
        return None if step is None else Frequency(str(step), step)
    # Dates of a calendar are further apart than this, even where the clocks change.
    if np.diff(instants).min() > DAY * times.per_second * 3 // 4:
        days, _, daily = dates_at(instants, times)
        if daily.all():
            alias = _calendar_alias(days)
            return None if alias is None else parse_frequency(alias, times)
    step = _common_step(instants)
    return None if step is None else _span(step, times)


def _span(step: int, times: TimeType) -> Frequency:
    seconds = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
    for name, length in seconds:
        units = round(length * times.per_second)
        if units and step % units == 0:
            count = step // units
            return Frequency(name if count == 1 else f"{count}{name}", step)
    raise AssertionError("a step is a multiple of the column's own unit")


def _common_step(values: Int64[np.ndarray, " rows"]) -> int | None:
    steps, counts = np.unique(np.diff(values), return_counts=True)
    smallest = int(steps[0])
    points = int(values[-1] - values[0]) // smallest + 1
    if not (steps % smallest).any() and 4 * len(values) >= points:
        return smallest
    return int(steps[counts.argmax()]) if 2 * counts.max() >= counts.sum() else None


def _calendar_alias(days: Int64[np.ndarray, " rows"]) -> str | None:
    """The alias of a calendar that dates, in days since 1970, are likely to be on."""
    steps = np.diff(days)
    monthly = _month_alias(days) if steps.min() >= 28 else _half_months(days)
    if monthly is not None:
        return monthly
    step = _common_step(days)
    if step is None or _is_445(days):
        return None
    if not (steps % 7).any():
        weeks = step // 7
        # 1970 began on a Thursday.
        weekday = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")[(int(days[0]) + 3) % 7]
        return f"{weeks if weeks > 1 else ''}W-{weekday}"
    weekdays = (days + 3) % 7
    # A gap of a week or more does not tell whether weekends are left out.
    weekend_left_out = (np.diff(weekdays) < 0) & (steps < 7)
    if step == 1 and (weekdays < 5).all() and weekend_left_out.any():
        return "B"
    return "D" if step == 1 else f"{step}D"


def _is_445(days: Int64[np.ndarray, " rows"]) -> bool:
    """Whether dates are the months of a calendar of 4, 4 and 5 weeks."""
    return set(np.diff(days).tolist()) == {28, 35}


def why_irregular(instants: Int64[np.ndarray, " rows"], times: TimeType) -> str:
    """What is known of times for which `infer_frequency` finds nothing, as the end of a message."""
    if len(instants) > 2 and times.is_datetime and _is_445(dates_at(instants, times)[0]):
        return (
            "; its steps are of 4 and 5 weeks (a 4-4-5 calendar), for which there is no frequency: "
            "number its periods 0, 1, 2, or give weekly rows"
        )
    return ""


def _half_months(days: Int64[np.ndarray, " rows"]) -> str | None:
    """The alias of dates at the 15th and at the first or last day of months."""
    if np.diff(days).min() < 13 or len(days) < 3:
        return None
    of_month = _days_of_month(days)
    others = days[of_month != 15]
    first = (_days_of_month(others) == 1).all()
    last = (_days_of_month(others + 1) == 1).all()
    if not others.size or len(others) == len(days) or not (first or last):
        return None
    return "SMS-15" if first else "SME-15"


def _month_alias(days: Int64[np.ndarray, " rows"]) -> str | None:
    """The alias of months, quarters or years; None where the dates are not at one day of them."""
    ordinals = months_of(days)
    if not np.diff(ordinals).all():
        return None
    step = _common_step(ordinals)
    if step is None:
        return None
    months = ordinals.astype("M8[M]")
    first, last = months.astype("M8[D]"), (months + 1).astype("M8[D]") - 1
    anchors = {
        "S": first,
        "E": last,
        "BS": np.busday_offset(first, 0, roll="forward"),
        "BE": np.busday_offset(last, 0, roll="backward"),
    }
    anchor = next((a for a, d in anchors.items() if (d.astype(np.int64) == days).all()), None)
    if anchor is None:
        if (MonthDay(None).of(days).dates(ordinals) != days).any():
            return None
        return f"DateOffset(years={step // 12})" if step % 12 == 0 else f"DateOffset(months={step})"
    letter, business = anchor[-1], anchor[:-1]
    # January is 0. A quarter is named by its first month of the year, or by its last.
    month = int(ordinals[0]) % 12
    names = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
    if step % 12 == 0:
        unit, count, suffix = "Y", step // 12, f"-{names[month]}"
    elif step % 3 == 0:
        quarter = month % 3 if letter == "S" else 9 + month % 3
        unit, count, suffix = "Q", step // 3, f"-{names[quarter]}"
    else:
        unit, count, suffix = "M", step, ""
    return f"{count if count > 1 else ''}{business}{unit}{letter}{suffix}"


def dates_at(
    instants: Int64[np.ndarray, " rows"], times: TimeType
) -> tuple[Int64[np.ndarray, " rows"], int, Bool[np.ndarray, " rows"]]:
    """The dates in days since 1970, their common time of day, and which times are at it."""
    units = DAY * times.per_second
    days, clocks = np.divmod(times.walls(instants), units)
    common, counts = np.unique(clocks, return_counts=True)
    clock = int(common[counts.argmax()])
    on_clock = clocks == clock
    off = np.flatnonzero(~on_clock)
    if off.size and times.zone is not None:
        # Where the clocks skip midnight, the day begins at the first time that they show.
        on_clock[off] = times.from_walls(days[off] * units + clock) == instants[off]
    return days, clock, on_clock
