"""Series that are sums and products of components: cycles, trends, noise, level shifts, spikes.

Cycles are daily, weekly and yearly ones of many shapes, and noise is persistent, as in real series.
Some series hold no pattern at all, so that a model also learns when there is nothing to forecast
but the level. `Components` draws them in blocks, as every family does; `SyntheticSource` makes each
series on access.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float32, Float64

from timemoe_jax.data.generators import draws
from timemoe_jax.data.generators.draws import standardize
from timemoe_jax.data.generators.generator import Generator, Rng
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError

# Points in a cycle of series sampled hourly, half-hourly, ..., daily, weekly, monthly, quarterly,
# and how often each is drawn; a week and a year may join a day.
_PERIODS = (24, 48, 96, 144, 288, 7, 12, 52.18, 4, 6, 168, 30.44, 365.25)
_PERIOD_WEIGHTS = np.array((24, 8, 7, 4, 2, 14, 12, 6, 4, 3, 8, 3, 5), float)
_DAYS = (24, 48, 96, 144, 288)
_PHASES = 256


@dataclasses.dataclass(frozen=True)
class Components(Generator):
    """Draws sums and products of the parts that real series are made of, one series at a time."""

    citation: ClassVar[str] = "after Harvey (1989), Structural Time Series Models"

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        return np.stack([generate(rng, length) for _ in range(count)])


class SyntheticSource(SequenceSource):
    """Generated series; series i depends on the seed, i and the length alone."""

    def __init__(self, num_sequences: int, length: int, seed: int):
        if num_sequences < 1 or length < 1 or seed < 0:
            raise DataError(
                f"num_sequences {num_sequences} and length {length} must be at least 1, and seed "
                f"{seed} at least 0"
            )
        self._length = length
        self._seed = seed
        self.lengths = np.full(num_sequences, length, np.int64)

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        return generate(np.random.default_rng([self._seed, i]), self._length)[start:stop]

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"synthetic series {i} of seed {self._seed}"


def generate(rng: Rng, n: int) -> Float32[np.ndarray, " {n}"]:
    """Draws one series of `n` points: first its kind, then everything about it."""
    kinds = (cyclic, multiplicative, daylight, counts, patternless)
    kind = kinds[rng.choice(len(kinds), p=(0.55, 0.12, 0.12, 0.03, 0.18))]
    values = kind(rng, n)
    if rng.random() < 0.08:
        values = values + level_shifts(rng, n) * np.std(values)
    if rng.random() < 0.08:
        values = values + spikes(rng, n) * np.std(values)
    if rng.random() < 0.06:
        # As of a meter of few digits.
        step = np.ptp(values) / rng.integers(8, 200)
        values = np.round(values / step) * step if step > 0 else values
    scale = np.exp(rng.normal(0.0, 2.0))
    return (scale * (values + rng.normal(0.0, 5.0))).astype(np.float32)


def cyclic(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """One to three cycles, with a trend and persistent noise added."""
    values = standardize(cycles(rng, n))
    if rng.random() < 0.6:
        values = values + _log_uniform(rng, 0.1, 3.0) * trend(rng, n)
    return values + _log_uniform(rng, 0.03, 1.2) * noise(rng, n)


def multiplicative(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """A positive level that cycles and noise multiply, so that they grow with it."""
    level = rng.uniform(0.1, 0.8) * trend(rng, n)
    swing = rng.uniform(0.1, 0.7) * standardize(cycles(rng, n))
    return np.exp(level + swing + _log_uniform(rng, 0.02, 0.3) * noise(rng, n))


def daylight(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """Zero in a part of each cycle and a bump in the rest, like irradiance; some cycles are dim."""
    period = float(rng.choice(_DAYS, p=(0.6, 0.15, 0.15, 0.05, 0.05)))
    day = np.arange(n) / period + rng.random()
    season = np.cos(2 * np.pi * (day / 365.25 + rng.random()))
    threshold = rng.uniform(-0.3, 0.5) - rng.uniform(0.0, 0.3) * season
    sun = np.maximum(np.cos(2 * np.pi * day) - threshold, 0.0) ** rng.uniform(0.7, 1.6)
    dimming = autoregressive(rng, int(n / period) + 2, rng.uniform(0.0, 0.7))
    gain = np.clip(1.0 - rng.uniform(0.0, 0.5) * np.abs(dimming), 0.05, None)
    clouds = np.exp(-_log_uniform(rng, 0.02, 0.5) * np.abs(noise(rng, n)))
    return sun * gain[day.astype(np.int64)] * clouds


def counts(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """Small whole numbers whose rate follows cycles and a trend, like visits or sales."""
    swing = standardize(cycles(rng, n)) * rng.uniform(0.2, 0.8)
    rate = swing + rng.uniform(0.0, 0.4) * trend(rng, n)
    return rng.poisson(np.exp(np.clip(rate + rng.uniform(-0.5, 3.5), -8, 8))).astype(np.float64)


def patternless(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """A random walk, plain noise, or a slow drift: nothing that recurs."""
    kind = rng.integers(4)
    if kind == 0:
        return np.cumsum(rng.standard_normal(n)) + _log_uniform(rng, 0.01, 3.0) * noise(rng, n)
    if kind == 1:
        return noise(rng, n)
    if kind == 2:
        steps = rng.standard_t(4, n) * np.exp(0.7 * smooth(rng, n, 100.0))
        return np.exp(np.clip(np.cumsum(steps) * _log_uniform(rng, 0.001, 0.02), -8, 8))
    return trend(rng, n) + _log_uniform(rng, 0.02, 1.0) * noise(rng, n)


def cycles(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """A sum of one to three cycles; a day may come with its week and its year."""
    period = _period(rng)
    values = seasonal(rng, n, period)
    if period in _DAYS and rng.random() < 0.45:
        values = weekly(rng, n, period, values)
    if rng.random() < 0.45:
        # The year, where the first cycle was a day, or a week of daily values.
        year = 365.25 * period if period in _DAYS else 365.25 if period == 7 else None
        second = year if year is not None and rng.random() < 0.5 else _period(rng)
        values = values + _log_uniform(rng, 0.2, 1.5) * seasonal(rng, n, second)
    if rng.random() < 0.12:
        values = values + _log_uniform(rng, 0.1, 0.7) * seasonal(rng, n, _period(rng))
    return values


def seasonal(rng: Rng, n: int, period: float) -> Float64[np.ndarray, " {n}"]:
    """One cycle: a shape repeated, whose strength may drift or differ from time to time."""
    phase = np.arange(n) / period + rng.random()
    shape = profile(rng)
    position = (phase % 1.0) * _PHASES
    left = position.astype(np.int64) % _PHASES
    after = shape[(left + 1) % _PHASES]
    values = shape[left] + (position - np.floor(position)) * (after - shape[left])
    draw = rng.random()
    if draw < 0.3:
        values = values * np.exp(rng.uniform(0.1, 0.5) * smooth(rng, n, period * 10))
    elif draw < 0.5:
        each = autoregressive(rng, int(n / period) + 2, rng.uniform(0.0, 0.9))
        values = values * np.exp(rng.uniform(0.1, 0.4) * each)[phase.astype(np.int64)]
    return values


def weekly(
    rng: Rng, n: int, day: float, values: Float64[np.ndarray, " {n}"]
) -> Float64[np.ndarray, " {n}"]:
    """Lets a daily cycle differ by the day of the week, most of all at the weekend."""
    level = 0.15 * rng.standard_normal(7)
    level[5:] += rng.uniform(-1.2, 0.4)
    gain = np.exp(0.5 * level)
    of_week = (np.arange(n) / day + 7 * rng.random()).astype(np.int64) % 7
    return values * gain[of_week] + rng.uniform(0.2, 1.2) * level[of_week]


def profile(rng: Rng) -> Float64[np.ndarray, " P"]:
    """The shape of one cycle at equally spaced phases, of mean 0 and variance 1."""
    angle = np.arange(_PHASES) * (2 * np.pi / _PHASES)
    kind = rng.choice(5, p=(0.35, 0.25, 0.2, 0.12, 0.08))
    if kind == 0:
        # Harmonics, from a plain sine to a rough random shape.
        k = np.arange(1, rng.integers(1, 7) + 1)[:, None]
        amplitude = rng.standard_normal(k.shape) * k ** -rng.uniform(0.5, 2.0)
        amplitude[0] = 1.0
        shape = np.sum(amplitude * np.cos(k * angle + rng.uniform(0, 2 * np.pi, k.shape)), axis=0)
    elif kind == 1:
        # One to three bumps or dents, as of morning and evening demand.
        center = rng.uniform(0, 2 * np.pi, (rng.integers(1, 4), 1))
        width = np.exp(rng.uniform(np.log(1.0), np.log(30.0), center.shape))
        weight = rng.choice((1.0, 1.0, -0.7), center.shape) * rng.uniform(0.4, 1.0, center.shape)
        shape = np.sum(weight * np.exp(width * (np.cos(angle - center) - 1.0)), axis=0)
    elif kind == 2:
        shape = np.cos(angle)
    elif kind == 3:
        # On for a part of the cycle, with steep or gentle flanks.
        edge = (np.cos(angle) - rng.uniform(-0.6, 0.6)) * _log_uniform(rng, 2.0, 20.0)
        shape = np.tanh(edge)
    else:
        # A rise and a fall of unequal steepness.
        peak = rng.uniform(0.05, 0.95)
        shape = np.interp(angle / (2 * np.pi), (0.0, peak, 1.0), (0.0, 1.0, 0.0))
    return standardize(shape)


def trend(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """A course without recurrence, of variance 1: line, broken line, curve, or random walk."""
    t = np.linspace(0.0, 1.0, n)
    kind = rng.integers(5)
    if kind == 0:
        values = t * rng.choice((-1.0, 1.0))
    elif kind == 1:
        knots = rng.integers(3, 8)
        at = np.sort(rng.random(knots))
        values = np.interp(t, at, np.cumsum(rng.standard_normal(knots)))
    elif kind == 2:
        values = np.tanh((t - rng.random()) * rng.uniform(2.0, 12.0)) * rng.choice((-1.0, 1.0))
    elif kind == 3:
        values = np.cumsum(rng.standard_normal(n))
    else:
        values = smooth(rng, n, n / rng.uniform(2.0, 12.0))
    return standardize(values)


def noise(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """Noise of variance about 1, from white to very persistent, at times in bursts."""
    kind = rng.random()
    if kind < 0.25:
        values = rng.standard_normal(n)
    elif kind < 0.8:
        values = autoregressive(rng, n, 1.0 - _log_uniform(rng, 0.01, 1.0))
    else:
        # Complex roots: a wave that keeps losing its phase.
        radius = 1.0 - _log_uniform(rng, 0.01, 0.5)
        turn = 2 * np.pi / _log_uniform(rng, 4.0, 100.0)
        values = autoregressive(rng, n, 2 * radius * np.cos(turn), -(radius**2))
    if rng.random() < 0.25:
        values = values * np.exp(0.5 * smooth(rng, n, _log_uniform(rng, 10.0, 300.0)))
    return values


def autoregressive(
    rng: Rng, n: int, first: float, second: float = 0.0
) -> Float64[np.ndarray, " {n}"]:
    """x[t] = first * x[t-1] + second * x[t-2] + e[t], stationary and of variance 1.

    It divides the spectrum of white noise, which closes the series to a ring, and returns a part of
    the ring, so that its end does not continue into its start.
    """
    size = 1 << (n + 64 + n // 8).bit_length()
    z = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    spectrum = np.fft.rfft(rng.standard_normal(size)) / (1.0 - first * z - second * z * z)
    return standardize(np.fft.irfft(spectrum, size))[:n]


def smooth(rng: Rng, n: int, scale: float) -> Float64[np.ndarray, " {n}"]:
    """As `draws.smooth`, for one series."""
    return draws.smooth(rng, np.array([scale], float), n)[0]


def level_shifts(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """One to three steps at random times, of about one standard deviation."""
    steps = np.zeros(n)
    at = rng.integers(0, n, rng.integers(1, 4))
    steps[at] = rng.normal(0.0, 1.5, at.size)
    return np.cumsum(steps)


def spikes(rng: Rng, n: int) -> Float64[np.ndarray, " {n}"]:
    """Single points far off, at most one in a hundred."""
    values = np.zeros(n)
    at = rng.integers(0, n, rng.integers(1, 2 + n // 100))
    values[at] = rng.normal(0.0, 4.0, at.size)
    return values


def _period(rng: Rng) -> float:
    """A cycle's length in steps: usually one of the calendar, else anything from 4 to 300."""
    if rng.random() < 0.25:
        return _log_uniform(rng, 4.0, 300.0)
    return float(rng.choice(_PERIODS, p=_PERIOD_WEIGHTS / _PERIOD_WEIGHTS.sum()))


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
