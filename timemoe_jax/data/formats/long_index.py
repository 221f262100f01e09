"""Which rows of a long table are which series."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from timemoe_jax.errors import DataError


class LongPart(NamedTuple):
    """Some consecutive rows of a long table."""

    codes: Int64[np.ndarray, " rows"]  # positions of the ids in `labels`, -1 for none
    labels: Sequence[Any]
    times: Shaped[np.ndarray, " rows"] | None  # integers, floats or datetime64, if there are any


class LongIndex:
    """Which rows of a long table are which series, in the order of their times.

    `ids` and `lengths` say what the series are, in the order in which they first appear. The index
    keeps one entry per run of consecutive rows of a series, so next to nothing for a table that is
    sorted by id. `parts` makes an iterator over all rows; where the rows of a series are not in the
    order of their times, it is called a second time.

    Raises:
      DataError: a row has no id or no time, or two rows of a series have the same time.
    """

    def __init__(self, where: str, parts: Callable[[], Iterator[LongPart]]):
        self._where = where
        self._codes: dict[Any, int] = {}
        self._last = np.zeros(0, np.int64)
        codes, first, count = [], [], []
        row, sorted_by_time = 0, True
        for part in parts():
            at = self._global_codes(part, row)
            sorted_by_time = sorted_by_time and self._continues(at, self._times(part, row))
            starts = np.flatnonzero(np.diff(at, prepend=-1))
            codes.append(at[starts])
            first.append(starts + row)
            count.append(np.diff(starts, append=len(at)))
            row += len(at)
        if not sorted_by_time:
            codes, first, count = self._sorted_runs(parts)
        self.ids = tuple(str(label) for label in self._codes)
        of_run, counts = np.concatenate(codes), np.concatenate(count)
        # The runs of each series, put together.
        order = np.argsort(of_run, kind="stable")
        self._first = np.concatenate(first)[order]
        # Points are numbered through all series: run k holds those from the k-th number on.
        self._points = np.concatenate([[0], np.cumsum(counts[order])])
        self.lengths = np.zeros(len(self.ids), np.int64)
        np.add.at(self.lengths, of_run, counts)
        self._begins = np.concatenate([[0], np.cumsum(self.lengths)])

    def rows(self, i: int, start: int, stop: int) -> Int64[np.ndarray, " _"]:
        """The rows of points `start` to `stop` of series `i`; `stop` may lie in a later series."""
        begin, end = int(self._begins[i]) + start, int(self._begins[i]) + stop
        if begin >= end:
            return np.zeros(0, np.int64)
        a = int(np.searchsorted(self._points, begin, side="right")) - 1
        b = int(np.searchsorted(self._points, end, side="left"))
        shift = np.repeat(self._first[a:b] - self._points[a:b], np.diff(self._points[a : b + 1]))
        return shift[begin - self._points[a] :][: end - begin] + np.arange(begin, end)

    def _global_codes(self, part: LongPart, row: int) -> Int64[np.ndarray, " rows"]:
        missing = np.flatnonzero(part.codes < 0)
        if missing.size:
            raise DataError(
                f"{self._where} has no id in row {row + missing[0]}; every row needs one"
            )
        known = self._codes
        table = [known.setdefault(label, len(known)) for label in part.labels]
        return np.array(table, np.int64)[part.codes]

    def _times(self, part: LongPart, row: int) -> np.ndarray | None:
        if part.times is None:
            return None
        datetimes = part.times.dtype.kind == "M"
        missing = np.flatnonzero(np.isnat(part.times) if datetimes else np.isnan(part.times))
        if missing.size:
            raise DataError(
                f"{self._where} has no time in row {row + missing[0]}; every row needs one"
            )
        return part.times.view(np.int64) if datetimes else part.times

    def _continues(self, codes: np.ndarray, times: np.ndarray | None) -> bool:
        """Whether the times of every series still ascend; remembers the last time of each."""
        if times is None or not len(times):
            return True
        order = np.argsort(codes, kind="stable")
        codes, times = codes[order], times[order]
        same = codes[1:] == codes[:-1]
        first = np.flatnonzero(np.concatenate([[True], ~same]))
        last = np.append(first[1:], len(codes)) - 1
        before = np.zeros(len(self._codes), times.dtype)
        before[: len(self._last)] = self._last
        old = codes[first] < len(self._last)
        late = times[first][old] <= before[codes[first][old]]
        before[codes[last]] = times[last]
        self._last = before
        return not (np.any(late) or np.any(same & (times[1:] <= times[:-1])))

    def _sorted_runs(
        self, parts: Callable[[], Iterator[LongPart]]
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """The runs of a table whose rows are not in order, found by sorting all rows."""
        codes: list[np.ndarray] = []
        times: list[np.ndarray] = []
        row = 0
        for part in parts():
            codes.append(self._global_codes(part, row))
            part_times = self._times(part, row)
            assert part_times is not None, "only times can be out of order"
            times.append(part_times)
            row += len(codes[-1])
        at, when = np.concatenate(codes), np.concatenate(times)
        order = np.lexsort((when, at))
        at, when = at[order], when[order]
        twice = np.flatnonzero((at[1:] == at[:-1]) & (when[1:] == when[:-1]))
        if twice.size:
            rows = sorted(order[twice[0] : twice[0] + 2].tolist())
            label = list(self._codes)[at[twice[0]]]
            raise DataError(
                f"{self._where}: rows {rows[0]} and {rows[1]} give the series {str(label)[:40]!r} "
                "two values at the same time; every time must come once"
            )
        # A run also ends where the next series begins.
        breaks = np.flatnonzero((np.diff(order) != 1) | (np.diff(at) != 0)) + 1
        starts = np.concatenate([[0], breaks])
        return [at[starts]], [order[starts]], [np.diff(starts, append=len(order))]
