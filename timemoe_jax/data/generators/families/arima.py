"""ARIMA series, seasonal or not (Box and Jenkins, 1970)."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64
from scipy.signal import lfilter

from timemoe_jax.data.generators.draws import uniform
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng

# Points that are made and thrown away before the first that is given out.
BURN_IN = 512


@dataclasses.dataclass(frozen=True)
class Arima(Generator):
    """Draws ARIMA(p, d, q) series, some with a seasonal autoregression.

    Coefficients are drawn as partial autocorrelations (Monahan, 1984), so that every series is
    stationary before it is summed, and invertible.
    """

    citation: ClassVar[str] = "Box and Jenkins (1970); Monahan, Biometrika 71 (1984)"

    max_order: int = 3  # the most autoregressive, and the most moving-average coefficients
    partial: Bounds = (-0.95, 0.95)  # partial autocorrelations, within -1 and 1
    differences: tuple[float, ...] = (0.5, 0.4, 0.1)  # shares of series summed 0, 1, 2 times
    seasons: tuple[int, ...] = (4, 7, 12, 24, 48, 52, 96, 168)  # points, for seasonal series
    seasonal: Bounds = (0.3, 0.95)  # seasonal autoregressive coefficient
    seasonal_share: float = 0.4  # how many series have one
    drift: Bounds = (-0.05, 0.05)  # mean of the innovations, whose deviation is 1
    tails: float = 4.0  # degrees of freedom of half the innovations; others are Gaussian

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        shocks = rng.standard_normal((count, BURN_IN + length))
        heavy = np.flatnonzero(rng.random(count) < 0.5)
        shocks[heavy] = rng.standard_t(self.tails, (heavy.size, BURN_IN + length))
        # A coefficient that is not used is a partial autocorrelation of zero.
        orders = np.arange(self.max_order) < rng.integers(0, self.max_order + 1, (2, count, 1))
        partials = uniform(rng, self.partial, 2, count, self.max_order) * orders
        regressive, moving = from_partials(partials[0]), from_partials(partials[1])
        season = rng.choice(self.seasons, count)
        strength = uniform(rng, self.seasonal, count)
        strength *= rng.random(count) < self.seasonal_share
        share = np.array(self.differences) / np.sum(self.differences)
        times = rng.choice(len(share), count, p=share)
        drift = uniform(rng, self.drift, count)
        values = np.empty((count, length))
        for row in range(count):
            made = lfilter((1.0, *moving[row]), (1.0, *-regressive[row]), shocks[row])
            if strength[row]:
                denominator = np.zeros(season[row] + 1)
                denominator[0], denominator[-1] = 1.0, -strength[row]
                made = lfilter((1.0,), denominator, made)
            made = made[BURN_IN:]
            for _ in range(times[row]):
                made = np.cumsum(made + drift[row])
            values[row] = made
        return values


def from_partials(partial: Float64[np.ndarray, "count p"]) -> Float64[np.ndarray, "count p"]:
    """Coefficients of stationary autoregressions with given partial autocorrelations."""
    coefficients = np.zeros_like(partial)
    for k in range(partial.shape[1]):
        reflected = coefficients[:, :k][:, ::-1]
        coefficients[:, :k] = coefficients[:, :k] - partial[:, k, None] * reflected
        coefficients[:, k] = partial[:, k]
    return coefficients
