"""Windows of series taken for ones of another sampling rate: more periods than the data has.

A corpus of hourly series knows a day of 24 points; averaged over four points or read with three
more between every two, the same series know days of 6 and of 96. Small models gain by such variety
(arXiv 2401.03955, diverse resolution sampling).
"""

from fractions import Fraction
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float32, Int64

from timemoe_jax.data.sequence_source import SequenceSource
from timemoe_jax.data.windows import Locator, Standardised, check_made_for, item_of
from timemoe_jax.errors import DataError


class ResampledWindows:
    """Windows that each read their series at one of several rates, z-scored by the whole series.

    Which rate a window has depends on the seed and its number alone. A window begins where that of
    the index does; where it would end beyond its series at a rate above 1, it takes the largest of
    the rates at which it does not, and 1 at the worst. A mean over points of which one is missing
    is of the others; a point read between two of which one is missing is missing.

    Args:
      source: the series.
      index: of the windows, made of `source.lengths`.
      resolutions: the rates with their weights: see `run_config.parse_resolutions`.
      seed: of the choice of rates.

    Raises:
      DataError: the index was made for another number of series, or there is no rate.
    """

    def __init__(
        self,
        source: SequenceSource,
        index: Locator,
        resolutions: dict[Fraction, float],
        seed: int,
    ):
        check_made_for(index, source)
        if not resolutions:
            raise DataError("resolutions is empty; it must have at least one rate, such as 1")
        self.source, self.index = source, index
        self._series = Standardised(source)
        self._rates = list(resolutions)
        weights = np.array(list(resolutions.values()), np.float64)
        self._ends = np.cumsum(weights / weights.sum())
        self._seed = seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return item_of(self, i)

    def batch(self, numbers: Int64[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """Some of the windows, one beside the other; an empty one for -1.

        Returns:
          "values" and "mask" [B, size], "sequence" [B].
        """
        shape = (len(numbers), self.index.size)
        values, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        sequence = np.full(len(numbers), -1, np.int64)
        rows = np.flatnonzero(numbers >= 0)
        sequence[rows], starts = self.index.locate(numbers[rows])
        for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
            rest = self.source.lengths.item(sequence[row]) - start
            rate = self._rate(int(numbers[row]), rest)
            part, known = self._read(int(sequence[row]), start, rest, rate)
            values[row, : len(part)], mask[row, : len(part)] = part, known
        return {"values": values, "mask": mask, "sequence": sequence}

    def _rate(self, number: int, rest: int) -> Fraction:
        drawn = np.random.default_rng([self._seed, number]).random()
        rate = self._rates[
            min(int(np.searchsorted(self._ends, drawn, "right")), len(self._ends) - 1)
        ]
        size = self.index.size
        if rate <= 1 or rate * size <= rest:
            return rate
        fitting = (r for r in self._rates if r > 1 and r * size <= rest)
        return max(fitting, default=Fraction(1))

    def _read(
        self, sequence: int, start: int, rest: int, rate: Fraction
    ) -> tuple[Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """At most `size` points at a rate, from a start on, z-scored; 0 where one is missing."""
        coarser, finer = rate.numerator, rate.denominator
        size = self.index.size
        # Of `finer` points to each, the last needs one more to lie before.
        wanted = size * coarser if finer == 1 else (size - 1) // finer + 2
        count = min(wanted, rest)
        values, mask = np.zeros(count, np.float32), np.zeros(count, bool)
        self._series.read(sequence, start, values, mask)
        if coarser > 1:
            return _means(values, mask, coarser)
        if finer > 1:
            return _between(values, mask, finer, size)
        return values, mask


def _means(
    values: Float32[np.ndarray, " n"], mask: Bool[np.ndarray, " n"], factor: int
) -> tuple[Float32[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Of every `factor` points the mean of those that are there."""
    whole = len(values) // factor * factor
    known = mask[:whole].reshape(-1, factor).sum(axis=1)
    # Missing values are 0, so that a sum leaves them out.
    total = values[:whole].reshape(-1, factor).sum(axis=1)
    return (total / np.maximum(known, 1)).astype(np.float32), known > 0


def _between(
    values: Float32[np.ndarray, " n"], mask: Bool[np.ndarray, " n"], factor: int, size: int
) -> tuple[Float32[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """The points, and `factor` - 1 more on the line to each next one; at most `size`."""
    if len(values) < 2:
        return values, mask
    position = np.arange(min(size, (len(values) - 1) * factor + 1))
    before, step = np.divmod(position, factor)
    after = np.minimum(before + 1, len(values) - 1)
    fraction = (step / factor).astype(np.float32)
    read = values[before] * (1 - fraction) + values[after] * fraction
    known = mask[before] & (mask[after] | (step == 0))
    return np.where(known, read, 0).astype(np.float32), known
