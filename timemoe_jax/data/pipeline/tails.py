"""The last part of each series, held out from training: where forecasts will be asked for."""

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
