"""Endless windows of generated series, and how they are joined with those of real ones."""

from collections.abc import Sequence

import numpy as np

from timemoe_jax.data.pipeline.windows import Extent, Index, Numbers, Windows
from timemoe_jax.errors import DataError

# More than any run takes. Each series is a function of its number, so they need no memory.
NUM_SERIES = 1 << 40


class EndlessIndex:
    """An `Index` of series of `length + future` points each: window i is series i."""

    skipped_sequences = uncovered_points = padded_points = 0

    def __init__(self, length: int, num_sequences: int = NUM_SERIES, future: int = 1):
        self.length, self.size = length, length + future
        self.num_sequences = num_sequences

    def __len__(self) -> int:
        return self.num_sequences

    def extent(self, first: int, stop: int) -> Extent:
        """The extent of series `first` to `stop`."""
        return Extent(first, stop, (stop - first) * self.size)

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """The series of windows, and their first points there, which are 0."""
        return numbers, np.zeros_like(numbers)

    def pieces(self, i: int) -> list[tuple[int, int, int]]:
        """The one piece of window `i`: series, first point, the point after the last."""
        return [(i, 0, self.size)]


class JoinedIndex:
    """Several indices as one `Index`: windows and series of one follow those of the one before."""

    def __init__(self, indices: Sequence[Index]):
        shapes = sorted({(index.length, index.size) for index in indices})
        if len(shapes) != 1:
            raise DataError(
                f"windows whose inputs and points number {shapes} cannot be joined; they must be "
                "equal"
            )
        self.length, self.size = shapes[0]
        self._indices = tuple(indices)
        self.num_sequences = sum(index.num_sequences for index in indices)
        self.skipped_sequences = sum(index.skipped_sequences for index in indices)
        self.uncovered_points = sum(index.uncovered_points for index in indices)
        self.padded_points = sum(index.padded_points for index in indices)

    def __len__(self) -> int:
        return sum(len(index) for index in self._indices)

    def extent(self, first: int, stop: int) -> Extent:
        """The extent of series `first` to `stop`, which must be of one of the indices."""
        windows = 0
        for index in self._indices:
            if stop <= index.num_sequences:
                extent = index.extent(first, stop)
                return Extent(extent.first + windows, extent.stop + windows, extent.points)
            first, stop = first - index.num_sequences, stop - index.num_sequences
            windows += len(index)
        raise DataError(f"series are asked for {stop} beyond the {self.num_sequences} there are")


class JoinedWindows(Windows):
    """The windows of several sources, one after the other; `source` is the first of them.

    The batches of all sources must hold arrays of the same names.
    """

    def __init__(self, windows: Sequence[Windows]):
        self._windows = tuple(windows)
        self.source = windows[0].source
        self.index = JoinedIndex([part.index for part in windows])

    def batch(self, numbers: Numbers) -> dict[str, np.ndarray]:
        """As `Windows.batch`."""
        joined: dict[str, np.ndarray] = {}
        first = first_sequence = 0
        for part in self._windows:
            mine = (numbers >= first) & (numbers < first + len(part))
            if mine.any() or not joined:
                batch = part.batch(np.where(mine, numbers - first, -1))
                batch["sequence"] += np.where(batch["sequence"] >= 0, first_sequence, 0)
                if not joined:
                    joined = batch
                else:
                    for name, array in joined.items():
                        array[mine] = batch[name][mine]
            first, first_sequence = first + len(part), first_sequence + part.index.num_sequences
        return joined
