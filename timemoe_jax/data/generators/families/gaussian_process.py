"""Gaussian processes whose kernels are random sums and products (KernelSynth).

A kernel is drawn as in Chronos (arXiv 2403.07815, section 4.2): up to five kernels from a bank,
joined from left to right by + or x. Random Fourier features (Rahimi and Recht, 2007) replace the
Cholesky factor of a length x length matrix: M frequencies w are drawn from the kernel's spectral
density, and f(t) = sum over m of (a_m cos(w_m t) + b_m sin(w_m t)) sqrt(V / M) with normal a and b.
For given frequencies that is a Gaussian process, and over them its covariance is exactly that of
the kernel, whatever M is; only the joint distribution is a mixture of Gaussians, closer to one the
larger M. Composition needs no algebra: the frequency of a product is the sum of its factors', and
a feature of a sum belongs to either part with a probability in proportion to its variance. The sums
are evaluated in blocks of time, since exp(iw(a + b)) = exp(iwa) exp(iwb).
"""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from timemoe_jax.data.generators.draws import PerSeries
from timemoe_jax.data.generators.generator import Generator, Rng

RBF, PERIODIC, RATIONAL, LINEAR, WHITE = range(5)
KIND_NAMES = ("rbf", "periodic", "rational_quadratic", "linear", "white")

# Series whose features are evaluated at once: what they need stays in a processor's cache.
_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Kernels:
    """One composite kernel per series, over x = t / length; every array is [count, J].

    Kernel j joins what stands to its left by a product or a sum; it is left out from `used` on.
    """

    # RBF exp(-d^2 / 2 s^2); PERIODIC exp(-2 sin^2(pi d / s)); RATIONAL (1 + d^2 / (2 a s^2))^-a;
    # LINEAR s^2 + x x'; WHITE, s^2 where x = x'
    kind: Int64[np.ndarray, "count J"]
    scale: Float64[np.ndarray, "count J"]  # s, in units of x
    shape: Float64[np.ndarray, "count J"]  # a
    product: Bool[np.ndarray, "count J"]  # whether a kernel multiplies instead of being added
    used: Bool[np.ndarray, "count J"]  # whether a kernel takes part; the first always does


@dataclasses.dataclass(frozen=True)
class GaussianProcess(Generator):
    """Draws from Gaussian processes with composite kernels."""

    citation: ClassVar[str] = "KernelSynth, Chronos (arXiv 2403.07815); random Fourier features"

    max_kernels: int = 5  # J, the most kernels of a composition
    # of the periodic kernels, in points
    periods: tuple[float, ...] = (
        *(4, 6, 7, 12, 14, 24, 26, 30, 40, 48, 52, 60, 96, 144, 168, 288, 336, 365, 672, 730),
    )
    # of the smooth kernels, as shares of the series' length
    length_scales: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    shapes: tuple[float, ...] = (0.1, 1.0, 10.0)  # of the rational quadratic kernels
    weights: tuple[float, ...] = (0.25, 0.4, 0.2, 0.08, 0.07)  # of each of KIND_NAMES
    features: int = 256  # M, frequencies per series

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        return sample(rng, self.kernels(rng, count, length), length, self.features)

    def kernels(self, rng: Rng, count: int, length: int) -> Kernels:
        """Draws a composite kernel for each series."""
        shape = (count, self.max_kernels)
        share = np.array(self.weights) / np.sum(self.weights)
        kind = rng.choice(len(KIND_NAMES), shape, p=share)
        periods = np.array(self.periods, np.float64)
        # A series must show a period twice; at least the shortest is always left.
        periods = periods[periods <= max(length / 2, periods.min())]
        by_kind = (
            rng.choice(self.length_scales, shape),
            rng.choice(periods, shape) / length,
            rng.choice(self.length_scales, shape),
            rng.choice((0.1, 0.5, 1.0), shape),
            rng.choice((0.1, 0.3), shape),
        )
        used = np.arange(self.max_kernels) < rng.integers(1, self.max_kernels + 1, (count, 1))
        return Kernels(
            kind=kind,
            scale=np.choose(kind, by_kind),
            shape=rng.choice(self.shapes, shape),
            product=rng.random(shape) < 0.5,
            used=used,
        )


