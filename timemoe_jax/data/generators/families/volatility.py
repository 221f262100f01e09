"""Random walks whose volatility is itself random: GARCH and stochastic volatility."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.data.generators.draws import PerSeries, autoregression, kinds, uniform
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng


@dataclasses.dataclass(frozen=True)
class Volatility(Generator):
    """Draws returns of GARCH(1, 1) or stochastic volatility, or the prices that they add up to."""

    citation: ClassVar[str] = "Bollerslev (1986); Taylor (1986), Modelling Financial Time Series"

    reaction: Bounds = (0.03, 0.2)  # GARCH's alpha
    persistence: Bounds = (0.9, 0.995)  # alpha + beta, or autocorrelation of the log volatility
    spread: Bounds = (0.2, 0.8)  # deviation of the log volatility
    tails: Bounds = (4.0, 30.0)  # degrees of freedom of the shocks; at least 3
    price_scale: Bounds = (0.05, 1.0)  # deviation of a log price over the series
    weights: tuple[float, float, float] = (1.0, 2.0, 2.0)  # returns, log prices, prices

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        tails = uniform(rng, self.tails, count, 1)
        # Of variance 1.
        shocks = rng.standard_t(tails, (count, length)) * np.sqrt((tails - 2) / tails)
        persistence = uniform(rng, self.persistence, count)
        returns = np.empty((count, length))
        for kind, rows in kinds(rng, {"garch": 1.0, "stochastic": 1.0}, count).items():
            if kind == "garch":
                alpha = uniform(rng, self.reaction, rows.size)
                beta = persistence[rows] - alpha
                returns[rows] = garch(shocks[rows], alpha, beta)
            else:
                spread = uniform(rng, self.spread, rows.size, 1)
                log_volatility = spread * autoregression(rng, persistence[rows], length)
                returns[rows] = np.exp(log_volatility) * shocks[rows]
        walk = uniform(rng, self.price_scale, count, 1) * np.cumsum(returns, axis=1)
        walk /= np.sqrt(length)
        names = ("returns", "log_prices", "prices")
        seen = kinds(rng, dict(zip(names, self.weights, strict=True)), count)
        for kind, rows in seen.items():
            if kind != "returns":
                returns[rows] = np.exp(walk[rows]) if kind == "prices" else walk[rows]
        return returns


def garch(
    shocks: Float64[np.ndarray, "count length"], alpha: PerSeries, beta: PerSeries
) -> Float64[np.ndarray, "count length"]:
    """r[t] = sqrt(h[t]) shock[t], h[t+1] = 1 - alpha - beta + alpha r[t]^2 + beta h[t], h[0] = 1.

    The returns' variance is 1 if that of the shocks is.
    """
    squared = np.square(shocks.T)
    variance = np.empty_like(squared)
    h, base = np.ones_like(alpha), 1.0 - alpha - beta
    for t in range(len(squared)):
        variance[t] = h
        h = base + (alpha * squared[t] + beta) * h
    return shocks * np.sqrt(variance.T)
