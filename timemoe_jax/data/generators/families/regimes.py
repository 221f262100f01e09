"""Series that switch between regimes, and trends that break.

Regimes follow Hamilton's switching models (Econometrica 57, 1989): level and spread belong to a
state that changes at random times.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64

from timemoe_jax.data.generators.draws import autoregression, log_uniform, standardize, uniform
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng
from timemoe_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Regimes(Generator):
    """Draws series of segments: each in one of a few states, or with a slope of its own."""

    citation: ClassVar[str] = "Hamilton, Econometrica 57 (1989); trends with breaks, Perron (1989)"

    states: int = 3  # K, the states of a series
    segments: Bounds = (2.0, 40.0)  # expected number of segments of a series
    spread: float = 0.8  # deviation of the logarithm of the states' noise
    noise: Bounds = (0.02, 1.0)  # noise, beside levels and trends of deviation 1
    persistence: Bounds = (0.0, 0.9)  # noise's autocorrelation
    trend_share: float = 0.5  # how many series are broken trends, half with jumps at breaks

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.states < 2:
            raise DataError(f"Regimes: states is {self.states}; it must be at least 2")

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        rate = log_uniform(rng, self.segments, count, 1) / length
        starts = rng.random((count, length)) < rate
        starts[:, 0] = False
        segment = np.cumsum(starts, axis=1, dtype=np.int64)
        amount = int(segment.max()) + 1
        # The next state is any but the present one.
        steps = rng.integers(1, self.states, (count, amount))
        state = np.cumsum(steps, axis=1) % self.states
        noise = autoregression(rng, uniform(rng, self.persistence, count), length)
        noise *= log_uniform(rng, self.noise, count, 1)

        levels = rng.standard_normal((count, self.states))
        scales = np.exp(self.spread * rng.standard_normal((count, self.states)))
        now = np.take_along_axis(state, segment, axis=1)
        values = np.take_along_axis(levels, now, axis=1)
        values += noise * np.take_along_axis(scales, now, axis=1)

        trends = np.flatnonzero(rng.random(count) < self.trend_share)
        if trends.size:
            values[trends] = noise[trends] + broken_trends(rng, segment[trends])
        return values


def broken_trends(
    rng: Rng, segment: Int64[np.ndarray, "count length"]
) -> Float[np.ndarray, "count length"]:
    """Lines whose slopes change where the segment does; half the series jump there, too."""
    count = len(segment)
    shape = (count, int(segment.max()) + 1)
    slopes = rng.standard_normal(shape)
    jumps = rng.standard_normal(shape) * (rng.random((count, 1)) < 0.5)
    lines = np.cumsum(np.take_along_axis(slopes, segment, axis=1), axis=1)
    trend = standardize(lines)
    return trend + 0.5 * np.take_along_axis(np.cumsum(jumps, axis=1), segment, axis=1)
