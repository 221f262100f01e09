"""Convex combinations of windows of real series (TSMixup)."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.data.generators.generator import Generator, Rng
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError

# Windows with missing or infinite values, or of zeros only, are skipped: at most so many in a row,
# that a source with more than a trace of usable ones always gives one.
_ATTEMPTS = 200


@dataclasses.dataclass(frozen=True)
class TSMixup(Generator):
    """Mixes up to `most` windows of a source, each scaled by its mean absolute value."""

    citation: ClassVar[str] = "TSMixup, Chronos (arXiv 2403.07815, section 4.1)"

    source: SequenceSource  # in any units; too short series are never chosen
    most: int = 3  # the most windows of a mixture; their number is drawn evenly from 1 on
    concentration: float = 1.5  # alpha of the symmetric Dirichlet law of the weights

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.source) or self.most < 1 or self.concentration <= 0:
            raise DataError(
                f"TSMixup: the source has {len(self.source)} series, most is {self.most} and "
                f"concentration {self.concentration}; each must be positive"
            )

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        eligible = np.flatnonzero(self.source.lengths >= length)
        if not eligible.size:
            raise DataError(
                f"TSMixup: no series of the source has {length} points, the longest has "
                f"{self.source.lengths.max()}; ask for shorter series"
            )
        values = np.zeros((count, length))
        numbers = rng.integers(1, self.most + 1, count)
        for row, number in enumerate(numbers):
            weights = rng.dirichlet(np.full(number, self.concentration))
            for weight in weights:
                values[row] += weight * self._window(rng, eligible, length)
        return values

    def _window(
        self, rng: Rng, eligible: np.ndarray, length: int
    ) -> Float64[np.ndarray, " {length}"]:
        for _ in range(_ATTEMPTS):
            series = int(eligible[rng.integers(eligible.size)])
            start = int(rng.integers(self.source.lengths[series] - length + 1))
            window = self.source.read(series, start, start + length).astype(np.float64)
            scale = np.mean(np.abs(window))
            if np.isfinite(scale) and scale > 0:
                return window / scale
        raise DataError(
            f"TSMixup: {_ATTEMPTS} windows of {length} points in a row had missing values or only "
            "zeros; clean the source first"
        )

    def parameters(self) -> dict[str, Any]:
        """Every parameter by name; for the source, how many series and points it has."""
        points = int(self.source.lengths.sum())
        return {
            "source": {"sequences": len(self.source), "points": points},
            "most": self.most,
            "concentration": self.concentration,
        }
