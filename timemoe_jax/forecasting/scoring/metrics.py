"""Errors of forecasts and of their quantiles, in float64.

The target is what came, and the forecasts are in its units. Where the target is missing (NaN),
nothing counts; a score of nothing is NaN. A forecast that is not finite where the target is
observed, and arrays whose shapes differ, are a DataError.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Shaped

from timemoe_jax.data.series import check_levels
from timemoe_jax.errors import DataError


class ErrorSums:
    """Sums of squared and absolute errors, for means over every value of every batch."""

    def __init__(self) -> None:
        self.squared = 0.0
        self.absolute = 0.0
        self.count = 0

    def update(
        self, forecast: Float[np.ndarray, "*shape"], target: Float[np.ndarray, "*shape"]
    ) -> None:
        """Adds a batch, of any floating-point type.

        Nothing is added if the shapes differ or a value is NaN or infinite, also of the target: a
        DataError.
        """
        _check_shape("forecast", forecast.shape, "target", target.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            # NumPy would subtract two float32 arrays in float32, and round what is measured.
            error = (forecast.astype(np.float64) - target).ravel()
            # Not `error @ error`: its threads take up to fifty times as long where cores are busy.
            squared = float(np.square(error).sum())
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


def pinball_loss(
    target: Float[np.ndarray, "*shape"],
    quantiles: Float[np.ndarray, "*shape Q"],
    levels: Sequence[float] | Shaped[np.ndarray, " Q"],
) -> float:
    """The mean pinball loss over steps and levels: that of half the absolute error at level 0.5.

    The loss of the quantile q of level tau at the target y is tau (y - q) where y >= q, else
    (1 - tau) (q - y) (Koenker and Bassett, Regression Quantiles, 1978). The true quantile has the
    least expected loss. The loss is in units of the target; the levels rise between 0 and 1.
    """
    loss = pinball_losses(target, quantiles, levels)
    return float(np.nanmean(loss)) if not np.isnan(loss).all() else float("nan")


def pinball_losses(
    target: Float[np.ndarray, "*shape"],
    quantiles: Float[np.ndarray, "*shape Q"],
    levels: Sequence[float] | Shaped[np.ndarray, " Q"],
) -> Float64[np.ndarray, "*shape Q"]:
    """The loss of `pinball_loss` of each value and level; NaN where the target is missing."""
    tau = check_levels(levels)
    if quantiles.shape[-1] != len(tau):
        raise DataError(f"quantiles hold {quantiles.shape[-1]} levels, but levels {len(tau)}")
    _check_shape("quantiles of a level", quantiles.shape[:-1], "target", target.shape)
    check_forecast("quantiles", quantiles, target)
    over = target.astype(np.float64)[..., None] - quantiles.astype(np.float64)
    return np.where(np.isnan(target)[..., None], np.nan, np.maximum(tau * over, (tau - 1) * over))


def coverage(
    target: Float[np.ndarray, "*shape"],
    lower: Float[np.ndarray, "*shape"],
    upper: Float[np.ndarray, "*shape"],
) -> float:
    """The share, from 0 to 1, of the observed targets within an interval, its ends included."""
    _check_shape("lower", lower.shape, "target", target.shape)
    _check_shape("upper", upper.shape, "target", target.shape)
    counted = ~np.isnan(target)
    _check_numbers("lower", lower[counted])
    _check_numbers("upper", upper[counted])
    within = (lower[counted] <= target[counted]) & (target[counted] <= upper[counted])
    return float(within.mean()) if within.size else float("nan")


def mean_width(lower: Float[np.ndarray, "*shape"], upper: Float[np.ndarray, "*shape"]) -> float:
    """The mean width of intervals, in units of the target; NaN where there is none.

    An end that is not finite, and an upper end below the lower one, are a DataError.
    """
    _check_shape("upper", upper.shape, "lower", lower.shape)
    _check_numbers("lower", lower)
    _check_numbers("upper", upper)
    widths = upper.astype(np.float64) - lower.astype(np.float64)
    if (widths < 0).any():
        raise DataError(f"upper is below lower in {(widths < 0).sum()} of {widths.size} intervals")
    return float(widths.mean()) if widths.size else float("nan")


def seasonal_scale(context: Float[np.ndarray, " T"], season: int) -> float:
    """The mean absolute change over a season within a context, in its units; NaN without any.

    Errors divided by it are the scaled errors of Hyndman and Koehler (Another look at measures of
    forecast accuracy, 2006). A change to or from a missing value (NaN) does not count. The season
    is a number of steps, 1 for none; one below 1 is a DataError.
    """
    if season < 1:
        raise DataError(f"season must be at least 1, but is {season}")
    values = context.astype(np.float64)
    changes = np.abs(values[season:] - values[:-season])
    changes = changes[~np.isnan(changes)]
    return float(changes.mean()) if changes.size else float("nan")


def mase(
    target: Float[np.ndarray, " H"],
    forecast: Float[np.ndarray, " H"],
    context: Float[np.ndarray, " T"],
    season: int,
) -> float:
    """The mean absolute scaled error: the mean absolute error over `seasonal_scale`.

    It has no units, and is NaN also where the context repeats each season exactly, so that there is
    no scale.
    """
    _check_shape("forecast", forecast.shape, "target", target.shape)
    counted = ~np.isnan(target)
    _check_numbers("forecast", forecast[counted])
    scale = seasonal_scale(context, season)
    if not counted.any() or not scale > 0:
        return float("nan")
    errors = target[counted].astype(np.float64) - forecast[counted].astype(np.float64)
    return float(np.abs(errors).mean() / scale)


def check_forecast(name: str, forecast: np.ndarray, target: np.ndarray) -> None:
    """Refuses a forecast [*shape, ...] that is not finite where its target [*shape] is observed."""
    _check_numbers(name, forecast[~np.isnan(target)])


def _check_shape(name: str, shape: tuple[int, ...], other: str, expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise DataError(
            f"{name} has the shape {shape}, but {other} {expected}; they must be the same"
        )


def _check_numbers(name: str, values: np.ndarray) -> None:
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise DataError(f"{bad} of the {values.size} values of {name} are NaN or infinite")


def without_nan(value: Any) -> Any:
    """Nested dictionaries and sequences as JSON takes them: None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
