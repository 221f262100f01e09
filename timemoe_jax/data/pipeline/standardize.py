"""Series z-scored by the statistics of the whole series, which are cached."""

import math
import threading
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from timemoe_jax.data.series_source import SequenceSource

# Points read at a time for the statistics of a series, and the most statistics that are kept
# (25 bytes each).
_CHUNK_POINTS = 1 << 15
_CACHE_SLOTS = 1 << 20
# Between these, float32 arithmetic on deviations and means neither overflows nor vanishes.
_SMALLEST, _LARGEST = 1e-30, 1e30
# Below this deviation, relative to that of the whole series, a context says nothing about scale.
FLAT_CONTEXT = 1e-3
# The part of a deviation that float32 rounds away.
_NEGLIGIBLE = 1e-8


class Statistics(NamedTuple):
    """The number of finite values, their mean, and their population standard deviation."""

    observed: int
    mean: float
    std: float


def statistics(values: Float[np.ndarray, " T"]) -> Statistics:
    """Computes the statistics of the finite values in float64, whatever their magnitude.

    A constant series has a standard deviation of exactly zero. Differences from the first value
    are scaled to at most one before they are squared, so that nothing overflows, vanishes or
    cancels.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        quick = _quick_statistics(values) if values.size else None
    if quick is not None:
        return quick
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


def _quick_statistics(values: Float[np.ndarray, " T"]) -> Statistics | None:
    """As `statistics`, for finite values of usual magnitudes; None for others."""
    first = values.item(0)
    differences = np.subtract(values, first, dtype=np.float64)
    # NaN and infinity show in the sum; so does what is beyond float64.
    mean = float(np.add.reduce(differences)) / values.size
    np.subtract(differences, mean, out=differences)
    np.multiply(differences, differences, out=differences)
    variance = float(np.add.reduce(differences)) / values.size
    if not _SMALLEST**2 < variance < _LARGEST**2:
        return None
    return Statistics(values.size, first + mean, math.sqrt(variance))


def _subtract(values: np.ndarray, mean: float) -> np.ndarray:
    """values - mean, clipped to the range of float64."""
    limit = np.finfo(np.float64).max
    with np.errstate(over="ignore"):
        return np.clip(values - mean, -limit, limit)


def _merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of two parts taken together; no square is formed, so none overflows."""
    if a.observed == 0 or b.observed == 0:
        return a if b.observed == 0 else b
    count = a.observed + b.observed
    weight_a, weight_b = a.observed / count, b.observed / count
    within = np.hypot(np.sqrt(weight_a) * a.std, np.sqrt(weight_b) * b.std)
    between = np.sqrt(weight_a * weight_b) * abs(b.mean - a.mean)
    mean = a.mean + weight_b * (b.mean - a.mean)
    return Statistics(count, float(mean), float(np.hypot(within, between)))


class StandardizedSeries:
    """Reads parts of series, each z-scored by the cached statistics of its whole series."""

    def __init__(self, source: SequenceSource):
        self.source = source
        self._make_cache()

    def _make_cache(self) -> None:
        # A series has one slot in the cache, its number modulo the size, so that as many series as
        # there are slots never compete.
        self._slots = max(1, min(len(self.source), _CACHE_SLOTS))
        self._owners = np.full(self._slots, -1, np.int64)
        self._means, self._stds = np.zeros(self._slots), np.zeros(self._slots)
        self._complete = np.zeros(self._slots, bool)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.source = state["source"]
        self._make_cache()

    def read(
        self,
        sequence: int,
        start: int,
        values: Float32[np.ndarray, " n"],
        mask: Bool[np.ndarray, " n"],
    ) -> None:
        """Reads z-scored points of a series from `start` on into `values`, 0 where one is missing.

        `values` takes as many points as it has room for, which must exist; `mask` says which of
        them were observed.
        """
        part, moments = self._part(sequence, start, start + len(values))
        standardize(part, moments, values, mask)

    def _part(
        self, sequence: int, start: int, stop: int
    ) -> tuple[Float[np.ndarray, " _"], "Moments"]:
        """The points of a part as they are stored, with the moments of its series."""
        slot, moments = sequence % self._slots, None
        with self._lock:
            if self._owners.item(slot) == sequence:
                mean, std = self._means.item(slot), self._stds.item(slot)
                moments = Moments(mean, std, self._complete.item(slot))
        if moments is not None:
            return self.source.read_stored(sequence, start, stop), moments
        length = self.source.lengths.item(sequence)
        if length <= _CHUNK_POINTS:
            # The usual case: one read serves the statistics and the part.
            whole = self.source.read_stored(sequence, 0, length)
            return whole[start:stop], self._store(sequence, statistics(whole), length)
        total = Statistics(0, 0.0, 0.0)
        for at in range(0, length, _CHUNK_POINTS):
            part = self.source.read_stored(sequence, at, min(at + _CHUNK_POINTS, length))
            total = _merge(total, statistics(part))
        moments = self._store(sequence, total, length)
        return self.source.read_stored(sequence, start, stop), moments

    def _store(self, sequence: int, of_series: Statistics, length: int) -> "Moments":
        # A NaN mean marks a series with too little to learn from.
        mean = of_series.mean if of_series.observed >= 2 else float("nan")
        moments = Moments(mean, of_series.std, of_series.observed == length)
        slot = sequence % self._slots
        with self._lock:
            self._owners[slot] = sequence
            self._means[slot], self._stds[slot], self._complete[slot] = moments
        return moments


class Moments(NamedTuple):
    """The moments by which a part of a series is standardized."""

    mean: float  # of the whole series; NaN masks it throughout
    std: float  # its population standard deviation; 0 only centers it
    complete: bool  # whether all of its points are known to be finite


def standardize(
    part: Float[np.ndarray, " n"],
    moments: Moments,
    values: Float32[np.ndarray, " n"],
    mask: Bool[np.ndarray, " n"],
) -> None:
    """Standardizes a part of a series by the moments of the whole.

    A point of `part` is missing where it is NaN or infinite. `values` takes the results, 0 where
    one is missing, and `mask` says which were observed.
    """
    mean, std, complete = moments
    if math.isnan(mean):
        values[:], mask[:] = 0, False
        return
    if complete:
        mask[:] = True
    else:
        np.isfinite(part, out=mask)
    usual = std == 0.0 or _SMALLEST < std < _LARGEST
    if part.dtype == np.float32 and usual and abs(mean) < _LARGEST:
        # As good in float32 as in float64: near the mean the first difference is exact, and the
        # rest of the mean is subtracted after it.
        rounded = np.float32(mean)
        np.subtract(part, rounded, out=values)
        rest = mean - float(rounded)
        if abs(rest) > _NEGLIGIBLE * std:
            np.subtract(values, np.float32(rest), out=values)
        if std > 0.0:
            np.multiply(values, np.float32(1.0 / std), out=values)
    else:
        centered = _subtract(np.where(mask, part, mean).astype(np.float64), mean)
        values[:] = centered / std if std > 0.0 else centered
    if not complete:
        values[~mask] = 0.0
