"""What every source of series has in common."""

import abc
import bisect
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int64, Shaped

from timemoe_jax.errors import DataError


class SequenceSource(abc.ABC):
    """Series of numbers that are read one at a time."""

    lengths: Int64[np.ndarray, " num_sequences"]  # points of each, known without reading any
    # Files that a search of a folder passed over, since their kind is not read.
    skipped_files: tuple[str, ...] = ()
    # Columns of tables that are neither values nor ids nor times.
    ignored_columns: tuple[str, ...] = ()
    # Of all series, as the file says it or a pandas alias; None if it does not.
    frequency: str | None = None
    # Whether all series have the same times, as the columns of a table do.
    aligned: bool = False

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Float[np.ndarray, " T"]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: SupportsIndex) -> Float[np.ndarray, " T"]:
        i = self._checked(i)
        return self._read(i, 0, int(self.lengths[i]))

    def read(self, i: SupportsIndex, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """Reads points `start` to `stop` of series `i`, fewer where the series ends before.

        They are float32 or float64, in the units of the series; NaN where one is missing.

        Raises:
          IndexError: there is no such series.
          DataError: the part is not within the series, or the file has changed.
        """
        return self._read(*self._checked_part(i, start, stop))

    def read_stored(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """Reads a part as it is stored: `read` gives a positive multiple of it, moved.

        The multiple and the move are the same for all of a series, so that a z-score by the
        statistics of the whole series is the same, too. This is less work than `read`: it neither
        scales nor checks its arguments, which must be of a part that is there.
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

    def times(self, i: SupportsIndex) -> Shaped[np.ndarray, " T"] | None:
        """The times of the points of series `i`, rising, where the source knows them."""
        self._checked(i)
        return None

    def all_times(self) -> Iterator[Shaped[np.ndarray, " T"] | None]:
        """Those of every series, in turn."""
        return (self.times(i) for i in range(len(self)))

    def groups(self) -> Int64[np.ndarray, " num_sequences"]:
        """A number for each series, the same for neighbors that are aligned, rising."""
        count = len(self)
        return np.zeros(count, np.int64) if self.aligned else np.arange(count, dtype=np.int64)

    @abc.abstractmethod
    def name(self, i: int) -> str:
        """What to call series `i` in a message: the file, and where in it."""

    def label(self, i: int) -> str:
        """The name that series `i` has of its own, such as an id or a column; else its number."""
        return str(i)


def float_of(dtype: np.dtype) -> type:
    """The dtype in which numbers of `dtype` are given out: none of them loses precision."""
    return np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64


class ArraySource(SequenceSource):
    """Series in memory, each an array [T]; `names` are by default "series 0" and so on."""

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


class _DelegatingSource(SequenceSource):
    """Series that lie in other sources."""

    @abc.abstractmethod
    def _locate(self, i: int) -> tuple[SequenceSource, int]:
        """The source that holds series `i`, and the number that the series has there."""

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        source, inner = self._locate(i)
        return source.read(inner, start, stop)

    def read_stored(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """As `SequenceSource.read_stored` says."""
        source, inner = self._locate(i)
        return source.read_stored(inner, start, stop)

    def name(self, i: int) -> str:
        """What the source that holds series `i` calls it in a message."""
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

    def times(self, i: SupportsIndex) -> Shaped[np.ndarray, " T"] | None:
        """The times of series `i`, where the source that holds it knows them."""
        source, inner = self._locate(self._checked(i))
        return source.times(inner)


class ConcatSource(_DelegatingSource):
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

    def all_times(self) -> Iterator[Shaped[np.ndarray, " T"] | None]:
        """Those of every series, each source in its own way."""
        return itertools.chain.from_iterable(source.all_times() for source in self._sources)

    def groups(self) -> Int64[np.ndarray, " num_sequences"]:
        """Those of the sources, one after the other."""
        each = [source.groups() for source in self._sources]
        ends = np.cumsum([0, *(groups[-1] + 1 if len(groups) else 0 for groups in each)])
        parts = [groups + first for groups, first in zip(each, ends, strict=False)]
        return np.concatenate(parts, dtype=np.int64)

    def _locate(self, i: int) -> tuple[SequenceSource, int]:
        which = bisect.bisect_right(self._ends, i)
        return self._sources[which], i - (self._ends[which - 1] if which else 0)


class SubsetSource(_DelegatingSource):
    """The series of another source whose numbers are `ids`, in that order."""

    def __init__(self, source: SequenceSource, ids: Int64[np.ndarray, " num_sequences"]):
        outside = ids[(ids < 0) | (ids >= len(source))]
        if outside.size:
            raise DataError(f"ids holds {outside[0]}; the source has series 0 to {len(source) - 1}")
        self._source = source
        self._ids = ids
        self.lengths = source.lengths[ids]
        self.skipped_files = source.skipped_files
        self.ignored_columns, self.frequency = source.ignored_columns, source.frequency

    def groups(self) -> Int64[np.ndarray, " num_sequences"]:
        """Those of the source."""
        return self._source.groups()[self._ids]

    def _locate(self, i: int) -> tuple[SequenceSource, int]:
        return self._source, int(self._ids[i])


class HeadSource(_DelegatingSource):
    """The first points of each series of another source, as many as `lengths` says."""

    def __init__(self, source: SequenceSource, lengths: Int64[np.ndarray, " num_sequences"]):
        self._source = source
        self.lengths = np.minimum(lengths, source.lengths).astype(np.int64)
        self.skipped_files = source.skipped_files
        self.ignored_columns, self.frequency = source.ignored_columns, source.frequency

    def groups(self) -> Int64[np.ndarray, " num_sequences"]:
        """Those of the source."""
        return self._source.groups()

    def times(self, i: SupportsIndex) -> Shaped[np.ndarray, " T"] | None:
        """Those of the source, up to the last point that is read."""
        times = super().times(i)
        return None if times is None else times[: self.lengths.item(self._checked(i))]

    def _locate(self, i: int) -> tuple[SequenceSource, int]:
        return self._source, i


class SpanSource(_DelegatingSource):
    """Points `start` to `stop` of each series of another source, as far as there are any."""

    def __init__(self, source: SequenceSource, start: int, stop: int):
        self._source = source
        self._start = start
        self.lengths = np.clip(source.lengths - start, 0, stop - start).astype(np.int64)
        self.skipped_files = source.skipped_files
        self.ignored_columns, self.frequency = source.ignored_columns, source.frequency

    def groups(self) -> Int64[np.ndarray, " num_sequences"]:
        """Those of the source."""
        return self._source.groups()

    def times(self, i: SupportsIndex) -> Shaped[np.ndarray, " T"] | None:
        """Those of the source, of the points that are read."""
        times, length = self._source.times(i), self.lengths.item(self._checked(i))
        return None if times is None else times[self._start : self._start + length]

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        return self._source.read(i, self._start + start, self._start + stop)

    def read_stored(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """As `SequenceSource.read_stored` says."""
        return self._source.read_stored(i, self._start + start, self._start + stop)

    def _locate(self, i: int) -> tuple[SequenceSource, int]:
        return self._source, i
