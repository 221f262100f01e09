"""The regular times of a series: a frequency, the times on its grid, and those that follow.

Hours and shorter steps are spans of time: they run in UTC, so that a day has 23 or 25 of them when
the clocks change. Days and longer steps are dates of a calendar, each at one time of day: they run
in local time, so that a day ends where the next one begins, whatever its length.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.times import TimeType

DAY = 86400  # seconds

# A grid may be this many times as long as its rows, and this much longer in any case.
MAX_GRID_RATIO = 100
MIN_GRID_ROOM = 10_000


class Frequency(NamedTuple):
    """The step between the times of a series."""

    alias: str  # of pandas, or for step numbers the step as text
    step: int  # in units of the column, or multiples of `base`
    base: Any = None  # the pandas offset of a calendar; None for spans, periods and step numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """All times of a series from its first to its last."""

    frequency: Frequency
    instants: Int64[np.ndarray, " T"]  # as `TimeType.index` takes them
    positions: Int64[np.ndarray, " rows"] | None  # of the rows, None where every point has one
    clock: int  # the time of day of a calendar's dates, in units of the column, else 0

    def place(self, values: Shaped[np.ndarray, " rows"], absent: float) -> Shaped[np.ndarray, " T"]:
        """Lays what the rows hold on the grid, with `absent` where there is no row."""
        if self.positions is None:
            return values
        placed = np.full(len(self.instants), absent)
        placed[self.positions] = values
        return placed


def parse_frequency(freq: Any, times: TimeType) -> Frequency:
    """Parses the frequency that a caller gives.

    That is a pandas alias such as "h", "15min", "D", "B", "W-SUN", "MS", "2QS" or an offset; for
    step numbers it is an integer.
    """
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    if not times.is_datetime:
        return _parse_step(freq, times)
    if not isinstance(freq, str | pd.offsets.BaseOffset):
        raise DataError(f"freq must be a pandas alias such as 'h', 'D' or 'MS', but is {freq!r}")
    try:
        offset = to_offset(freq)
    except ValueError as error:
        reason = str(error).rsplit("ValueError(")[-1].strip("\")'.")
        raise DataError(f"freq {freq!r} is no pandas frequency: {reason}") from None
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
    hourly = isinstance(offset, pd.offsets.BusinessHour | pd.offsets.CustomBusinessHour)
    if hourly or type(offset) is pd.DateOffset:
        raise DataError(f"freq {offset.freqstr!r} is not supported; give an alias such as 'h', 'D'")
    return Frequency(offset.freqstr, int(offset.n), offset.base)


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
    out, weeks, months, quarters and years by their first or last (business) day, and else days.
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
        days, _, daily = _dates(instants, times)
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
    monthly = _month_alias(days) if steps.min() >= 28 else None
    if monthly is not None:
        return monthly
    step = _common_step(days)
    if step is None:
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


def _month_alias(days: Int64[np.ndarray, " rows"]) -> str | None:
    """The alias of months, quarters or years; None where the dates are no ends of months."""
    months = days.astype("M8[D]").astype("M8[M]")
    first, last = months.astype("M8[D]"), (months + 1).astype("M8[D]") - 1
    anchors = {
        "S": first,
        "E": last,
        "BS": np.busday_offset(first, 0, roll="forward"),
        "BE": np.busday_offset(last, 0, roll="backward"),
    }
    anchor = next((a for a, d in anchors.items() if (d.astype(np.int64) == days).all()), None)
    ordinals = months.astype(np.int64)
    step = _common_step(ordinals)
    if anchor is None or step is None:
        return None
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


def lay_out(
    instants: Int64[np.ndarray, " rows"], frequency: Frequency, times: TimeType, where: str
) -> Grid:
    """Makes the grid from the first to the last of some increasing times."""
    if frequency.base is not None:
        return _lay_out_dates(instants, frequency, times, where)
    step = frequency.step
    _check_room(instants, (int(instants[-1]) - int(instants[0])) // step + 1, times, where)
    positions, rest = np.divmod(instants - instants[0], step)
    if rest.any():
        # The first row may be the wrong one, so that the remainder of most rows counts as right.
        phases, counts = np.unique(instants % step, return_counts=True)
        _refuse(instants, instants % step == phases[counts.argmax()], frequency, times, where)
    if positions[-1] + 1 == len(instants):
        return Grid(frequency, instants, None, 0)
    grid = instants[0] + step * np.arange(positions[-1] + 1)
    return Grid(frequency, grid, positions, 0)


def _lay_out_dates(
    instants: Int64[np.ndarray, " rows"], frequency: Frequency, times: TimeType, where: str
) -> Grid:
    days, clock, on_clock = _dates(instants, times)
    calendar = _dates_between(frequency.base, int(days[0]), int(days[-1]))
    places = np.searchsorted(calendar, days)
    on_calendar = np.append(calendar, days[-1] + 1)[places] == days
    phases, counts = np.unique(places % frequency.step, return_counts=True)
    on_phase = places % frequency.step == phases[counts.argmax()]
    for fits in (on_clock, on_calendar, on_phase):
        _refuse(instants, fits, frequency, times, where)
    positions = (places - places[0]) // frequency.step
    _check_room(instants, int(positions[-1]) + 1, times, where)
    if positions[-1] + 1 == len(instants):
        return Grid(frequency, instants, None, clock)
    units = DAY * times.per_second
    grid = times.from_walls(calendar[places[0] :: frequency.step] * units + clock)
    # A row keeps its own instant, since it may be in the second of two equal hours.
    grid[positions] = instants
    return Grid(frequency, grid, positions, clock)


def _dates(
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


def _dates_between(base: Any, first: int, last: int) -> Int64[np.ndarray, " dates"]:
    """All dates of a calendar from one day to another, in days since 1970."""
    import pandas as pd

    if isinstance(base, pd.offsets.Day):
        return np.arange(first, last + 1)
    if isinstance(base, pd.offsets.Week):
        return np.arange(first + (base.weekday - first - 3) % 7, last + 1, 7)
    if type(base) is pd.offsets.BusinessDay:
        days = np.arange(first, last + 1)
        return days[(days + 3) % 7 < 5]
    ends = (pd.Timestamp(np.datetime64(day, "D")) for day in (first, last))
    dates = pd.date_range(*ends, freq=base, unit="s")
    return dates.asi8 // DAY


def _refuse(
    instants: Int64[np.ndarray, " rows"],
    fits: Bool[np.ndarray, " rows"],
    frequency: Frequency,
    times: TimeType,
    where: str,
) -> None:
    if not fits.all():
        first = times.show(int(instants[fits.argmin()]))
        raise DataError(
            f"{where}: the time {first} is not on the grid of the frequency {frequency.alias!r} "
            f"({int((~fits).sum())} such rows of {len(fits)}); give freq=, or correct the times"
        )


def _check_room(
    instants: Int64[np.ndarray, " rows"], points: int, times: TimeType, where: str
) -> None:
    if points <= max(MIN_GRID_ROOM + len(instants), MAX_GRID_RATIO * len(instants)):
        return
    at = int(np.diff(instants).argmax())
    before, after = (times.show(int(instants[i])) for i in (at, at + 1))
    raise DataError(
        f"{where}: {len(instants)} rows would become a grid of {points} points; its largest gap is "
        f"from {before} to {after}: correct the times, or give a coarser freq="
    )


@functools.lru_cache(maxsize=4096)
def next_instants(
    last: int, clock: int, frequency: Frequency, times: TimeType, horizon: int
) -> Int64[np.ndarray, " H"]:
    """The times that follow a grid, as a read-only array that calls share."""
    instants = _following(last, clock, frequency, times, horizon)
    room = np.iinfo(times.dtype if getattr(times.dtype, "kind", "M") in "iu" else np.int64)
    # Times overflow beyond the last that int64 holds.
    again = instants[0] < last or (instants[1:] < instants[:-1]).any()
    if again or instants[-1] > room.max:
        raise DataError(
            f"{horizon} steps of {frequency.alias!r} after {times.show(last)} are more than the "
            f"column's type {times.dtype} can hold; convert it to a coarser unit or to int64"
        )
    instants.flags.writeable = False
    return instants


def _following(
    last: int, clock: int, frequency: Frequency, times: TimeType, horizon: int
) -> Int64[np.ndarray, " H"]:
    import pandas as pd

    if frequency.base is None:
        return last + frequency.step * np.arange(1, horizon + 1)
    units = DAY * times.per_second
    day = int(times.walls(np.array([last], np.int64))[0]) // units
    count = horizon * frequency.step
    if isinstance(frequency.base, pd.offsets.Day | pd.offsets.Week):
        length = 7 if isinstance(frequency.base, pd.offsets.Week) else 1
        days = day + length * np.arange(1, count + 1)
    else:
        start = pd.Timestamp(np.datetime64(day, "D"))
        dates = pd.date_range(start, periods=count + 1, freq=frequency.base, unit="s")
        days = (dates.asi8 // DAY)[1:]
    return times.from_walls(days[frequency.step - 1 :: frequency.step] * units + clock)
