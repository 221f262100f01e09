"""Windows of a fixed length over the series of a source, standardized and masked."""

import abc
import dataclasses
from typing import Any, Protocol, SupportsIndex

import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.pipeline.standardize import StandardizedSeries
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError

Numbers = Int64[np.ndarray, " B"]  # of windows, or of their series

# Series whose windows are counted at a time.
_CHUNK_SEQUENCES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Extent:
    """Windows and points of a range of series."""

    first: int  # their first window
    stop: int  # the window after their last
    points: int  # those in their windows, without padding; a point in two windows counts twice

    def __len__(self) -> int:
        return self.stop - self.first


class Index(Protocol):
    """Where windows of `size` points lie."""

    length: int  # the number of inputs of a window
    size: int  # the number of its points: the inputs, and the targets after them
    num_sequences: int  # how many series the index was made for
    skipped_sequences: int  # how many series have fewer than two points
    uncovered_points: int  # how many points are in no window, with those of skipped series
    padded_points: int  # how many points of the windows belong to no series

    def __len__(self) -> int: ...

    def extent(self, first: int, stop: int) -> Extent:
        """The extent of series `first` to `stop`, which share no window with other series."""


class Locator(Index, Protocol):
    """An index whose windows lie within one series each."""

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """The number of each window's series, and its first point there."""


class Windows(abc.ABC):
    """Random access to windows: dictionaries of arrays, of the same shapes for each."""

    source: SequenceSource
    index: Index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        numbers = np.array([i.__index__()], np.int64)
        check_numbers(numbers, len(self))
        return {name: array[0] for name, array in self.batch(numbers).items()}

    @abc.abstractmethod
    def batch(self, numbers: Numbers) -> dict[str, np.ndarray]:
        """Stacks windows along axis 0; for -1 an empty one, of mask False and sequence -1."""


class WindowIndex:
    """An `Index` of windows of `length + future` points: inputs are the first `length` of them.

    Every series of at least two points has a first window, padded on the right where the series is
    shorter; further windows begin at each multiple of `stride`, by default `length`, from which a
    whole window fits. Memory grows with the series, not the windows.
    """

    def __init__(
        self,
        lengths: Int64[np.ndarray, " num_sequences"],
        length: int,
        stride: int | None = None,
        future: int = 1,
    ):
        self.length = length
        self.size = length + future
        self.stride = length if stride is None else stride
        if self.length < 1 or self.stride < 1 or future < 1:
            raise DataError(
                f"window length {self.length}, stride {self.stride} and future {future} must all "
                "be at least 1"
            )
        self.num_sequences = len(lengths)
        self._lengths = lengths
        self._ends = np.empty(len(lengths), np.int64)
        self.skipped_sequences = self.uncovered_points = total = 0
        # In parts: there may be tens of millions, and every step makes arrays as long.
        for first in range(0, len(lengths), _CHUNK_SEQUENCES):
            part = lengths[first : first + _CHUNK_SEQUENCES].astype(np.int64)
            counts, covered = self.count(part)
            ends = self._ends[first : first + len(part)]
            np.cumsum(counts, out=ends)
            ends += total
            total = int(ends[-1])
            self.skipped_sequences += int(np.count_nonzero(part < 2))
            self.uncovered_points += int(np.sum(part - covered))
        self.padded_points = self._padding(0, len(lengths))

    def count(
        self, lengths: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """The windows of some series, and the points of each that are in any."""
        size = self.size
        later = np.maximum(lengths - size, 0) // self.stride
        counts = np.where(lengths >= 2, 1 + later, 0)
        # Windows overlap unless the stride is longer than they are.
        spanned = np.where(counts > 0, later * min(self.stride, size) + size, 0)
        return counts, np.minimum(spanned, lengths)

    def _padding(self, first: int, stop: int) -> int:
        total = 0
        for begin in range(first, stop, _CHUNK_SEQUENCES):
            lengths = self._lengths[begin : min(begin + _CHUNK_SEQUENCES, stop)]
            missing = np.maximum(self.size - lengths, 0)
            total += int(np.sum(missing[lengths >= 2], dtype=np.int64))
        return total

    def __len__(self) -> int:
        return self._windows_before(self.num_sequences)

    def _windows_before(self, sequence: int) -> int:
        return int(self._ends[sequence - 1]) if sequence else 0

    def extent(self, first: int, stop: int) -> Extent:
        """The extent of series `first` to `stop`."""
        begin, end = self._windows_before(first), self._windows_before(stop)
        points = (end - begin) * self.size - self._padding(first, stop)
        return Extent(begin, end, points)

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """As `Locator.locate`."""
        check_numbers(numbers, len(self))
        sequences = np.searchsorted(self._ends, numbers, side="right")
        before = np.where(sequences > 0, self._ends[sequences - 1], 0)
        return sequences, (numbers - before) * self.stride


def check_numbers(numbers: Numbers, num_windows: int) -> None:
    """Raises an IndexError if a window does not exist."""
    outside = numbers[(numbers < 0) | (numbers >= num_windows)]
    if outside.size:
        raise IndexError(f"window {outside[0]} asked of {num_windows}")


def check_made_for(index: Index, source: SequenceSource) -> None:
    """Raises a DataError if an index was made for another number of series."""
    if index.num_sequences != len(source):
        raise DataError(
            f"the index was made for {index.num_sequences} series, but the source has "
            f"{len(source)}; make it of source.lengths"
        )


class WindowSource(Windows):
    """Random access to windows, each z-scored by the statistics of its whole series.

    Item i is {"values": float32 [size], "mask": bool [size], "sequence": int64}. The mask is True
    where a value was observed. Values are 0 elsewhere: where one is missing, not finite, or beyond
    the end. A series of standard deviation 0 is only centered. A series with fewer than two finite
    values has a mask of False throughout, so it never contributes.

    The index must be made of `source.lengths`.
    """

    index: Locator

    def __init__(self, source: SequenceSource, index: Locator):
        check_made_for(index, source)
        self.source = source
        self.index = index
        self._series = StandardizedSeries(source)

    def batch(self, numbers: Numbers) -> dict[str, np.ndarray]:
        """As `Windows.batch`: "values" and "mask" [B, size], "sequence" [B]."""
        batch, rows, starts = self._empty(numbers)
        values, mask, which = batch["values"], batch["mask"], batch["sequence"][rows]
        size = values.shape[1]
        before = np.maximum(-starts, 0)  # padding before the series
        counts = (np.minimum(self.source.lengths[which] - starts, size) - before).tolist()
        flat, flat_mask, read = values.reshape(-1), mask.reshape(-1), self._series.read
        begins, which, starts = (rows * size + before).tolist(), which.tolist(), starts + before
        for at, number, start, count in zip(begins, which, starts.tolist(), counts, strict=True):
            end = at + count
            read(number, start, flat[at:end], flat_mask[at:end])
        return batch

    def _empty(
        self, numbers: Numbers
    ) -> tuple[dict[str, np.ndarray], Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
        """An empty batch with its series; the rows that hold a window, and where each begins."""
        shape = (len(numbers), self.index.size)
        sequence = np.full(len(numbers), -1, np.int64)
        rows = np.flatnonzero(numbers >= 0)
        sequence[rows], starts = self.index.locate(numbers[rows])
        values, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        return {"values": values, "mask": mask, "sequence": sequence}, rows, starts
