"""Windows of several aligned series, for models that read them together."""

import numpy as np

from timemoe_jax.data.calendar import ROWS, calendar_marks
from timemoe_jax.data.pipeline.standardize import StandardizedSeries
from timemoe_jax.data.pipeline.tails import JointOriginIndex, pieces_of
from timemoe_jax.data.pipeline.windows import Extent, Numbers, WindowIndex, Windows
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError


class JointIndex:
    """Where the windows of groups of aligned series lie.

    A group (`SequenceSource.groups`) of more than `variates` series is cut into pieces of that many
    neighbors; a smaller one leaves the rest of a window's variates empty. The windows of a piece
    begin where `WindowIndex` lets those of a single series begin; `padded_points` counts the empty
    variates, too.
    """

    def __init__(
        self, source: SequenceSource, variates: int, length: int, stride: int, future: int = 1
    ):
        if variates < 1:
            raise DataError(f"variates must be at least 1, but is {variates}")
        self.variates, self.num_sequences = variates, len(source)
        self._first, self._sizes = pieces_of(source.groups(), variates)
        lengths = source.lengths[self._first]
        differing = np.flatnonzero(source.lengths != np.repeat(lengths, self._sizes))
        if differing.size:
            raise DataError(
                f"{source.name(int(differing[0]))} has {source.lengths[differing[0]]} points, but "
                "the series beside it another number; series of one window must be aligned"
            )
        self._pieces = WindowIndex(lengths, length, stride, future)
        self.length, self.size = self._pieces.length, self._pieces.size
        counts, covered = self._pieces.count(lengths)
        padding = np.where(counts > 0, np.maximum(self.size - lengths, 0), 0)
        self._points = np.cumsum(self._sizes * (counts * self.size - padding))
        self.skipped_sequences = int(np.sum(self._sizes[lengths < 2]))
        self.uncovered_points = int(np.sum(self._sizes * (lengths - covered)))
        cells = len(self) * self.size * variates
        self.padded_points = cells - (int(self._points[-1]) if len(self._points) else 0)

    @property
    def firsts(self) -> list[int]:
        """The first series of every piece."""
        return self._first.tolist()

    def __len__(self) -> int:
        return len(self._pieces)

    def extent(self, first: int, stop: int) -> Extent:
        """Windows and points of a range of series, which must not cut a group."""
        begin, end = np.searchsorted(self._first, [first, stop]).tolist()
        windows = self._pieces.extent(begin, end)
        before = [int(self._points[i - 1]) if i else 0 for i in (begin, end)]
        return Extent(windows.first, windows.stop, before[1] - before[0])

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """The first series of each window, how many there are, and the first point in them."""
        pieces, starts = self._pieces.locate(numbers)
        return self._first[pieces], self._sizes[pieces], starts


class JointWindows(Windows):
    """Random access to windows of aligned series, each z-scored by its whole series.

    Item i is {"values": float32 [C, size], "mask": bool [C, size], "sequence": int64 [C]}; a
    variate that the group does not have is masked throughout, and its sequence is -1. With a
    `calendar` there are "marks" too, float32 [5, size] (`data.calendar`), zeros past the end.

    Raises:
      DataError: a calendar is asked for, but the source does not know its times.
    """

    index: JointIndex | JointOriginIndex

    def __init__(
        self, source: SequenceSource, index: JointIndex | JointOriginIndex, calendar: bool = False
    ):
        self.source, self.index = source, index
        self._series = StandardizedSeries(source)
        self._marks: dict[int, np.ndarray] = {}  # of all times of a group, by its first series
        self._calendar = calendar
        if calendar:
            for first in index.firsts:
                self._marks_of(first)

    def _marks_of(self, first: int) -> np.ndarray:
        if first not in self._marks:
            times = self.source.times(first)
            if times is None or np.asarray(times).dtype.kind != "M":
                raise DataError(
                    f"data.calendar is on, but {self.source.name(first)} has no column of times; "
                    "give a table with one, such as a CSV, or turn it off"
                )
            self._marks[first] = calendar_marks(times)
        return self._marks[first]

    def batch(self, numbers: Numbers) -> dict[str, np.ndarray]:
        """As `Windows.batch`: "values" and "mask" [B, C, size], "sequence" [B, C]."""
        shape = (len(numbers), self.index.variates, self.index.size)
        values, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        sequence = np.full(shape[:2], -1, np.int64)
        more = {}
        if self._calendar:
            more["marks"] = np.zeros((shape[0], ROWS, shape[2]), np.float32)
        rows = np.flatnonzero(numbers >= 0)
        located = zip(*(a.tolist() for a in self.index.locate(numbers[rows])), strict=True)
        for row, (first, variates, start) in zip(rows.tolist(), located, strict=True):
            stop = min(self.source.lengths.item(first) - start, self.index.size)
            part, begin = slice(max(-start, 0), stop), max(start, 0)  # from where the series begins
            for c in range(variates):
                self._series.read(first + c, begin, values[row, c, part], mask[row, c, part])
            sequence[row, :variates] = range(first, first + variates)
            if self._calendar:
                more["marks"][row, :, part] = self._marks_of(first)[:, begin : start + stop]
        return {"values": values, "mask": mask, "sequence": sequence, **more}
