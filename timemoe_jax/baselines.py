"""Forecasts that any model has to beat: the last value, and the last season."""

import numpy as np
from jaxtyping import Float

from timemoe_jax.errors import DataError


def naive(context: Float[np.ndarray, "B T"], horizon: int) -> Float[np.ndarray, "B horizon"]:
    """Forecasts the last observed value for every step.

    Args:
      context: the past [B, T]; NaN marks a missing value.
      horizon: the number of steps to forecast.

    Returns:
      forecasts [B, horizon] in the units and the dtype of the context; NaN for a series without
      a single observation.

    Raises:
      DataError: horizon is not positive, or the context is not [B, T] with at least one point.
    """
    _check(context, horizon)
    return np.repeat(_fill_forward(context)[:, -1:], horizon, axis=1)


def seasonal_naive(
    context: Float[np.ndarray, "B T"], horizon: int, season: int
) -> Float[np.ndarray, "B horizon"]:
    """Repeats the last full season: the forecast of a step is the last value at its phase.

    Args:
      context: the past [B, T]; NaN marks a missing value, in place of which the last value
        observed at the same phase counts.
      horizon: the number of steps to forecast.
      season: the number of steps in a season, at most T.

    Returns:
      forecasts [B, horizon] in the units and the dtype of the context; NaN at a phase that was
      never observed.

    Raises:
      DataError: horizon or season is not positive, season exceeds the T points of the context,
        or the context is not [B, T] with at least one point.
    """
    _check(context, horizon)
    batch, length = context.shape
    if season < 1:
        raise DataError(f"season must be at least 1, but is {season}")
    if season > length:
        raise DataError(
            f"season is {season}, but the context has only {length} points; it must hold a full "
            "season"
        )
    if np.isnan(context[:, length - season :]).any():
        # Whole seasons only, counted from the end, so that each column below is one phase.
        whole = context[:, length % season :].reshape(batch, -1, season)
        last = _fill_forward(whole.swapaxes(1, 2))[:, :, -1]
    else:
        last = context[:, length - season :]
    return last[:, np.arange(horizon) % season]


def _fill_forward(values: Float[np.ndarray, "*batch T"]) -> Float[np.ndarray, "*batch T"]:
    """Each missing value becomes the last one observed before it, if there is any."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    observed = np.where(missing, 0, np.arange(values.shape[-1]))
    return np.take_along_axis(values, np.maximum.accumulate(observed, axis=-1), axis=-1)


def _check(context: np.ndarray, horizon: int) -> None:
    if horizon < 1:
        raise DataError(f"horizon must be at least 1, but is {horizon}")
    if context.ndim != 2 or not context.shape[1]:
        raise DataError(
            f"context must be [B, T] with at least one point, but has the shape {context.shape}"
        )
