"""Errors of forecasts, summed in float64 over batches of any size."""

import math

import numpy as np
from jaxtyping import Float

from timemoe_jax.errors import DataError


class ErrorSums:
    """Sums of squared and absolute errors, whose means are over every value of every batch.

    Attributes:
      squared: the sum of the squared errors so far.
      absolute: the sum of the absolute errors so far.
      count: the number of values so far.
    """

    def __init__(self) -> None:
        self.squared = 0.0
        self.absolute = 0.0
        self.count = 0

    def update(
        self, forecast: Float[np.ndarray, "*shape"], target: Float[np.ndarray, "*shape"]
    ) -> None:
        """Adds a batch.

        Args:
          forecast: what was forecast [B, T], of any floating-point type.
          target: what came [B, T], in the same units.

        Raises:
          DataError: the shapes differ, or a value is NaN or infinite; nothing is added then.
        """
        if forecast.shape != target.shape:
            raise DataError(
                f"forecast has the shape {forecast.shape}, but target {target.shape}; they must "
                "be the same"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            # NumPy would subtract two float32 arrays in float32, and round what is measured.
            error = (forecast.astype(np.float64) - target).ravel()
            squared = float(error @ error)
        if not math.isfinite(squared):
            raise DataError(_what_is_not_finite(forecast, target))
        self.squared += squared
        self.absolute += float(np.abs(error).sum())
        self.count += error.size

    @property
    def mse(self) -> float:
        """The mean squared error, in squared units of the target; NaN before any value."""
        return self.squared / self.count if self.count else float("nan")

    @property
    def mae(self) -> float:
        """The mean absolute error, in units of the target; NaN before any value."""
        return self.absolute / self.count if self.count else float("nan")


def _what_is_not_finite(forecast: np.ndarray, target: np.ndarray) -> str:
    for name, values in (("target", target), ("forecast", forecast)):
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            return (
                f"{bad} of the {values.size} values of {name} are NaN or infinite; an error needs "
                "finite numbers"
            )
    return "forecast and target are so far apart that the square of their difference overflows"
