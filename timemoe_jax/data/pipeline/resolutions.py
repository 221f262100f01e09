"""Windows of series read at several sampling rates, which show more periods than the data has.

A corpus of hourly series knows a day of 24 points. Averaged over four points, or read with three
more between every two, the same series know days of 6 and of 96 points. Small models gain by such
variety (arXiv 2401.03955, diverse resolution sampling).
"""

from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float32

from timemoe_jax.data.pipeline.windows import Locator, Numbers, WindowSource
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError


class ResampledWindows(WindowSource):
    """Windows that each read their series at one of several rates, z-scored by the whole series.

    `resolutions` gives the rates with their weights, as `data.config.parse_resolutions` reads them.
    The rate of a window depends on the seed and its number alone. A window begins where that of the
    index does. Where it would end beyond its series at a rate above 1 (with fewer than `least`
    points, if that is given), it takes the largest rate at which it does not, or else 1. A mean
    over points of which some are missing is that of the others; a point read between two of which
    one is missing is missing.
    """

    def __init__(
        self,
        source: SequenceSource,
        index: Locator,
        resolutions: dict[Fraction, float],
        seed: int,
        least: int = 0,
    ):
        super().__init__(source, index)
        if not resolutions:
            raise DataError("resolutions is empty; it must have at least one rate, such as 1")
        self._rates = list(resolutions)
        weights = np.array(list(resolutions.values()), np.float64)
        self._bounds = np.cumsum(weights / weights.sum())[:-1]  # between the rates, in [0, 1)
        self._seed = seed
        self._least = least or index.size

    def batch(self, numbers: Numbers) -> dict[str, np.ndarray]:
        """As `WindowSource.batch`."""
        batch, rows, starts = self._empty(numbers)
        values, mask, sequence = batch["values"], batch["mask"], batch["sequence"]
        for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
            rest = self.source.lengths.item(sequence[row]) - start
            rate = self._rate(int(numbers[row]), rest)
            part, known = self._read(int(sequence[row]), start, rest, rate)
            values[row, : len(part)], mask[row, : len(part)] = part, known
        return batch

    def _rate(self, number: int, rest: int) -> Fraction:
        """The rate of a window whose series has `rest` points from its start on."""
        drawn = np.random.default_rng([self._seed, number]).random()
        rate = self._rates[int(np.searchsorted(self._bounds, drawn, "right"))]
        if rate <= 1 or rate * self._least <= rest:
            return rate
        fitting = (r for r in self._rates if r > 1 and r * self._least <= rest)
        return max(fitting, default=Fraction(1))

    def _read(
        self, sequence: int, start: int, rest: int, rate: Fraction
    ) -> tuple[Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Reads at most `size` points at a rate, z-scored; 0 where one is missing."""
        coarser, finer = rate.numerator, rate.denominator
        size = self.index.size
        # The last point read between two others needs the stored point after it, too.
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
    """The mean of every `factor` points, without the missing ones."""
    whole = len(values) // factor * factor
    known = mask[:whole].reshape(-1, factor).sum(axis=1)
    # Missing values are 0, so that a sum leaves them out.
    total = values[:whole].reshape(-1, factor).sum(axis=1)
    return (total / np.maximum(known, 1)).astype(np.float32), known > 0


def _between(
    values: Float32[np.ndarray, " n"], mask: Bool[np.ndarray, " n"], factor: int, size: int
) -> tuple[Float32[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """At most `size` points: those given, and `factor` - 1 more on the line to each next one."""
    if len(values) < 2:
        return values, mask
    position = np.arange(min(size, (len(values) - 1) * factor + 1))
    before, step = np.divmod(position, factor)
    after = np.minimum(before + 1, len(values) - 1)
    fraction = (step / factor).astype(np.float32)
    read = values[before] * (1 - fraction) + values[after] * fraction
    known = mask[before] & (mask[after] | (step == 0))
    return np.where(known, read, 0).astype(np.float32), known
