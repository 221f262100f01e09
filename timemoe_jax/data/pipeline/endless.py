"""Generated series beside real ones: windows without end, whose memory does not grow."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.pipeline.windows import Extent, Index, Windows
from timemoe_jax.errors import DataError

# More than any run takes; each is a function of its number.
NUM_SERIES = 1 << 40


class EndlessIndex:
    """Where windows lie in series that are as long as one window: window i is series i.

    Attributes:
      num_sequences: how many series there are.
      skipped_sequences: 0.
      uncovered_points: 0.
      padded_points: 0.

    Args:
      length: the number of inputs of a window.
      num_sequences: how many series there are.
      future: the number of points after the inputs; the series have as many as both together.
    """

    skipped_sequences = uncovered_points = padded_points = 0

    def __init__(self, length: int, num_sequences: int = NUM_SERIES, future: int = 1):
        self.length, self.size = length, length + future
        self.num_sequences = num_sequences

    def __len__(self) -> int:
        return self.num_sequences

    def extent(self, first: int, stop: int) -> Extent:
        """What series `first` to `stop` come to."""
        return Extent(first, stop, (stop - first) * self.size)

    def locate(
        self, numbers: Int64[np.ndarray, " B"]
    ) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """The series of windows, and their first points there, which are 0."""
        return numbers, np.zeros_like(numbers)

    def pieces(self, i: int) -> list[tuple[int, int, int]]:
        """The one piece of window `i`: series, first point, the point after the last."""
        return [(i, 0, self.size)]


class JoinedIndex:
    """Several indices as one: windows and series of one follow those of the one before.

    Attributes:
      length: the number of inputs of a window.
      size: the number of its points.
      num_sequences, skipped_sequences, uncovered_points, padded_points: of all of them.

    Args:
      indices: of windows of one length.

    Raises:
      DataError: their lengths differ.
    """

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
        """What series `first` to `stop` come to, which must be of one of the indices."""
        windows = 0
        for index in self._indices:
            if stop <= index.num_sequences:
                found = index.extent(first, stop)
                return Extent(found.first + windows, found.stop + windows, found.points)
            first, stop = first - index.num_sequences, stop - index.num_sequences
            windows += len(index)
        raise DataError(f"series are asked for {stop} beyond the {self.num_sequences} there are")


class JoinedWindows:
    """Random access to the windows of several sources, those of one after those of another.

    Attributes:
      source: of the first of them.

    Args:
      windows: what to join; their batches must hold arrays of the same names.
    """

    def __init__(self, windows: Sequence[Windows]):
        self._windows = tuple(windows)
        self.source = windows[0].source
        self.index = JoinedIndex([part.index for part in windows])

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, numbers: Int64[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """Some of the windows, one beside the other; an empty one for -1."""
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
