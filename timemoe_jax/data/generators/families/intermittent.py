"""Intermittent demand: mostly zeros, and counts of varying size in between (Croston, 1972)."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.data.generators.draws import PerSeries, kinds, log_uniform, uniform
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng


@dataclasses.dataclass(frozen=True)
class Intermittent(Generator):
    """Draws demand by Croston's model, or zero-inflated negative binomial counts."""

    citation: ClassVar[str] = "Croston, Operational Research Quarterly 23 (1972); Lambert (1992)"

    occurrence: Bounds = (0.05, 0.5)  # probability of demand at a point
    size: Bounds = (0.5, 30.0)  # mean of the counts, of Croston's beyond one
    dispersion: Bounds = (0.5, 5.0)  # size parameter of counts: the smaller, the more spread
    periods: tuple[int, ...] = (7, 12, 24, 30, 52, 365)  # points, with which occurrence swings
    swing: Bounds = (0.0, 0.9)  # that swing, as a share of the occurrence
    croston_share: float = 0.5  # how many series follow Croston's model

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        period = rng.choice(self.periods, count)[:, None]
        phase = 2 * np.pi * (np.arange(length) / period + rng.random((count, 1)))
        wave = 1.0 + uniform(rng, self.swing, count, 1) * np.cos(phase)
        chance = log_uniform(rng, self.occurrence, count, 1) * wave
        mean = log_uniform(rng, self.size, count)
        dispersion = log_uniform(rng, self.dispersion, count)
        values = np.zeros((count, length))
        weights = {"croston": self.croston_share, "inflated": 1.0 - self.croston_share}
        for kind, rows in kinds(rng, weights, count).items():
            demand = counts(rng, mean[rows], dispersion[rows], length)
            occurs = rng.random(demand.shape) < chance[rows]
            values[rows] = occurs * (demand + 1.0 if kind == "croston" else demand)
        return values


def counts(
    rng: Rng, mean: PerSeries, dispersion: PerSeries, length: int
) -> Float64[np.ndarray, "count {length}"]:
    """Negative binomial counts of given mean and variance mean + mean^2 / dispersion."""
    success = (dispersion / (dispersion + mean))[:, None]
    return rng.negative_binomial(dispersion[:, None], success, (mean.size, length)).astype(float)
