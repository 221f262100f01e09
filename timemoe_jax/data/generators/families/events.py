"""Events in time: regular pulse trains, and bursts that excite themselves (Hawkes, 1971)."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.data.generators.draws import PerSeries, kinds, log_uniform, recursion, uniform
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng


@dataclasses.dataclass(frozen=True)
class Events(Generator):
    """Draws pulse trains, counts of Hawkes processes, and their decaying responses."""

    citation: ClassVar[str] = "Hawkes, Biometrika 58 (1971); shot noise, Schottky (1918)"

    period: Bounds = (6.0, 400.0)  # points from pulse to pulse; at most a quarter of the series
    jitter: Bounds = (0.0, 0.1)  # deviation of a pulse's time, as a share of the period
    width: Bounds = (0.05, 0.5)  # a pulse's width, as a share of the period
    marks: Bounds = (0.0, 0.6)  # deviation of the logarithm of a pulse's height
    rate: Bounds = (0.005, 0.3)  # expected number of first events of a burst, per point
    branching: Bounds = (0.2, 0.9)  # events that an event excites on average; below 1
    memory: Bounds = (2.0, 50.0)  # points over which it does, and over which a response decays
    noise: Bounds = (0.0, 0.2)  # deviation of noise, as a share of the series' own
    weights: tuple[float, float, float] = (2.0, 1.0, 1.0)  # pulses, Hawkes counts, responses

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        values = np.empty((count, length))
        names = ("pulses", "counts", "responses")
        for kind, rows in kinds(rng, dict(zip(names, self.weights, strict=True)), count).items():
            if kind == "pulses":
                values[rows] = self._pulses(rng, rows.size, length)
                continue
            decay = np.exp(-1.0 / log_uniform(rng, self.memory, rows.size))
            rate = log_uniform(rng, self.rate, rows.size)
            branching = uniform(rng, self.branching, rows.size)
            events = hawkes(rng, rate, branching, decay, length)
            if kind == "responses":
                marks = uniform(rng, self.marks, rows.size, 1) * rng.standard_normal(events.shape)
                events = events * np.exp(marks)
                # What is left on average of the events before the first point.
                events[:, 0] += decay / (1.0 - decay) * rate / (1.0 - branching)
                events = recursion(decay, events)
            values[rows] = events
        # Counts stay whole numbers; half of the others stay as clean as a formula.
        noisy = rng.random((count, 1)) < 0.5
        whole = np.all(values == np.rint(values), axis=1, keepdims=True)
        scale = uniform(rng, self.noise, count, 1) * values.std(axis=1, keepdims=True)
        return values + (noisy & ~whole) * scale * rng.standard_normal((count, length))

    def _pulses(self, rng: Rng, count: int, length: int) -> Float64[np.ndarray, "count {length}"]:
        """Draws trains of rectangles, bells, or sudden rises that decay."""
        longest = min(self.period[1], max(self.period[0], length / 4))
        period = log_uniform(rng, (min(self.period[0], longest), longest), count, 1)
        phase = np.arange(length) / period + rng.random((count, 1))
        number = phase.astype(np.int64)
        shape = (count, int(number.max()) + 1)
        shift = uniform(rng, self.jitter, count, 1) * rng.standard_normal(shape)
        height = np.exp(uniform(rng, self.marks, count, 1) * rng.standard_normal(shape))
        # Pulses stay within their period, so that each point belongs to one.
        center = np.clip(0.3 + shift, 0.1, 0.6)
        # No pulse is so short that it falls between two points.
        width = np.maximum(uniform(rng, self.width, count, 1), 1.2 / period)
        values = np.empty((count, length))
        offset = (phase - number) - np.take_along_axis(center, number, axis=1)
        for kind, rows in kinds(rng, {"box": 1.0, "bell": 1.0, "decay": 1.0}, count).items():
            at = offset[rows] / width[rows]
            if kind == "box":
                values[rows] = np.abs(at) < 0.5
            elif kind == "bell":
                values[rows] = np.exp(-8.0 * at**2)
            else:
                values[rows] = np.where(at >= 0, np.exp(-3.0 * np.maximum(at, 0.0)), 0.0)
        return values * np.take_along_axis(height, number, axis=1)


def hawkes(
    rng: Rng, rate: PerSeries, branching: PerSeries, decay: PerSeries, length: int
) -> Float64[np.ndarray, "count {length}"]:
    """Counts per point of self-exciting processes in discrete time.

    A count is Poisson of mean rate + excitation; each event raises the excitation by
    branching (1 - decay), which then decays, so that it excites `branching` events in all. The
    mean count is rate / (1 - branching); series start from that.
    """
    excitation = branching * rate / (1.0 - branching)
    gain = branching * (1.0 - decay)
    counts = np.empty((length, rate.size))
    for t in range(length):
        counts[t] = rng.poisson(rate + excitation)
        excitation = decay * excitation + gain * counts[t]
    return counts.T
