"""What every source of series has in common."""

import abc
import operator
from collections.abc import Iterator
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int64

from timemoe_jax.errors import DataError


class SequenceSource(abc.ABC):
    """Series of numbers that are read one at a time.

    Attributes:
      lengths: the number of points of each series [num_sequences], known without reading any.
      skipped_files: files that a search of a folder passed over, since their kind is not read.
      ignored_columns: columns of tables that are neither values nor ids nor times.
      frequency: of all series, as the file says it or a pandas alias; None if it does not.
    """

    lengths: Int64[np.ndarray, " num_sequences"]
    skipped_files: tuple[str, ...] = ()
    ignored_columns: tuple[str, ...] = ()
    frequency: str | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Float[np.ndarray, " T"]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: SupportsIndex) -> Float[np.ndarray, " T"]:
        i = self._checked(i)
        return self._read(i, 0, int(self.lengths[i]))

    def read(self, i: SupportsIndex, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """Reads a part of one series.

        Args:
          i: which series.
          start: the first point.
          stop: the point after the last; the end of the series when it lies beyond.

        Returns:
          the points in the units of the series, float32 or float64; NaN where one is missing.

        Raises:
          IndexError: there is no such series.
          DataError: the part is not within the series, or the file has changed.
        """
        return self._read(*self._checked_part(i, start, stop))

    def read_stored(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """Reads a part as it is stored: `read` gives a positive multiple of it, moved.

        The multiple and the move are one for all of a series, so that a z-score by the statistics
        of the whole series is the same, and it is less work. So is not to check the arguments,
        which must be of a part that is there.

        Args:
          i: which series.
          start: the first point.
          stop: the point after the last.

        Raises:
          DataError: the file has changed.
        """
        return self._read(i, start, stop)

    def _checked_part(self, i: SupportsIndex, start: int, stop: int) -> tuple[int, int, int]:
        i = self._checked(i)
        stop = min(stop, self.lengths.item(i))
        if not 0 <= start <= stop:
            raise DataError(
                f"points {start} to {stop} asked of {self.name(i)}, which has {self.lengths[i]}"
            )
        return i, start, stop

    def _checked(self, i: SupportsIndex) -> int:
        i = operator.index(i)
        if not 0 <= i < len(self.lengths):
            raise IndexError(f"series {i} asked of a source of {len(self)}")
        return i

    @abc.abstractmethod
    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """Reads points `start` to `stop` of series `i`, both already checked."""

    def frequency_of(self, i: SupportsIndex) -> str | None:
        """The sampling frequency of series `i`, where it is known; else that of all series."""
        self._checked(i)
        return self.frequency

    @abc.abstractmethod
    def name(self, i: int) -> str:
        """What to call series `i` in a message: the file, and where in it."""

    def label(self, i: int) -> str:
        """The name that series `i` has of its own, such as an id or a column; else its number."""
        return str(i)


def float_of(dtype: np.dtype) -> type:
    """The dtype in which numbers of `dtype` are given out: none of them loses precision."""
    return np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64
