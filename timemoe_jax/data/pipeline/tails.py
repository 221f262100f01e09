"""Windows that end where forecasts are made: in the last part of each series, or anywhere.

Their inputs are padded on the left where a series has fewer points before, as those of a forecast
are.
"""

import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.pipeline.windows import Extent, Numbers, check_numbers

_LEAST_POINTS = 16  # a shorter series is trained on as a whole
_ORIGINS = 4  # forecasts of one series that are validated, at most


def heads_of(lengths: Int64[np.ndarray, " n"], fraction: float) -> Int64[np.ndarray, " n"]:
    """How many points of each series to train on, all but the last `fraction` of them.

    A series of fewer than 16 points has no part to spare.
    """
    lengths = lengths.astype(np.int64)
    tails = np.ceil(fraction * lengths).astype(np.int64)
    return np.where(lengths < _LEAST_POINTS, lengths, np.maximum(lengths - tails, 2))


class TailIndex:
    """Windows whose inputs end in the last part of a series, and whose targets lie there.

    The first one of a series has the whole of its first part as inputs, up to `length`, and is
    padded on the left where that is shorter; up to three more follow at even distances.
    """

    def __init__(
        self,
        lengths: Int64[np.ndarray, " num_sequences"],
        heads: Int64[np.ndarray, " num_sequences"],
        length: int,
        future: int,
    ):
        self.length, self.size = length, length + future
        self.num_sequences = len(lengths)
        tails = lengths - heads
        counts = np.minimum(tails, _ORIGINS)
        self._sequences = np.repeat(np.arange(len(lengths)), counts)
        self._ends = np.cumsum(counts)
        nth = np.arange(len(self._sequences)) - (self._ends - counts)[self._sequences]
        each = np.maximum(tails // _ORIGINS, 1)[self._sequences]
        self._starts = heads[self._sequences] + nth * each - length
        self.skipped_sequences = int(np.count_nonzero(counts == 0))
        self.uncovered_points = 0
        stops = np.minimum(self._starts + self.size, lengths[self._sequences])
        self._points = stops - np.maximum(self._starts, 0)
        self.padded_points = int(len(self) * self.size - self._points.sum())

    def __len__(self) -> int:
        return len(self._sequences)

    def extent(self, first: int, stop: int) -> Extent:
        """The extent of series `first` to `stop`."""
        ends = np.concatenate([[0], self._ends])
        begin, end = int(ends[first]), int(ends[stop])
        return Extent(begin, end, int(self._points[begin:end].sum()))

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """As `Locator.locate`; a first point below 0 is padding before the series."""
        check_numbers(numbers, len(self))
        return self._sequences[numbers], self._starts[numbers]


class OriginIndex:
    """Windows at every origin of a series that leaves it `least` points before and `future` after.

    A series that has fewer has no window. An epoch draws a series by the root of its number of
    windows, so that a long one leaves room for many short ones: it has every window of the longest
    once, and those of shorter series several times.

    Args:
      lengths: points of each series, or of those that make one window.
      length: inputs of a window, the last of them just before the origin.
      future: points from the origin on.
      least: points that a series must have before an origin; at most `length`.
    """

    def __init__(
        self, lengths: Int64[np.ndarray, " num_sequences"], length: int, future: int, least: int
    ):
        self.length, self.size, self.least = length, length + future, least
        self.num_sequences = len(lengths)
        lengths = lengths.astype(np.int64)
        self.origins = np.maximum(lengths - future - least + 1, 0)  # different windows of each
        most = int(self.origins.max(initial=0))
        counts = np.ceil(np.sqrt(self.origins * float(most))).astype(np.int64)
        self._ends = np.cumsum(counts)
        self.skipped_sequences = int(np.count_nonzero(self.origins == 0))
        self.uncovered_points = int(lengths[self.origins == 0].sum())
        # Origins before `length` points are padded, the first by most.
        short = np.minimum(self.origins, max(length - least, 0))
        padding = short * (length - least) - short * (short - 1) // 2
        padded = padding * counts // np.maximum(self.origins, 1)
        self._points = counts * self.size - padded
        self.padded_points = int(padded.sum())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def extent(self, first: int, stop: int) -> Extent:
        """The extent of series `first` to `stop`."""
        ends = np.concatenate([[0], self._ends])
        return Extent(int(ends[first]), int(ends[stop]), int(self._points[first:stop].sum()))

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """As `Locator.locate`; a first point below 0 is padding before the series."""
        check_numbers(numbers, len(self))
        sequences = np.searchsorted(self._ends, numbers, side="right")
        before = np.where(sequences > 0, self._ends[sequences - 1], 0)
        nth = (numbers - before) % np.maximum(self.origins[sequences], 1)
        return sequences, self.least + nth - self.length


class JointOriginIndex:
    """As `OriginIndex`, of pieces of at most `variates` neighboring aligned series."""

    def __init__(
        self, groups: Int64[np.ndarray, " num_sequences"], variates: int, pieces: OriginIndex
    ):
        self.variates, self._pieces = variates, pieces
        self._first, self._sizes = pieces_of(groups, variates)
        self.num_sequences = len(groups)
        self.length, self.size = pieces.length, pieces.size
        self.skipped_sequences = pieces.skipped_sequences
        self.uncovered_points, self.padded_points = pieces.uncovered_points, pieces.padded_points

    @property
    def firsts(self) -> list[int]:
        """The first series of every piece."""
        return self._first.tolist()

    def __len__(self) -> int:
        return len(self._pieces)

    def extent(self, first: int, stop: int) -> Extent:
        """The extent of a range of series, which must not cut a piece."""
        begin, end = np.searchsorted(self._first, [first, stop]).tolist()
        return self._pieces.extent(begin, end)

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """The first series of each window, how many there are, and the first point in them."""
        pieces, starts = self._pieces.locate(numbers)
        return self._first[pieces], self._sizes[pieces], starts


def pieces_of(
    groups: Int64[np.ndarray, " num_sequences"], variates: int
) -> tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]]:
    """The first series of each piece of a group, and how many it holds: at most `variates`."""
    begins = np.flatnonzero(np.diff(groups, prepend=-1))
    # The place of each series in its group says where a piece begins.
    place = np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))
    first = np.flatnonzero(place % variates == 0)
    return first, np.diff(first, append=len(groups))
