"""Series that are in memory, and several sources as one."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.sequence_source import SequenceSource, float_of
from timemoe_jax.errors import DataError


class ArraySource(SequenceSource):
    """Series that are in memory already.

    Args:
      series: one array [T] for each.
      names: what to call each in a message; by default "series 0" and so on.

    Raises:
      DataError: there are not as many names as series.
    """

    def __init__(
        self, series: Sequence[Float[np.ndarray, " _"]], names: Sequence[str] | None = None
    ):
        self._series = list(series)
        self._names = [f"series {i}" for i in range(len(series))] if names is None else list(names)
        if len(self._names) != len(self._series):
            raise DataError(
                f"{len(self._names)} names were given for {len(self._series)} series; give one each"
            )
        self.lengths = np.array([len(values) for values in series], np.int64)

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        values = self._series[i][start:stop]
        return values.astype(float_of(values.dtype))

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return self._names[i]

    def label(self, i: int) -> str:
        """The name that was given to series `i`."""
        return self._names[i]


class ConcatSource(SequenceSource):
    """The series of several sources, one source after the other."""

    def __init__(self, sources: Sequence[SequenceSource], skipped_files: Sequence[str] = ()):
        if not sources:
            raise DataError("there is no source to join; give at least one")
        self._sources = tuple(sources)
        self.lengths = np.concatenate([source.lengths for source in sources], dtype=np.int64)
        self._ends = np.cumsum([len(source) for source in sources]).tolist()
        inner = (file for source in sources for file in source.skipped_files)
        self.skipped_files = (*inner, *skipped_files)
        columns = (column for source in sources for column in source.ignored_columns)
        self.ignored_columns = tuple(dict.fromkeys(columns))
        frequencies = {source.frequency for source in sources}
        self.frequency = frequencies.pop() if len(frequencies) == 1 else None

    def __iter__(self) -> Iterator[Float[np.ndarray, " T"]]:
        # A source may know a faster way through itself than one series after the other.
        return itertools.chain.from_iterable(self._sources)

    def _locate(self, i: int) -> tuple[SequenceSource, int]:
        which = bisect.bisect_right(self._ends, i)
        return self._sources[which], i - (self._ends[which - 1] if which else 0)

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        source, inner = self._locate(i)
        return source.read(inner, start, stop)

    def read_stored(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """As `SequenceSource.read_stored` says."""
        source, inner = self._locate(i)
        return source.read_stored(inner, start, stop)

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        source, inner = self._locate(i)
        return source.name(inner)

    def label(self, i: int) -> str:
        """The name that series `i` has of its own, in the source that holds it."""
        source, inner = self._locate(i)
        return source.label(inner)

    def frequency_of(self, i: SupportsIndex) -> str | None:
        """The sampling frequency of series `i`, as the source that holds it knows it."""
        source, inner = self._locate(self._checked(i))
        return source.frequency_of(inner)
