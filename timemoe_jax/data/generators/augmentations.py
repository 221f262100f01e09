"""Random changes that make more series of given ones, each a function of arrays [count, length].

Every augmentation leaves its input as it is and returns float32 of the same shape. Missing values
(NaN) stay where they are, or move with the points around them where time is warped. Each series
draws its own randomness, and an augmentation applies to a share of them.
"""

import abc
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from timemoe_jax.data.generators.draws import log_uniform
from timemoe_jax.data.generators.generator import Bounds, Rng
from timemoe_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Augmentation(abc.ABC):
    """A random change of series."""

    probability: float = dataclasses.field(default=1.0, kw_only=True)  # share of series

    def __post_init__(self) -> None:
        for name, good, right in (
            ("probability", 0 <= self.probability <= 1, "from 0 to 1"),
            *self._rules(),
        ):
            if not good:
                raise DataError(f"{name} is {getattr(self, name)}; it must be {right}")

    def _rules(self) -> Iterable[tuple[str, bool, str]]:
        """A field's name, whether its value is right, and what would be right."""
        return ()

    def __call__(
        self, rng: Rng, values: Float[np.ndarray, "count length"]
    ) -> Float32[np.ndarray, "count length"]:
        """Changes a share of the series, in any units and NaN where missing; `rng` draws it all.

        Raises:
          DataError: `values` is not two-dimensional, or its series have fewer than two points.
        """
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] < 2:
            raise DataError(
                f"values have shape {values.shape}; they must be [count, length], of at least two "
                "points"
            )
        out = values.astype(np.float32)
        rows = np.flatnonzero(rng.random(len(values)) < self.probability)
        if rows.size:
            out[rows] = self._apply(rng, values[rows].astype(np.float64))
        return out

    @abc.abstractmethod
    def _apply(
        self, rng: Rng, values: Float64[np.ndarray, "count length"]
    ) -> Float64[np.ndarray, "count length"]:
        """Changes every series; the array is a copy."""


@dataclasses.dataclass(frozen=True)
class Compose(Augmentation):
    """Applies augmentations one after another, to the same share of series."""

    steps: Sequence[Augmentation] = ()  # in order

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        for step in self.steps:
            values = step(rng, values)
        return values


@dataclasses.dataclass(frozen=True)
class _Warp(Augmentation):
    """Changes a series by a smooth positive curve of mean logarithm 0."""

    knots: int = 6  # points of the curve, drawn independently; a line joins them
    strength: float = 0.3  # standard deviation of their logarithm

    def _rules(self) -> Iterable[tuple[str, bool, str]]:
        yield "knots", self.knots >= 2, "at least 2"
        yield "strength", self.strength >= 0, "at least 0"

    def _curve(self, rng: Rng, count: int, length: int) -> np.ndarray:
        table = self.strength * rng.standard_normal((count, self.knots))
        position = np.linspace(0.0, self.knots - 1.0, length)
        return np.exp(_interpolate(table, np.broadcast_to(position, (count, length))))


class AmplitudeWarp(_Warp):
    """Multiplies by the curve, about the series' mean."""

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        gain = self._curve(rng, *values.shape)
        mean = _mean(values)
        return mean + (values - mean) * gain


class TimeWarp(_Warp):
    """Reads a series at a speed that follows the curve, from its first point to its last."""

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        count, length = values.shape
        speed = self._curve(rng, count, length - 1)
        position = np.zeros((count, length))
        np.cumsum(speed, axis=1, out=position[:, 1:])
        position *= (length - 1) / position[:, -1:]
        return _interpolate(values, position)


@dataclasses.dataclass(frozen=True)
class Resample(Augmentation):
    """Reads a series at another sampling rate.

    A factor above 1 reads a random span of length / factor points, with lines between them. A
    factor below 1 averages over every 1 / factor points and joins the averages by lines, so that
    detail is lost while the length stays.
    """

    factor: Bounds = (0.25, 4.0)  # range of the factor, drawn evenly in its logarithm

    def _rules(self) -> Iterable[tuple[str, bool, str]]:
        low, high = self.factor
        yield "factor", 0 < low <= high, "positive, the lower bound first"

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        count, length = values.shape
        factor = log_uniform(rng, self.factor, count, 1)
        faster = np.maximum(factor, 1.0)
        span = (length - 1) / faster
        start = rng.random((count, 1)) * (length - 1 - span)
        out = _interpolate(values, start + np.arange(length) / faster)
        for row in np.flatnonzero(factor[:, 0] < 1.0):
            bins = max(2, round(length * float(factor[row, 0])))
            edges = np.linspace(0, length, bins + 1).astype(np.int64)
            average = np.add.reduceat(values[row], edges[:-1]) / np.diff(edges)
            centers = (edges[:-1] + edges[1:] - 1) / 2
            out[row] = np.interp(np.arange(length), centers, average)
        return out


