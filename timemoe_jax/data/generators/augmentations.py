"""Changes to series that make more of them, each a seeded function of arrays [count, length].

Every augmentation leaves its input as it is and gives out float32 of the same shape. Missing
values (NaN) stay where they are, or move with the points around them where time is warped. Each
series draws its own randomness, and an augmentation applies to a share of them.
"""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from timemoe_jax.errors import DataError

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Augmentation(abc.ABC):
    """A random change of series."""

    # the share of series that it applies to
    probability: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise DataError(f"probability is {self.probability}; it must be from 0 to 1")

    def __call__(
        self, rng: Rng, values: Float[np.ndarray, "count length"]
    ) -> Float32[np.ndarray, "count length"]:
        """Changes a share of the series.

        Args:
          rng: all randomness comes from it.
          values: series in any units, NaN where missing.

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
class AmplitudeWarp(Augmentation):
    """Multiplies by a smooth positive curve of mean logarithm 0, about the series' mean."""

    knots: int = 6  # points of the curve, drawn independently; a line joins them
    strength: float = 0.3  # standard deviation of their logarithm

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.knots >= 2, "knots", self.knots, "at least 2")
        _require(self.strength >= 0, "strength", self.strength, "at least 0")

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        curve = self.strength * rng.standard_normal((len(values), self.knots))
        position = np.linspace(0.0, self.knots - 1.0, values.shape[1])
        gain = np.exp(_interpolate(curve, np.broadcast_to(position, values.shape)))
        mean = _mean(values)
        return mean + (values - mean) * gain


@dataclasses.dataclass(frozen=True)
class TimeWarp(Augmentation):
    """Reads a series at a speed that changes, from its first point to its last."""

    knots: int = 6  # at how many points the speed is drawn; a line joins them
    strength: float = 0.3  # standard deviation of the logarithm of the speed

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.knots >= 2, "knots", self.knots, "at least 2")
        _require(self.strength >= 0, "strength", self.strength, "at least 0")

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        count, length = values.shape
        curve = self.strength * rng.standard_normal((count, self.knots))
        at = np.linspace(0.0, self.knots - 1.0, length - 1)
        speed = np.exp(_interpolate(curve, np.broadcast_to(at, (count, length - 1))))
        position = np.zeros((count, length))
        np.cumsum(speed, axis=1, out=position[:, 1:])
        position *= (length - 1) / position[:, -1:]
        return _interpolate(values, position)


@dataclasses.dataclass(frozen=True)
class Resample(Augmentation):
    """Takes a series for one of another sampling rate.

    A factor above 1 reads a random span of length / factor points, with lines between them (up).
    A factor below 1 averages over every 1 / factor points and joins the averages by lines (down
    and up again), so that detail is lost while the length stays.
    """

    factor: tuple[float, float] = (0.25, 4.0)  # range of the factor, drawn evenly in its logarithm

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.factor
        _require(0 < low <= high, "factor", self.factor, "positive, the lower bound first")

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        count, length = values.shape
        factor = _log_uniform(rng, self.factor, count)
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

    share: tuple[float, float] = (0.02, 0.3)  # range of the share of points that are clipped

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.share
        _require(0 <= low <= high < 1, "share", self.share, "from 0 to less than 1, in order")

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

    # range of their number, drawn evenly in its logarithm; at least 2
    levels: tuple[int, int] = (8, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.levels
        _require(2 <= low <= high, "levels", self.levels, "at least 2, the lower bound first")

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        levels = np.rint(_log_uniform(rng, self.levels, len(values)))
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

    # range of the expected share of points that become missing; below 1
    share: tuple[float, float] = (0.01, 0.2)
    # range of the mean length of a spell, in points, drawn evenly in its logarithm; where points
    # are missing independently of each other it is 1 / (1 - share), and never less
    spell: tuple[float, float] = (1.0, 50.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.share
        _require(0 <= low <= high < 1, "share", self.share, "from 0 to less than 1, in order")
        _require(1 <= self.spell[0] <= self.spell[1], "spell", self.spell, "at least 1, in order")

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        count, length = values.shape
        share = rng.uniform(*self.share, (count, 1))
        spell = _log_uniform(rng, self.spell, count)
        # At random points it is drawn anew whether values are missing from there on: the chain is
        # stationary, and leaves a spell with probability 1 / spell.
        anew = rng.random((count, length)) < 1.0 / (spell * (1.0 - share))
        last = np.maximum.accumulate(np.where(anew, np.arange(length), 0), axis=1)
        missing = np.take_along_axis(rng.random((count, length)) < share, last, axis=1)
        values[missing] = np.nan
        return values


@dataclasses.dataclass(frozen=True)
class Spikes(Augmentation):
    """Adds single points far off."""

    rate: tuple[float, float] = (0.001, 0.01)  # range of the expected share of points that are hit
    size: float = 5.0  # standard deviation of a spike, in those of the series

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.rate
        _require(0 <= low <= high <= 1, "rate", self.rate, "from 0 to 1, in order")
        _require(self.size >= 0, "size", self.size, "at least 0")

    def _apply(self, rng: Rng, values: np.ndarray) -> np.ndarray:
        hit = rng.random(values.shape) < rng.uniform(*self.rate, (len(values), 1))
        deviation = np.sqrt(_mean(np.square(values - _mean(values))))
        # A missing value stays missing, whatever is added.
        return values + hit * rng.normal(0.0, self.size, values.shape) * deviation


def every_kind(probability: float) -> Compose:
    """One of each kind with its default ranges, each applied to a share of the series by itself.

    Args:
      probability: that share.
    """
    kinds = (TimeWarp, Resample, AmplitudeWarp, Censor, Quantize, Spikes, MissingSpells)
    return Compose([kind(probability=probability) for kind in kinds])


def _require(condition: bool, name: str, value: object, right: str) -> None:
    if not condition:
        raise DataError(f"{name} is {value}; it must be {right}")


def _log_uniform(rng: Rng, bounds: tuple[float, float], count: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]), (count, 1)))


def _observed(values: np.ndarray) -> np.ndarray:
    """The rows that hold any value."""
    return np.flatnonzero(~np.all(np.isnan(values), axis=1))


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean of what each series holds [count, 1]; 0 where it holds nothing."""
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
    # Exact at the entries themselves, next to a missing one, too.
    middle = before + fraction * (after - before)
    return np.where(fraction <= 0, before, np.where(fraction >= 1, after, middle))
