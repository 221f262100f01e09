"""Windows of a fixed length over the series of a source, standardised and masked."""

import dataclasses
import threading
from typing import Any, Protocol, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from timemoe_jax.data.sources import SequenceSource
from timemoe_jax.errors import DataError

# Points read at a time for the statistics of a series, and the most statistics that are kept
# (24 bytes each).
_CHUNK_POINTS = 1 << 22
_CACHE_SLOTS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Extent:
    """What some neighbouring series of an index come to.

    Attributes:
      first: their first window.
      stop: the window after their last.
      points: the points in their windows, one in two windows twice, padding not.
    """

    first: int
    stop: int
    points: int

    def __len__(self) -> int:
        return self.stop - self.first


class Index(Protocol):
    """Where windows of `length + 1` points lie.

    Attributes:
      length: the number of inputs of a window.
      num_sequences: how many series it was made for.
      skipped_sequences: how many series have fewer than two points.
      uncovered_points: how many points are in no window, those of skipped series among them.
      padded_points: how many points of the windows are none of a series.
    """

    length: int
    num_sequences: int
    skipped_sequences: int
    uncovered_points: int
    padded_points: int

    def __len__(self) -> int: ...

    def extent(self, first: int, stop: int) -> Extent:
        """What series `first` to `stop` come to, neighbours that share no window with others."""


class Windows(Protocol):
    """Random access to windows: dictionaries of arrays, the same shapes for each."""

    source: SequenceSource

    @property
    def index(self) -> Index:
        """Where they lie."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]: ...


class WindowIndex:
    """Where the windows of `length + 1` points lie: inputs are w[:-1], targets w[1:].

    The first window of a series is always there, and is padded on the right where the series is
    shorter; a later one begins at each multiple of `stride` from which a whole window fits. A
    series of fewer than two points has no window. Memory grows with the series, not the windows.

    Attributes:
      num_sequences: how many series it was made for.
      skipped_sequences: how many series have fewer than two points.
      uncovered_points: how many points are in no window, those of skipped series among them.
      padded_points: how many points of the windows lie beyond the end of their series.

    Args:
      lengths: the number of points of each series [num_sequences].
      length: the number of inputs of a window.
      stride: points from one window to the next; by default `length`.

    Raises:
      DataError: `length` or `stride` is less than one.
    """

    def __init__(
        self, lengths: Int64[np.ndarray, " num_sequences"], length: int, stride: int | None = None
    ):
        self.length = length
        self.stride = length if stride is None else stride
        if self.length < 1 or self.stride < 1:
            raise DataError(
                f"window length {self.length} and stride {self.stride} must both be at least 1"
            )
        self.num_sequences = len(lengths)
        self._lengths = lengths
        size = length + 1
        later = np.maximum(lengths - size, 0) // self.stride
        counts = np.where(lengths >= 2, 1 + later, 0)
        self._ends = np.cumsum(counts, dtype=np.int64)
        # Windows overlap unless the stride is longer than they are.
        spanned = np.where(counts > 0, later * min(self.stride, size) + size, 0)
        covered = np.minimum(spanned, lengths)
        self.skipped_sequences = int(np.count_nonzero(lengths < 2))
        self.uncovered_points = int(np.sum(lengths - covered))
        self.padded_points = self._padding(0, len(lengths))

    def _padding(self, first: int, stop: int) -> int:
        lengths = self._lengths[first:stop]
        missing = np.maximum(self.length + 1 - lengths, 0)
        return int(np.sum(np.where(lengths >= 2, missing, 0)))

    def __len__(self) -> int:
        return self._windows_before(self.num_sequences)

    def _windows_before(self, sequence: int) -> int:
        return int(self._ends[sequence - 1]) if sequence else 0

    def extent(self, first: int, stop: int) -> Extent:
        """What series `first` to `stop` come to."""
        begin, end = self._windows_before(first), self._windows_before(stop)
        points = (end - begin) * (self.length + 1) - self._padding(first, stop)
        return Extent(begin, end, points)

    def locate(self, i: SupportsIndex) -> tuple[int, int]:
        """Finds window `i`: the number of its series, and its first point there.

        Raises:
          IndexError: there is no such window.
        """
        i = i.__index__()
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} asked of {len(self)}")
        sequence = int(np.searchsorted(self._ends, i, side="right"))
        return sequence, (i - self._windows_before(sequence)) * self.stride


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The number of finite values, their mean, and their population standard deviation."""

    count: int
    mean: float
    std: float