@dataclasses.dataclass(frozen=True)
class Censor(Augmentation):
    """Clips a series at a quantile of its own, from above or from below."""

    share: Bounds = (0.02, 0.3)  # range of the share of points that are clipped

    def _rules(self) -> Iterable[tuple[str, bool, str]]:
        low, high = self.share
        yield "share", 0 <= low <= high < 1, "from 0 to less than 1, in order"

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        share = rng.uniform(*self.share, len(values))
        above = rng.random(len(values)) < 0.5
        for row in _observed(values):
            quantile = 1.0 - share[row] if above[row] else share[row]
            limit = np.nanquantile(values[row], quantile)
            clip = np.minimum if above[row] else np.maximum
            values[row] = clip(values[row], limit)
        return values


@dataclasses.dataclass(frozen=True)
class Quantize(Augmentation):
    """Rounds to equally spaced levels between a series' least and greatest value."""

    levels: tuple[int, int] = (8, 256)  # their number, drawn evenly in its logarithm

    def _rules(self) -> Iterable[tuple[str, bool, str]]:
        low, high = self.levels
        yield "levels", 2 <= low <= high, "at least 2, the lower bound first"

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        levels = np.rint(log_uniform(rng, self.levels, len(values), 1))
        rows = _observed(values)
        found, levels = values[rows], levels[rows]
        low = np.nanmin(found, axis=1, keepdims=True)
        step = (np.nanmax(found, axis=1, keepdims=True) - low) / (levels - 1)
        # A constant series is its one level.
        step = np.where(step > 0, step, 1.0)
        values[rows] = low + np.rint((found - low) / step) * step
        return values


@dataclasses.dataclass(frozen=True)
class MissingSpells(Augmentation):
    """Makes spells of points missing (NaN), of geometrically distributed lengths."""

    share: Bounds = (0.01, 0.2)  # range of the expected share of points that become missing
    # range of the mean length of a spell, in points, drawn evenly in its logarithm; where points
    # are missing independently of each other it is 1 / (1 - share), and never less
    spell: Bounds = (1.0, 50.0)

    def _rules(self) -> Iterable[tuple[str, bool, str]]:
        low, high = self.share
        yield "share", 0 <= low <= high < 1, "from 0 to less than 1, in order"
        yield "spell", 1 <= self.spell[0] <= self.spell[1], "at least 1, in order"

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        count, length = values.shape
        share = rng.uniform(*self.share, (count, 1))
        spell = log_uniform(rng, self.spell, count, 1)
        # From random points on, it is drawn again whether values are missing. The chain is
        # stationary, and leaves a spell with probability 1 / spell.
        anew = rng.random((count, length)) < 1.0 / (spell * (1.0 - share))
        last = np.maximum.accumulate(np.where(anew, np.arange(length), 0), axis=1)
        missing = np.take_along_axis(rng.random((count, length)) < share, last, axis=1)
        values[missing] = np.nan
        return values


@dataclasses.dataclass(frozen=True)
class Spikes(Augmentation):
    """Adds single points far off."""

    rate: Bounds = (0.001, 0.01)  # range of the expected share of points that are hit
    size: float = 5.0  # standard deviation of a spike, in those of the series

    def _rules(self) -> Iterable[tuple[str, bool, str]]:
        low, high = self.rate
        yield "rate", 0 <= low <= high <= 1, "from 0 to 1, in order"
        yield "size", self.size >= 0, "at least 0"

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        hit = rng.random(values.shape) < rng.uniform(*self.rate, (len(values), 1))
        deviation = np.sqrt(_mean(np.square(values - _mean(values))))
        # A missing value stays missing, whatever is added.
        return values + hit * rng.normal(0.0, self.size, values.shape) * deviation


def every_kind(probability: float) -> Compose:
    """All kinds with their default ranges, each applied to its own share of the series."""
    kinds = (TimeWarp, Resample, AmplitudeWarp, Censor, Quantize, Spikes, MissingSpells)
    return Compose([kind(probability=probability) for kind in kinds])


def _observed(values: np.ndarray) -> np.ndarray:
    """The rows that hold any value."""
    return np.flatnonzero(~np.all(np.isnan(values), axis=1))


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean of each series' values [count, 1]; 0 where all are missing."""
    known = ~np.isnan(values)
    total = np.sum(values, axis=1, keepdims=True, where=known)
    return total / np.maximum(known.sum(axis=1, keepdims=True), 1)


def _interpolate(
    table: Float64[np.ndarray, "count size"], position: Float64[np.ndarray, "count length"]
) -> Float64[np.ndarray, "count length"]:
    """Reads each row of a table at positions between 0 and size - 1, with lines between entries."""
    left = np.clip(position.astype(np.int64), 0, table.shape[1] - 2)
    fraction = position - left
    before = np.take_along_axis(table, left, axis=1)
    after = np.take_along_axis(table, left + 1, axis=1)
    # Exact at the entries themselves, also next to a missing one.
    middle = before + fraction * (after - before)
    return np.where(fraction <= 0, before, np.where(fraction >= 1, after, middle))
