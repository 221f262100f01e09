"""The regular times of a series: those on the grid of its frequency, and those that follow."""

import dataclasses
import functools
import hashlib
from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.frequencies import (
    DAY,
    Frequency,
    MonthDay,
    dates_at,
    infer_frequency,
    months_of,
    why_irregular,
)
from timemoe_jax.forecasting.frames.rows import SortedRows
from timemoe_jax.forecasting.frames.times import TimeType

# A grid may be this many times as long as its rows, and this much longer in any case.
MAX_GRID_RATIO = 100
MIN_GRID_ROOM = 10_000
# Fewer rows are on many grids.
SURE_ROWS = 4


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


def grids_of(rows: SortedRows, frequency: Frequency | None) -> list[Grid]:
    """The grid of each series, of a frequency that all have or of its own.

    A series whose rows are too few or too irregular to find its frequency takes that of the others.
    So does one with few or absent rows, if it is on the grid of the frequency that most rows of the
    frame have: a sale every three days or so is no series of three days among daily ones. Series
    with the same times share one object.

    Raises:
      DataError: no frequency can be found, or a time is not on the grid.
    """
    times, keys = rows.times, []
    parts: dict[bytes, Int64[np.ndarray, " rows"]] = {}
    labels: dict[bytes, str] = {}
    counts: Counter[bytes] = Counter()
    for i, label in enumerate(rows.labels):
        part = rows.instants[rows.part(i)]
        keys.append(hashlib.blake2b(part.data, digest_size=16).digest())
        parts.setdefault(keys[-1], part)
        labels.setdefault(keys[-1], label)
        counts[keys[-1]] += len(part)
    found = {key: frequency or infer_frequency(part, times) for key, part in parts.items()}
    most: Counter[Frequency] = Counter()
    for key, own in found.items():
        if own is not None:
            most[own] += counts[key]
    panel = most.most_common(1)[0][0] if most else None
    grids = {
        key: _grid_of(part, found[key], panel, list(most), times, labels[key])
        for key, part in parts.items()
    }
    return [grids[key] for key in keys]


def _grid_of(
    instants: Int64[np.ndarray, " rows"],
    own: Frequency | None,
    panel: Frequency | None,
    known: list[Frequency],
    times: TimeType,
    label: str,
) -> Grid:
    if own is None:
        if len(known) != 1:
            names = ", ".join(each.alias for each in known)
            why = f"the others have {names}" if known else "no other series has one"
            raise DataError(
                f"{label} has {len(instants)} rows, too few or too irregular to find its "
                f"frequency, and {why}; give freq={why_irregular(instants, times)}"
            )
        own = known[0]
    if panel is None or own == panel:
        return lay_out(instants, own, times, label)
    try:
        common = lay_out(instants, panel, times, label)
    except DataError:
        return lay_out(instants, own, times, label)
    if len(common.instants) == len(instants):
        return common
    import pandas as pd

    days_or_weeks = pd.offsets.Day | pd.offsets.Week | pd.offsets.BusinessDay
    alone = lay_out(instants, own, times, label)
    enough = len(instants) >= SURE_ROWS
    # Months and years are no chance, and nor is a grid of which every point is there.
    of_months = own.base is not None and not isinstance(own.base, days_or_weeks)
    return alone if enough and (of_months or alone.positions is None) else common


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
    days, clock, on_clock = dates_at(instants, times)
    if isinstance(frequency.base, MonthDay):
        frequency = frequency._replace(base=frequency.base.of(days))
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


def _dates_between(base: Any, first: int, last: int) -> Int64[np.ndarray, " dates"]:
    """All dates of a calendar from one day to another, in days since 1970."""
    import pandas as pd

    if isinstance(base, MonthDay):
        begin, end = months_of(np.array([first, last])).tolist()
        dates = base.dates(np.arange(begin, end + 1))
        return dates[(dates >= first) & (dates <= last)]
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
    elif isinstance(frequency.base, MonthDay):
        days = frequency.base.dates(int(months_of(np.array(day))) + np.arange(1, count + 1))
    else:
        start = pd.Timestamp(np.datetime64(day, "D"))
        dates = pd.date_range(start, periods=count + 1, freq=frequency.base, unit="s")
        days = (dates.asi8 // DAY)[1:]
    return times.from_walls(days[frequency.step - 1 :: frequency.step] * units + clock)
