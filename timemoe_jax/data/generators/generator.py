"""The base of every family of generated series."""

import abc
import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float32

from timemoe_jax.errors import DataError

Rng = np.random.Generator
Bounds = tuple[float, float]

# How often series that came out constant, or beyond float32, are drawn again.
ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class Generator(abc.ABC):
    """A family of series: its parameters are fields, and its randomness comes from outside.

    A field of two bounds is a range from which each series draws its own value.
    """

    citation: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == Bounds and not (len(value) == 2 and value[0] <= value[1]):
                raise DataError(
                    f"{type(self).__name__}: {field.name} is {value}; it must be a range (low, "
                    "high) with low <= high"
                )

    def generate(
        self, rng: Rng, count: int, length: int
    ) -> Float32[np.ndarray, " {count} {length}"]:
        """Draws `count` series of at least two points each, all finite and not constant.

        An equal `rng` gives equal series.

        Raises:
          DataError: count or length is too small, or the parameters give no usable series.
        """
        return self.generate_counted(rng, count, length)[0]

    def generate_counted(
        self, rng: Rng, count: int, length: int
    ) -> tuple[Float32[np.ndarray, " {count} {length}"], int]:
        """Draws series as `generate`, and counts those that came out unusable and were replaced."""
        if count < 1 or length < 2:
            raise DataError(f"count {count} must be at least 1, and length {length} at least 2")
        values = np.empty((count, length), np.float32)
        rows, redrawn = np.arange(count), 0
        for _ in range(ATTEMPTS):
            with np.errstate(over="ignore", invalid="ignore"):
                values[rows] = self._draw(rng, rows.size, length)
            rows = rows[~usable(values[rows])]
            if not rows.size:
                return values, redrawn
            redrawn += rows.size
        raise DataError(
            f"{self} gave {rows.size} of {count} series of {length} points constant or not "
            f"finite, {ATTEMPTS} times in a row; give it other parameters or longer series"
        )

    @abc.abstractmethod
    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        """Draws series, some of which may be constant or not finite."""

    def parameters(self) -> dict[str, Any]:
        """Every parameter by name, as a manifest records them."""
        return dataclasses.asdict(self)


def usable(values: Float[np.ndarray, "count length"]) -> Bool[np.ndarray, " count"]:
    """Which series are finite throughout and not constant."""
    low, high = values.min(axis=1), values.max(axis=1)
    return np.isfinite(low) & np.isfinite(high) & (low < high)