def sample(
    rng: Rng, kernels: Kernels, length: int, features: int
) -> Float64[np.ndarray, "count {length}"]:
    """Draws one series for each composite kernel, by `features` random frequencies."""
    frequency, degree, white, variance = _features(rng, kernels, features)
    count = len(variance)
    values = np.empty((count, length))
    x = np.arange(length) / length
    for start in range(0, count, _ROWS):
        rows = slice(start, start + _ROWS)
        weight = np.sqrt(variance[rows] / features)[:, None]
        coefficients = weight * rng.standard_normal((2, *frequency[rows].shape))
        total = np.zeros((len(weight), length))
        for power in range(int(degree[rows].max()) + 1):
            chosen = degree[rows] == power
            hit = np.flatnonzero(chosen.any(axis=1))
            if not hit.size:
                continue
            waves = coefficients[:, hit] * (chosen & ~white[rows])[hit]
            part = _waves(frequency[rows][hit] / length, waves, length)
            noise = weight[hit] * np.sqrt(np.sum(chosen & white[rows], axis=1))[hit, None]
            if noise.any():
                part += noise * rng.standard_normal(part.shape)
            total[hit] += x**power * part
        values[rows] = total
    return values


def _features(
    rng: Rng, kernels: Kernels, features: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, PerSeries]:
    """Draws the features of composite kernels, by joining those of the parts.

    Returns the frequency in radians per unit of x, the power of x that multiplies the feature, and
    whether it is white, each [count, M], and the variance that the features share [count].
    """
    count, parts = kernels.kind.shape
    frequency = np.zeros((count, features))
    degree = np.zeros((count, features), np.int64)
    white = np.zeros((count, features), bool)
    variance = np.zeros(count)
    for j in range(parts):
        new = _one_kernel(rng, kernels, j, features)
        product = (kernels.used[:, j] & kernels.product[:, j] & (j > 0))[:, None]
        added = variance + new[3]
        replaced = rng.random((count, features)) < (new[3] / added)[:, None]
        replaced &= (kernels.used[:, j] & ~product[:, 0])[:, None]
        frequency = np.where(replaced, new[0], frequency + product * new[0])
        degree = np.where(replaced, new[1], degree + product * new[1])
        white = np.where(replaced, new[2], white | (product & new[2]))
        joined = np.where(product[:, 0], variance * new[3], added)
        variance = np.where(kernels.used[:, j], joined, variance)
    return frequency, degree, white, variance


def _one_kernel(
    rng: Rng, kernels: Kernels, j: int, features: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, PerSeries]:
    """Draws the features of kernel `j` of each series, as `_features` returns them."""
    kind, scale = kernels.kind[:, j], kernels.scale[:, j]
    shape = (kind.size, features)
    frequency = np.zeros(shape)
    for which in (RBF, RATIONAL):
        rows = np.flatnonzero(kind == which)
        normal = rng.standard_normal((rows.size, features))
        if which == RATIONAL:
            # A mixture of squared exponentials over their inverse squared length.
            a = kernels.shape[rows, j, None]
            normal *= np.sqrt(rng.gamma(a, 1 / a, normal.shape))
        frequency[rows] = normal / scale[rows, None]
    rows = np.flatnonzero(kind == PERIODIC)
    # Harmonic k has the weight exp(-1) I_k(1): the law of a difference of two Poisson numbers.
    harmonic = np.subtract(*rng.poisson(0.5, (2, rows.size, features)))
    frequency[rows] = 2 * np.pi * harmonic / scale[rows, None]
    white = np.broadcast_to((kind == WHITE)[:, None], shape)
    # s^2 + x x' is a constant, or a power of x, in proportion to s^2 and 1.
    linear = rng.random(shape) < (1 / (1 + scale**2))[:, None]
    degree = (linear & (kind == LINEAR)[:, None]).astype(np.int64)
    by_kind = {LINEAR: 1 + scale**2, WHITE: scale**2}
    variance = np.select([kind == k for k in by_kind], list(by_kind.values()), 1.0)
    return frequency, degree, white, variance


def _waves(
    frequency: Float64[np.ndarray, "count M"],
    coefficients: Float64[np.ndarray, "2 count M"],
    length: int,
) -> Float64[np.ndarray, "count {length}"]:
    """Sums of a cos(wt) + b sin(wt) at t = 0, 1, ..., length - 1; w in radians per point."""
    step = max(1, int(np.sqrt(length)))
    blocks = -(-length // step)
    begin = frequency[:, None] * (np.arange(blocks) * step)[:, None]
    amplitude = (coefficients[0] - 1j * coefficients[1])[:, None] * np.exp(1j * begin)
    turn = np.exp(1j * frequency[:, None] * np.arange(step)[:, None])
    # The real part of a product of complex numbers, as one real sum; einsum sums in the same
    # order on every machine, where a matrix product may depend on the number of threads.
    left = np.concatenate([amplitude.real, -amplitude.imag], axis=-1).astype(np.float32)
    right = np.concatenate([turn.real, turn.imag], axis=-1).astype(np.float32)
    total = np.einsum("kam,kbm->kab", left, right)
    return total.reshape(len(frequency), -1)[:, :length].astype(np.float64)
