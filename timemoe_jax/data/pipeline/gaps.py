"""Times without a row become missing points, as they do when a series is forecast."""

from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int64, Shaped

from timemoe_jax.data.series_source import SequenceSource

# A filled series may be this many times as long as its rows, and this much longer in any case.
_MOST_RATIO = 100
_ROOM = 10_000
_DAY = np.timedelta64(1, "D")


class FilledSource(SequenceSource):
    """Series of another source with NaN at each regular time that has no row.

    Only sources that know their times have any: tables. The series that change are kept in memory,
    all else is read from the source.
    """

    def __init__(self, source: SequenceSource):
        self._source = source
        self.irregular = 0  # series whose times have no common step, which stay as they are
        self._filled: dict[int, np.ndarray] = {}
        for i, times in enumerate(source.all_times()):
            self._fill(i, times)
        self.lengths = source.lengths.astype(np.int64)
        for i, values in self._filled.items():
            self.lengths[i] = len(values)
        self.absent = int((self.lengths - source.lengths).sum())  # points that were added
        self.skipped_files, self.frequency = source.skipped_files, source.frequency
        self.ignored_columns = source.ignored_columns

    def _fill(self, i: int, times: Shaped[np.ndarray, " T"] | None) -> None:
        if times is None or len(times) < 3:
            return
        positions = regular_positions(times)
        if positions is None:
            self.irregular += 1
        elif positions[-1] >= len(times):
            values = self._source[i]
            filled = np.full(int(positions[-1]) + 1, np.nan, values.dtype)
            filled[positions] = values
            self._filled[i] = filled

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        if i in self._filled:
            return self._filled[i][start:stop]
        return self._source.read(i, start, stop)

    def read_stored(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """As `SequenceSource.read_stored` says."""
        if i in self._filled:
            return self._filled[i][start:stop]
        return self._source.read_stored(i, start, stop)

    def groups(self) -> Int64[np.ndarray, " num_sequences"]:
        """Those of the source: series of the same times stay aligned."""
        return self._source.groups()

    def name(self, i: int) -> str:
        """What the source calls series `i`."""
        return self._source.name(i)

    def label(self, i: int) -> str:
        """The name that the source has for series `i`."""
        return self._source.label(i)

    def times(self, i: SupportsIndex) -> Shaped[np.ndarray, " T"] | None:
        """Those of the source; None of a series that was filled."""
        return None if int(self._checked(i)) in self._filled else self._source.times(i)

    def frequency_of(self, i: SupportsIndex) -> str | None:
        """The frequency that the source knows of series `i`."""
        return self._source.frequency_of(i)


def regular_positions(times: Shaped[np.ndarray, " T"]) -> Int64[np.ndarray, " T"] | None:
    """Where rising times lie on the grid of their most frequent step; None if they have none.

    Times are datetime64 or numbers. Months, quarters and years are steps of a calendar where all
    dates have one day of the month or are its last; days without any weekend are working days.
    """
    if (times[1:] <= times[:-1]).any():
        return None
    for count in (times, _months(times), _working_days(times)):
        positions = None if count is None else _on_steps(count)
        if positions is not None and positions[-1] < _MOST_RATIO * len(times) + _ROOM:
            if count is times and _is_daily(times) and _working_days(times) is not None:
                continue
            return positions
    return None


def _on_steps(count: Shaped[np.ndarray, " T"]) -> Int64[np.ndarray, " T"] | None:
    """Positions in units of the most frequent difference, if all are multiples of it."""
    if count.dtype.kind == "f" and not np.isfinite(count).all():
        return None
    steps, times_seen = np.unique(np.diff(count), return_counts=True)
    step = steps[np.argmax(times_seen)]
    multiples = (count - count[0]) / step
    positions = np.rint(multiples).astype(np.int64)
    return positions if np.allclose(multiples, positions, rtol=0, atol=1e-6) else None


def _months(times: Shaped[np.ndarray, " T"]) -> Int64[np.ndarray, " T"] | None:
    """Dates as numbers of months, where they are all at one place of their month."""
    if times.dtype.kind != "M":
        return None
    months = times.astype("datetime64[M]")
    into = times - months
    before_end = (months + 1).astype("datetime64[D]") - times.astype("datetime64[D]")
    same = (into == into[0]).all() or (before_end == _DAY).all()
    return months.astype(np.int64) if same else None


def _working_days(times: Shaped[np.ndarray, " T"]) -> Int64[np.ndarray, " T"] | None:
    """Dates as numbers of working days, where no weekend is among more than a week of them."""
    if times.dtype.kind != "M" or times[-1] - times[0] <= 7 * _DAY:
        return None
    days = times.astype("datetime64[D]")
    same_clock = (times - days == times[0] - days[0]).all()
    if not same_clock or not np.is_busday(days).all():
        return None
    return np.busday_count(days[0], days)


def _is_daily(times: Shaped[np.ndarray, " T"]) -> bool:
    return times.dtype.kind == "M" and bool(np.min(np.diff(times)) == _DAY)
