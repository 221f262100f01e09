"""Stochastic differential equations, by their exact transition laws (no step size error)."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.data.generators.draws import PerSeries, kinds, log_uniform, recursion, uniform
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng


@dataclasses.dataclass(frozen=True)
class Diffusion(Generator):
    """Draws Ornstein-Uhlenbeck processes, geometric Brownian motions and Merton jump diffusions.

    Time is counted in points: dt = 1.
    """

    citation: ClassVar[str] = (
        "Uhlenbeck and Ornstein (1930); Black and Scholes (1973); Merton, J. Fin. Econ. 3 (1976)"
    )

    reversion: Bounds = (0.002, 0.5)  # theta of dx = -theta x dt + sigma dW
    volatility: Bounds = (0.001, 0.03)  # sigma of dS = S (drift dt + sigma dW), per point
    drift: Bounds = (-2.0, 2.0)  # drift over the whole series, in its deviations
    jump_rate: Bounds = (1.0, 30.0)  # expected number of jumps of a series
    jump_size: Bounds = (3.0, 15.0)  # deviation of a jump of log S, in sigmas
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of the three kinds

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        values = np.empty((count, length))
        names = ("ornstein_uhlenbeck", "geometric_brownian", "merton")
        for kind, rows in kinds(rng, dict(zip(names, self.weights, strict=True)), count).items():
            if kind == "ornstein_uhlenbeck":
                theta = log_uniform(rng, self.reversion, rows.size)
                values[rows] = ornstein_uhlenbeck(rng, theta, np.ones(rows.size), length)
                continue
            sigma = log_uniform(rng, self.volatility, rows.size)
            drift = uniform(rng, self.drift, rows.size) * sigma / np.sqrt(length)
            rate = np.zeros(rows.size)
            if kind == "merton":
                rate = log_uniform(rng, self.jump_rate, rows.size) / length
            jump = sigma * log_uniform(rng, self.jump_size, rows.size)
            values[rows] = np.exp(log_price(rng, drift, sigma, rate, jump, length))
        return values


def ornstein_uhlenbeck(
    rng: Rng, theta: PerSeries, sigma: PerSeries, length: int, dt: float = 1.0
) -> Float64[np.ndarray, "count {length}"]:
    """Stationary solutions of dx = -theta x dt + sigma dW, dt apart."""
    decay = np.exp(-theta * dt)
    deviation = sigma / np.sqrt(2 * theta)
    inputs = deviation[:, None] * rng.standard_normal((theta.size, length))
    inputs[:, 1:] *= np.sqrt(-np.expm1(-2 * theta * dt))[:, None]
    return recursion(decay, inputs)


def log_price(
    rng: Rng,
    drift: PerSeries,
    sigma: PerSeries,
    jump_rate: PerSeries,
    jump_size: PerSeries,
    length: int,
) -> Float64[np.ndarray, "count {length}"]:
    """log S of dS / S = drift dt + sigma dW + jumps, one point apart, from log S = 0.

    Jumps of log S are normal of mean 0 and deviation `jump_size`, and come `jump_rate` times per
    point on average.
    """
    shape = (drift.size, length)
    returns = (drift - sigma**2 / 2)[:, None] + sigma[:, None] * rng.standard_normal(shape)
    if jump_rate.any():
        jumps = rng.poisson(jump_rate[:, None], shape)
        # The sum of n normal jumps is one of n times the variance.
        returns += np.sqrt(jumps) * jump_size[:, None] * rng.standard_normal(shape)
    returns[:, 0] = 0.0
    return np.cumsum(returns, axis=1)
