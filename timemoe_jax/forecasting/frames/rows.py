"""Which rows of a data frame are which series, in the order of their times."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from timemoe_jax.data.formats.frames import layout_of
from timemoe_jax.data.formats.table_layout import TARGET_NAMES, ColumnNames, Layout, listed
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.times import TimeType


def timed_layout(frame: Any, names: ColumnNames, covariates: tuple[str, ...], where: str) -> Layout:
    """The layout of a frame, as `layout_of` finds it, of series that have times."""
    roles = {names.id, names.timestamp, *names.targets}
    for name in covariates:
        if name not in frame.columns or name in roles:
            has = "it is also named as something else" if name in roles else "it is no column"
            raise DataError(f"{where}: {name!r} cannot be a covariate: {has}")
    layout = layout_of(frame, names, where, covariates)
    if layout.kind == "list":
        raise DataError(
            f"{where} holds a list of values in each row of {layout.targets[0]!r}, which has no "
            "times; give a row per point"
        )
    named = [name for name in layout.targets if name in TARGET_NAMES]
    if layout.kind == "wide" and not names.targets and named and len(layout.targets) > 1:
        raise DataError(
            f"{where} has no id column, and {named[0]!r} could be its only target or one of the "
            f"series {listed(layout.targets)}; name the target"
        )
    if layout.timestamp is None:
        raise DataError(
            f"{where} has no column of times that is called ds or timestamp or holds dates; name "
            f"the timestamp column: one of {listed(frame.columns)}"
        )
    return layout


class SortedRows:
    """The rows of a frame, sorted by series and then by time; no series has two at one time.

    `codes` holds the position of each row's id in `ids`; both are None for a single series, which
    errors call `single`. `order` holds the rows in their new order, None where they have it
    already, `instants` their times in it, `starts` where each series starts in it, then the number
    of rows, and `reordered` how many rows of each series were out of place in time.
    """

    def __init__(
        self,
        codes: Int64[np.ndarray, " rows"] | None,
        ids: Any,
        instants: Int64[np.ndarray, " rows"],
        times: TimeType,
        where: str,
        single: str,
    ):
        self.labels = [single] if ids is None else [f"series {label!s:.40}" for label in ids]
        self.times = times
        self.order = None
        self.reordered = np.zeros(len(self.labels), np.int64)
        self.starts = np.array([0, len(instants)])
        if codes is not None:
            counts = np.bincount(codes, minlength=len(self.labels))
            self.starts = np.concatenate([[0], np.cumsum(counts)])
            if (codes[1:] < codes[:-1]).any():
                # NumPy sorts integers of 16 bits in linear time.
                small = codes.astype(np.min_scalar_type(len(self.labels)))
                self.order = np.argsort(small, kind="stable")
                instants = instants[self.order]
        self.instants = instants
        backward = self._within(instants[1:] < instants[:-1])
        if backward.any():
            self._sort_by_time(np.unique(self._series_of(np.flatnonzero(backward))))
        self._check_once(where)

    def _sort_by_time(self, series: Int64[np.ndarray, " _"]) -> None:
        order = np.arange(len(self.instants)) if self.order is None else self.order
        self.order, self.instants = order, self.instants.copy()
        for i in series:
            part = self.part(i)
            by_time = np.argsort(self.instants[part], kind="stable")
            self.reordered[i] = int((by_time != np.arange(len(by_time))).sum())
            order[part] = order[part][by_time]
            self.instants[part] = self.instants[part][by_time]

    def _within(self, pairs: Bool[np.ndarray, " _"]) -> Bool[np.ndarray, " _"]:
        """Clears what is said of pairs of neighbors that are of different series."""
        inner = self.starts[1:-1]
        pairs[inner[(inner > 0) & (inner < self.starts[-1])] - 1] = False
        return pairs

    def _series_of(self, rows: Any) -> Any:
        return np.searchsorted(self.starts, rows, side="right") - 1

    def _check_once(self, where: str) -> None:
        again = self._within(self.instants[1:] == self.instants[:-1])
        if again.any():
            series, time = self.describe(int(again.argmax()))
            named = "" if series == where else f"{series} has "
            raise DataError(
                f"{where}: {named}two rows or more at {time} ({int(again.sum())} such rows in "
                "all); every time must come once in a series. Name the id column if the rows are "
                "of different series"
            )

    def part(self, i: int) -> slice:
        """Where the rows of series `i` are in the order."""
        return slice(self.starts[i], self.starts[i + 1])

    def numbers(self, i: int) -> Int64[np.ndarray, " _"]:
        """The rows of the frame that are of series `i`, in the order of their times."""
        part = self.part(i)
        return np.arange(part.start, part.stop) if self.order is None else self.order[part]

    def describe(self, row: int) -> tuple[str, str]:
        """Names the series and the time of a row of the order in a message."""
        return self.labels[self._series_of(row)], self.times.show(int(self.instants[row]))
