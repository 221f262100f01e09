"""Series that go round: sums of exact frequencies as the tides are, days, and cycles of any shape.

Other families know the calendar: their days have 24 points, or 48, or 96. A model that is trained
on these alone learns the lengths by heart, and sees no season where a cycle has another one. In
`Recurrence` every length is as likely as any other of its size.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.special import ndtr

from timemoe_jax.data.generators.draws import (
    autoregression,
    log_uniform,
    smooth,
    standardize,
    uniform,
)
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng

_PHASES = 1024


@dataclasses.dataclass(frozen=True)
class Tides(Generator):
    """Draws sums of sines whose periods have no common multiple, some with a slow swell and noise.

    The further periods of a series lie near the first, its half or its third, so that the sum
    beats, or anywhere.
    """

    citation: ClassVar[str] = "Doodson, Proc. R. Soc. A 100 (1921): harmonic analysis of tides"

    period: Bounds = (4.0, 400.0)  # of the first sine, in points
    sines: tuple[int, int] = (1, 8)  # how many, each number as likely
    near: float = 0.08  # deviation of the logarithm of a period near another
    decay: Bounds = (0.3, 1.5)  # the k-th amplitude falls as k to this power
    noise: Bounds = (0.005, 0.5)  # deviation of noise, in those of the sum
    swell: Bounds = (0.05, 0.8)  # deviation of the logarithm of a slow factor, where there is one

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        most = self.sines[1]
        number = rng.integers(self.sines[0], most + 1, count)
        first = log_uniform(rng, self.period, count, 1)
        divisor = rng.choice([1.0, 1.0, 2.0, 3.0], (count, most))
        close = first / divisor * np.exp(self.near * rng.standard_normal((count, most)))
        anywhere = rng.random((count, most)) < 0.3
        period = np.where(anywhere, log_uniform(rng, self.period, count, most), close)
        period[:, 0] = first[:, 0]
        order = np.arange(most)
        amplitude = (order + 1.0) ** -uniform(rng, self.decay, count, 1)
        amplitude = amplitude * (order < number[:, None])
        angle = (
            rng.random((count, most, 1)) + np.arange(length) / np.maximum(period, 2.1)[..., None]
        )
        values = np.einsum("nk,nkt->nt", amplitude, np.sin(2 * np.pi * angle))
        swelling = uniform(rng, self.swell, count, 1) * (rng.random((count, 1)) < 0.3)
        values *= np.exp(swelling * smooth(rng, np.full(count, max(1.0, length / 6)), length))
        # Half of them are as clean as a formula.
        noise = log_uniform(rng, self.noise, count, 1) * (rng.random((count, 1)) < 0.5)
        scale = values.std(axis=1, keepdims=True)
        return values + noise * scale * rng.standard_normal((count, length))


@dataclasses.dataclass(frozen=True)
class Daylight(Generator):
    """Draws what the sun does: dark for a part of each day, bright in the rest, dimmed by clouds.

    value[t] = max(cos(day angle) - horizon, 0)^power * brightness of the day * clouds[t]
    """

    citation: ClassVar[str] = "after Duffie and Beckman, Solar Engineering (1980): clear-sky index"

    days: tuple[int, ...] = (24, 48, 96, 144, 288)  # points of a day, of half of the series
    period: Bounds = (12.0, 300.0)  # of the others; at most half of the series
    horizon: Bounds = (-0.4, 0.7)  # cosine below which it is dark; a year moves it by up to 0.3
    power: Bounds = (0.7, 1.8)
    dim: Bounds = (0.0, 0.95)  # the share of a bright day that a dark one lacks
    clouds: Bounds = (0.0, 0.95)  # the share that the thickest cloud takes away
    passing: Bounds = (0.004, 0.3)  # days in which a cloud passes
    noise: Bounds = (0.001, 0.05)  # deviation of noise of the instrument, of a third of the series

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        longest = max(self.period[0], min(self.period[1], length / 2))
        period = log_uniform(rng, (self.period[0], longest), count)
        known = np.array([d for d in self.days if d <= longest] or [period[0]], np.float64)
        period = np.where(rng.random(count) < 0.5, rng.choice(known, count), period)
        day = np.arange(length) / period[:, None] + 1000 * rng.random((count, 1))
        year = uniform(rng, (0.0, 0.3), count, 1) * np.cos(2 * np.pi * day / 365.25)
        low = uniform(rng, self.horizon, count, 1) + year
        sun = np.maximum(np.cos(2 * np.pi * day) - low, 0) ** uniform(rng, self.power, count, 1)
        # A day is the time around its noon.
        number = np.round(day).astype(np.int64)
        number -= number[:, :1]
        weather = autoregression(rng, uniform(rng, (0.0, 0.8), count), int(number.max()) + 1)
        dim = uniform(rng, self.dim, count, 1) * np.take_along_axis(ndtr(weather), number, axis=1)
        persistence = np.exp(-1 / (period * log_uniform(rng, self.passing, count)))
        cover = ndtr(1.5 * autoregression(rng, persistence, length))
        bright = (1 - dim) * (1 - uniform(rng, self.clouds, count, 1) * cover)
        values = sun * bright
        noise = log_uniform(rng, self.noise, count, 1) * (rng.random((count, 1)) < 0.33)
        return values + noise * values.std(axis=1, keepdims=True) * rng.standard_normal(sun.shape)


@dataclasses.dataclass(frozen=True)
class Recurrence(Generator):
    """Draws cycles of random shapes; some are days of a longer week, some fade, some are cut at 0.

    value[t] = shape[day of t, phase of t] * strength[cycle of t] + drift[t] + noise[t]. A
    series has two shapes, and a week says which of its days have the second one.
    """

    citation: ClassVar[str] = (
        "after Harvey and Koopman (1993), J. Am. Stat. Assoc. 88: time-varying splines"
    )

    period: Bounds = (4.0, 400.0)  # points of a cycle; at most a third of the series
    whole: float = 0.7  # share of series whose period is a whole number
    roughness: Bounds = (0.0, 2.0)  # the k-th harmonic falls as k to minus this power
    flat: float = 0.35  # share of series that lie at a floor or a ceiling for part of each cycle
    week: Bounds = (2.0, 12.0)  # cycles of a longer cycle
    weekly: float = 0.4  # share of series that have one, of seven cycles half of the time
    fading: Bounds = (0.02, 0.6)  # deviation of the logarithm of a cycle's strength
    drift: Bounds = (0.01, 1.0)  # deviation of a slow level, in those of the cycles
    noise: Bounds = (0.003, 0.6)  # deviation of noise, in those of the cycles

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        longest = max(self.period[0], min(self.period[1], length / 3))
        period = log_uniform(rng, (self.period[0], longest), count)
        period = np.where(rng.random(count) < self.whole, np.round(period), period)
        phase = np.arange(length) / period[:, None] + rng.random((count, 1))
        cycle = phase.astype(np.int64)
        position = (phase - cycle) * _PHASES
        values = self._shaped(rng, period, position, self._days(rng, cycle))
        values *= self._strength(rng, cycle)
        moving = log_uniform(rng, self.drift, count, 1) * (rng.random((count, 1)) < 0.6)
        scales = period * log_uniform(rng, (1.0, 10.0), count)
        values += moving * smooth(rng, scales, length)
        persistence = np.where(rng.random(count) < 0.5, 0.0, uniform(rng, (0.0, 0.98), count))
        noise = autoregression(rng, persistence, length)
        return values + log_uniform(rng, self.noise, count, 1) * noise

    def _days(
        self, rng: Rng, cycle: Int64[np.ndarray, "count length"]
    ) -> Int64[np.ndarray, "count length"]:
        """Which of the two shapes a point has: the second one on some days of a week, if any."""
        count = len(cycle)
        drawn = rng.integers(int(self.week[0]), int(self.week[1]) + 1, count)
        days = np.where(rng.random(count) < 0.5, 7, drawn)[:, None]
        table = rng.random((count, max(7, int(self.week[1])))) < uniform(rng, (0.1, 0.5), count, 1)
        table &= rng.random((count, 1)) < self.weekly
        return np.take_along_axis(table, cycle % days, axis=1).astype(np.int64)

    def _shaped(
        self,
        rng: Rng,
        period: Float64[np.ndarray, " count"],
        position: Float64[np.ndarray, "count length"],
        day: Int64[np.ndarray, "count length"],
    ) -> Float64[np.ndarray, "count length"]:
        """What the shapes have where each point is, between their phases in a line."""
        count = len(period)
        first, other = (self._shapes(rng, period) for _ in range(2))
        # The second shape resembles the first one more or less, or is a weaker one of it.
        alike = rng.random((count, 1))
        other = np.where(rng.random((count, 1)) < 0.5, alike * first, first + alike * other)
        other += rng.normal(0.0, 0.5, (count, 1))
        shapes = np.concatenate([first, other], axis=1)
        left = position.astype(np.int64) % _PHASES
        after = (left + 1) % _PHASES
        low, high = (np.take_along_axis(shapes, p + day * _PHASES, axis=1) for p in (left, after))
        return low + (position - np.floor(position)) * (high - low)

    def _shapes(
        self, rng: Rng, period: Float64[np.ndarray, " count"]
    ) -> Float64[np.ndarray, "count P"]:
        """Sums of harmonics, none faster than two points; some cut at a level, some made steep."""
        count = len(period)
        k = np.arange(1, _PHASES // 2 + 1)
        amplitude = k ** -uniform(rng, self.roughness, count, 1)
        most = np.minimum(period / 2, np.round(log_uniform(rng, (1.0, 200.0), count)))
        amplitude = amplitude * (k <= np.maximum(most, 1.0)[:, None])
        waves = rng.standard_normal((2, count, k.size)) * amplitude
        spectrum = np.concatenate([np.zeros((count, 1)), waves[0] + 1j * waves[1]], axis=1)
        shape = standardize(np.fft.irfft(spectrum, _PHASES, axis=1))
        steep = np.where(rng.random((count, 1)) < 0.15, log_uniform(rng, (1.0, 20.0), count, 1), 0)
        shape = np.where(steep > 0, np.tanh(steep * shape), shape)
        floor = uniform(rng, (-0.5, 1.0), count, 1)
        cut = rng.random((count, 1)) < self.flat
        shape = standardize(np.where(cut, np.maximum(shape, floor), shape))
        return np.where(rng.random((count, 1)) < 0.7, shape, -shape)

    def _strength(
        self, rng: Rng, cycle: Int64[np.ndarray, "count length"]
    ) -> Float64[np.ndarray, "count length"]:
        """A factor for each cycle, of half of the series; persistent or drawn for each anew."""
        count = len(cycle)
        persistence = uniform(rng, (0.0, 0.9), count)
        each = autoregression(rng, persistence, int(cycle.max()) + 1)
        fading = log_uniform(rng, self.fading, count, 1) * (rng.random((count, 1)) < 0.5)
        return np.exp(fading * np.take_along_axis(each, cycle, axis=1))
