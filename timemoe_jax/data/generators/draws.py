"""Random quantities that several families draw, one per series, many series at once."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int64
from scipy.signal import lfilter

from timemoe_jax.data.generators.generator import Bounds, Rng

PerSeries = Float64[np.ndarray, " count"]  # a number for each series


def uniform(rng: Rng, bounds: Bounds, *shape: int) -> np.ndarray:
    """Numbers spread evenly over a range."""
    return rng.uniform(bounds[0], bounds[1], shape)


def log_uniform(rng: Rng, bounds: Bounds, *shape: int) -> np.ndarray:
    """Positive numbers whose logarithm is spread evenly over that of a range."""
    return np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]), shape))


def kinds(rng: Rng, weights: Mapping[str, float], count: int) -> dict[str, Int64[np.ndarray, " _"]]:
    """Gives each series a kind by the weights; returns the series of each kind that has any."""
    share = np.array(list(weights.values()), np.float64)
    drawn = rng.choice(len(share), count, p=share / share.sum())
    rows = {name: np.flatnonzero(drawn == k) for k, name in enumerate(weights)}
    return {name: chosen for name, chosen in rows.items() if chosen.size}


def recursion(
    coefficient: PerSeries, inputs: Float64[np.ndarray, "count length"]
) -> Float64[np.ndarray, "count length"]:
    """x[t] = coefficient * x[t-1] + input[t], starting from x[0] = input[0]."""
    rows = zip(coefficient, inputs, strict=True)
    return np.stack([lfilter((1.0,), (1.0, -phi), row) for phi, row in rows])


def autoregression(
    rng: Rng, coefficient: PerSeries, length: int
) -> Float64[np.ndarray, "count {length}"]:
    """A stationary Gaussian AR(1) of variance 1: its autocorrelation at lag k is coefficient**k."""
    inputs = rng.standard_normal((coefficient.size, length))
    # The first value is drawn from the stationary distribution, so there is nothing to discard.
    inputs[:, 1:] *= np.sqrt(1.0 - coefficient**2)[:, None]
    return recursion(coefficient, inputs)


def smooth(rng: Rng, scale: PerSeries, length: int) -> Float64[np.ndarray, "count {length}"]:
    """Standard normal values every `scale` points (at least 1), joined without corners."""
    scale = np.maximum(scale, 1.0)[:, None]
    position = np.arange(length) / scale + rng.random(scale.shape)
    left = position.astype(np.int64)
    knots = rng.standard_normal((scale.size, int(length / scale.min()) + 3))
    fraction = position - left
    weight = fraction * fraction * (3.0 - 2.0 * fraction)
    before = np.take_along_axis(knots, left, axis=1)
    return before + weight * (np.take_along_axis(knots, left + 1, axis=1) - before)


def standardize(values: np.ndarray) -> np.ndarray:
    """Centers each series [..., length], and scales to variance 1 what is not constant."""
    centered = values - values.mean(axis=-1, keepdims=True)
    deviation = centered.std(axis=-1, keepdims=True)
    return centered / np.where(deviation > 0, deviation, 1.0)