def statistics(values: Float[np.ndarray, " T"]) -> Statistics:
    """Computes the statistics of the finite values in float64, whatever their magnitude.

    A constant series has a standard deviation of exactly zero. Differences from the first value
    are taken and scaled to at most one before they are squared, so that nothing overflows,
    vanishes or cancels.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if finite.size == 0:
        return Statistics(0, 0.0, 0.0)
    first = float(finite[0])
    differences = _subtract(finite, first)
    scale = float(np.max(np.abs(differences)))
    if scale == 0.0:
        return Statistics(finite.size, first, 0.0)
    differences = differences / scale
    mean = float(np.mean(differences))
    std = float(np.sqrt(np.mean(np.square(differences - mean))))
    return Statistics(finite.size, first + scale * mean, scale * std)


def _subtract(values: np.ndarray, mean: float) -> np.ndarray:
    """values - mean, at the limit of float64 where it would lie beyond."""
    limit = np.finfo(np.float64).max
    with np.errstate(over="ignore"):
        return np.clip(values - mean, -limit, limit)


def _merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of two parts taken together; no square is formed, so none overflows."""
    if a.count == 0 or b.count == 0:
        return a if b.count == 0 else b
    count = a.count + b.count
    weight_a, weight_b = a.count / count, b.count / count
    within = np.hypot(np.sqrt(weight_a) * a.std, np.sqrt(weight_b) * b.std)
    between = np.sqrt(weight_a * weight_b) * abs(b.mean - a.mean)
    mean = a.mean + weight_b * (b.mean - a.mean)
    return Statistics(count, float(mean), float(np.hypot(within, between)))


class Standardised:
    """Parts of series, each z-scored by the statistics of its whole series, which are kept.

    Args:
      source: the series.
    """

    def __init__(self, source: SequenceSource):
        self.source = source
        self._make_cache()

    def _make_cache(self) -> None:
        # A series has one place in the cache, its number modulo the size; up to that many series
        # never compete.
        slots = max(1, min(len(self.source), _CACHE_SLOTS))
        self._owners = np.full(slots, -1, np.int64)
        self._moments = np.zeros((slots, 2))
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.source = state["source"]
        self._make_cache()

    def read(
        self, sequence: int, start: int, stop: int
    ) -> tuple[Float32[np.ndarray, " _"], Bool[np.ndarray, " _"]]:
        """Reads a part of a series, as `standardise` gives it out.

        Args:
          sequence: which series.
          start: the first point.
          stop: the point after the last; the end of the series when it lies beyond.
        """
        return standardise(*self._part(sequence, start, stop))

    def _part(
        self, sequence: int, start: int, stop: int
    ) -> tuple[Float[np.ndarray, " _"], float, float]:
        """Returns the points of a part, with the mean and std of its series."""
        slot = sequence % len(self._owners)
        with self._lock:
            known = self._owners[slot] == sequence
            mean, std = self._moments[slot]
        if known:
            return self.source.read(sequence, start, stop), float(mean), float(std)
        length = int(self.source.lengths[sequence])
        if length <= _CHUNK_POINTS:
            # The usual case: one read serves the statistics and the part.
            whole = self.source[sequence]
            mean, std = self._store(sequence, statistics(whole))
            return whole[start:stop], mean, std
        total = Statistics(0, 0.0, 0.0)
        for at in range(0, length, _CHUNK_POINTS):
            part = self.source.read(sequence, at, at + _CHUNK_POINTS)
            total = _merge(total, statistics(part))
        mean, std = self._store(sequence, total)
        return self.source.read(sequence, start, stop), mean, std

    def _store(self, sequence: int, found: Statistics) -> tuple[float, float]:
        # A NaN mean marks a series with too little to learn from.
        mean = found.mean if found.count >= 2 else float("nan")
        slot = sequence % len(self._owners)
        with self._lock:
            self._owners[slot] = sequence
            self._moments[slot] = mean, found.std
        return mean, found.std


def check_made_for(index: Index, source: SequenceSource) -> None:
    """Refuses an index that was made for other series.

    Raises:
      DataError: it was made for another number of them.
    """
    if index.num_sequences != len(source):
        raise DataError(
            f"the index was made for {index.num_sequences} series, but the source has "
            f"{len(source)}; make it of source.lengths"
        )


class WindowSource:
    """Random access to windows, each z-scored by the statistics of its whole series.

    Item i is {"values": float32 [length + 1], "mask": bool [length + 1], "sequence": int64}: the
    mask is True where a value was observed, and values are 0 elsewhere, that is where one is
    missing, not finite, or beyond the end. A series whose standard deviation is 0 is only
    centred. A series with fewer than two finite values has a mask of False throughout, so that it
    never contributes.

    Args:
      source: the series.
      index: made of `source.lengths`.

    Raises:
      DataError: the index was made for another number of series.
    """

    def __init__(self, source: SequenceSource, index: WindowIndex):
        check_made_for(index, source)
        self.source = source
        self.index = index
        self._series = Standardised(source)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        sequence, start = self.index.locate(i)
        size = self.index.length + 1
        values, mask = np.zeros(size, np.float32), np.zeros(size, bool)
        part, observed = self._series.read(sequence, start, start + size)
        values[: len(part)], mask[: len(part)] = part, observed
        return {"values": values, "mask": mask, "sequence": np.int64(sequence)}


def standardise(
    values: Float[np.ndarray, " T"], mean: float, std: float
) -> tuple[Float32[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """Standardises a part of a series by the mean and standard deviation of the whole.

    Args:
      values: the part [T], NaN or infinite where missing.
      mean: NaN for a series that is to be masked throughout.
      std: 0 for a series that is only to be centred.

    Returns:
      the standardised values [T], 0 where missing, and whether each was observed [T].
    """
    mask = np.isfinite(values) & np.isfinite(mean)
    centred = _subtract(np.where(mask, values, 0.0).astype(np.float64), mean)
    scaled = centred / std if std > 0 else centred
    return np.where(mask, scaled, 0.0).astype(np.float32), mask
