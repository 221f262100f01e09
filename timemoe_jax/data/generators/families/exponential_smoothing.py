"""Series of exponential smoothing models in state space form (ETS), and of steady growth."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from timemoe_jax.data.generators.draws import (
    PerSeries,
    autoregression,
    log_uniform,
    smooth,
    standardize,
    uniform,
)
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng

# A multiplicative season never falls below this share of the level.
_LEAST_SEASON = 0.05


@dataclasses.dataclass(frozen=True)
class ExponentialSmoothing(Generator):
    """Draws ETS series: errors A or M, trend N, A or damped, season N, A or M.

    Levels start at 1, so that everything else is relative to that.
    """

    citation: ClassVar[str] = "Hyndman et al., Forecasting with Exponential Smoothing (2008)"

    seasons: tuple[int, ...] = (4, 7, 12, 24, 48, 52, 96, 168)  # points, one per series
    noise: Bounds = (0.005, 0.1)  # errors' standard deviation
    level: Bounds = (0.01, 0.5)  # smoothing of the level, alpha
    trend: Bounds = (0.001, 0.05)  # smoothing of the slope, beta as a share of alpha
    season: Bounds = (0.001, 0.1)  # smoothing of the season, gamma as a share of 1 - alpha
    slope: float = 2.0  # standard deviation of the first slope over the whole series
    damping: Bounds = (0.9, 0.998)  # damping of a damped trend, per point
    swing: Bounds = (0.05, 0.4)  # season's standard deviation

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        trended, damped = rng.random(count) < 0.6, rng.random(count) < 0.5
        period = rng.choice(self.seasons, count)
        ring = self._first_seasons(rng, period)
        seasonal, times = rng.random(count) < 0.7, rng.random(count) < 0.5
        # A season that is not there is the neutral element of its kind.
        ring = np.where(seasonal[:, None], ring, 0.0)
        ring = np.where(times[:, None], np.maximum(np.exp(ring), _LEAST_SEASON), ring)
        alpha = log_uniform(rng, self.level, count)
        smoothing = np.stack(
            [
                alpha,
                trended * alpha * log_uniform(rng, self.trend, count),
                seasonal * (1 - alpha) * log_uniform(rng, self.season, count),
            ]
        )
        slope = trended * rng.normal(0.0, self.slope / length, count)
        decay = np.where(damped, uniform(rng, self.damping, count), 1.0)
        shocks = log_uniform(rng, self.noise, count) * rng.standard_normal((length, count))
        relative = rng.random(count) < 0.5
        return simulate(shocks, relative, smoothing, slope, decay, ring, period, times).T

    def _first_seasons(
        self, rng: Rng, period: Int64[np.ndarray, " count"]
    ) -> Float64[np.ndarray, "count _"]:
        """Draws one cycle for each series, of mean 0; what lies beyond its period is not used."""
        angle = 2 * np.pi * np.arange(max(self.seasons)) / period[:, None]
        k = np.arange(1, 4)[:, None, None]
        waves = np.cos(k * angle + rng.uniform(0, 2 * np.pi, (3, period.size, 1)))
        amplitude = rng.standard_normal((3, period.size, 1)) / k
        shape = np.sum(amplitude * waves, axis=0)
        return uniform(rng, self.swing, period.size, 1) * shape


@dataclasses.dataclass(frozen=True)
class Growth(Generator):
    """Draws what a quarter, a month, a week or a year of an economy looks like.

    The logarithm of the level is a random walk with a rate of growth. The rate of some series holds
    until it is drawn anew, near what is usual for them, which nothing announces; that of the others
    changes all the time. A season multiplies the level, or is added, and a shock may move it for
    good. Some series are none of this: they grow by a power of time without an end, and all else is
    in proportion to that.
    """

    citation: ClassVar[str] = "after Harvey (1989), Structural Time Series Models"

    seasons: tuple[int, ...] = (1, 1, 4, 4, 12, 12, 12, 52)  # points, one per series
    steady: float = 0.6  # the share of series whose rate holds for a while
    lasting: Bounds = (30.0, 1500.0)  # points that it holds on average
    grown: Bounds = (0.1, 2.0)  # deviation of the logarithm of what is grown by meanwhile
    growth: Bounds = (0.02, 1.0)  # deviation of a rate that changes all the time, per 12 points
    stretch: Bounds = (12.0, 200.0)  # points over which that is about the same
    wander: Bounds = (0.001, 0.1)  # deviation of the steps of the random walk
    range: float = 5.0  # the logarithm of the level is reflected so far from its mean
    swing: Bounds = (0.02, 0.5)  # deviation of the season
    evolving: Bounds = (60.0, 600.0)  # points over which the shape of a season is about the same
    noise: Bounds = (0.003, 0.2)  # deviation of noise
    persistence: Bounds = (0.0, 0.95)  # its autocorrelation from point to point
    shock: float = 0.3  # deviation of a lasting shock, of which some series have a few
    endless: float = 0.1  # the share of series that grow without an end
    power: Bounds = (0.5, 2.5)  # of time, by which they grow
    begun: Bounds = (10.0, 1000.0)  # points before the first that their time begins
    falling: float = 0.2  # the share of them that decline
    walk: Bounds = (0.03, 10.0)  # deviation of the steps of their random walk, in their growth
    rest: Bounds = (0.03, 30.0)  # deviations of their noise and season, in their growth

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        endless = rng.random((count, 1)) < self.endless
        period = rng.choice(self.seasons, count)
        season = self._season(rng, period, length) * (period > 1)[:, None]
        coefficient = uniform(rng, self.persistence, count)
        noise = autoregression(rng, coefficient, length)
        onward = self._onward(rng, season, noise)
        return np.where(endless, onward, self._bounded(rng, season, noise))

    def _onward(
        self,
        rng: Rng,
        season: Float64[np.ndarray, "count length"],
        noise: Float64[np.ndarray, "count length"],
    ) -> Float64[np.ndarray, "count length"]:
        """Series whose growth is that of a power of time."""
        count, length = season.shape
        begun = log_uniform(rng, self.begun, count, 1)
        time, power = 1 + np.arange(length) / begun, uniform(rng, self.power, count, 1)
        rate = time ** (power - 1)
        steps = log_uniform(rng, self.walk, count, 1) * rng.standard_normal((count, length))
        rest = log_uniform(rng, self.rest, count, 1) * noise
        rest += log_uniform(rng, self.rest, count, 1) * season
        trend = begun * time**power / power
        trend *= np.where(rng.random((count, 1)) < self.falling, -1, 1)
        return trend + np.cumsum(rate * steps, axis=1) + rate * rest

    def _bounded(
        self,
        rng: Rng,
        season: Float64[np.ndarray, "count length"],
        noise: Float64[np.ndarray, "count length"],
    ) -> Float64[np.ndarray, "count length"]:
        """Series whose level comes back."""
        count, length = season.shape
        steps = log_uniform(rng, self.wander, count, 1) * rng.standard_normal((count, length))
        level = np.cumsum(self._rate(rng, count, length) + steps, axis=1)
        level += rng.normal(0.0, 1.0, (count, 1))
        struck = rng.random((count, length)) < uniform(rng, (0.0, 0.01), count, 1)
        struck &= rng.random((count, 1)) < 0.3
        level += np.cumsum(struck * rng.normal(0.0, self.shock, (count, length)), axis=1)
        level = 2 / np.pi * self.range * np.arcsin(np.sin(np.pi / 2 * level / self.range))
        season = log_uniform(rng, self.swing, count, 1) * season
        noise = log_uniform(rng, self.noise, count, 1) * noise
        multiplied = np.exp(level + season + noise)
        return np.where(rng.random((count, 1)) < 0.6, multiplied, level + season + noise)

    def _rate(self, rng: Rng, count: int, length: int) -> Float64[np.ndarray, "count {length}"]:
        """The growth of each point: more often up than down where it holds, as it was before."""
        lasting = log_uniform(rng, self.lasting, count, 1)
        drawn = np.cumsum(rng.random((count, length)) < 1 / lasting, axis=1, dtype=np.int64)
        # What has grown goes on growing, faster or slower, more often than it turns.
        usual = 0.7 + 0.8 * rng.standard_normal((count, 1))
        rates = usual + 0.6 * rng.standard_normal((count, drawn.max() + 1))
        rates *= log_uniform(rng, self.grown, count, 1) / lasting
        changing = smooth(rng, log_uniform(rng, self.stretch, count), length)
        changing *= log_uniform(rng, self.growth, count, 1) / 12
        steady = rng.random((count, 1)) < self.steady
        return np.where(steady, np.take_along_axis(rates, drawn, axis=1), changing)

    def _season(
        self, rng: Rng, period: Int64[np.ndarray, " count"], length: int
    ) -> Float64[np.ndarray, "count {length}"]:
        """A cycle of variance 1, of single months or of smooth waves, that changes slowly."""
        count, longest = len(period), max(self.seasons)
        phase = np.arange(length) % period[:, None]
        tables = rng.standard_normal((2, count, longest))
        waves = np.arange(1, 4)[:, None, None] * phase / period[:, None]
        turned = np.sin(2 * np.pi * (waves + rng.random((3, count, 1))))
        amplitude = rng.standard_normal((3, count, 1)) / np.arange(1, 4)[:, None, None]
        shapes = [np.take_along_axis(table, phase, axis=1) for table in tables]
        pure = rng.random((count, 1)) < 0.5
        first = standardize(np.where(pure, np.sum(amplitude * turned, axis=0), shapes[0]))
        drift = smooth(rng, log_uniform(rng, self.evolving, count), length)
        return first + 0.3 * drift * shapes[1] * (rng.random((count, 1)) < 0.5)


def simulate(
    shocks: Float64[np.ndarray, "length count"],
    relative: Bool[np.ndarray, " count"],
    smoothing: Float64[np.ndarray, "3 count"],
    slope: PerSeries,
    damping: PerSeries,
    ring: Float64[np.ndarray, "count P"],
    period: Int64[np.ndarray, " count"],
    times: Bool[np.ndarray, " count"],
) -> Float64[np.ndarray, "length count"]:
    """Runs the state equations from a level of 1.

    `relative` errors are shares of the mean, y = mu (1 + e), not added; `smoothing` is alpha, beta
    and gamma; `slope` is the first, in levels per point, and `damping` what is left of it after a
    point. `ring` is the first cycle of each series, and P the longest period; the season `times`
    the level, or is added to it.
    """
    alpha, beta, gamma = smoothing
    level, rows = np.ones(len(slope)), np.arange(len(slope))
    ring, values = ring.copy(), np.empty_like(shocks)
    for t in range(len(shocks)):
        season = ring[rows, t % period]
        slope = damping * slope
        base = level + slope
        mean = np.where(times, base * season, base + season)
        error = shocks[t] * np.where(relative, mean, 1.0)
        values[t] = mean + error
        by_level = error / np.where(times, season, 1.0)
        # Dividing by a level near zero would throw the season off: 0.5 is the least divisor.
        by_season = error / np.where(times, np.maximum(np.abs(base), 0.5), 1.0)
        level = base + alpha * by_level
        slope = slope + beta * by_level
        moved = season + gamma * by_season
        ring[rows, t % period] = np.where(times, np.maximum(moved, _LEAST_SEASON), moved)
    return values
