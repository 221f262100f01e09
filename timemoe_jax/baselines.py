"""Forecasts that any model has to beat: the last value, and the last season."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.errors import DataError
from timemoe_jax.metrics import check_levels


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


def seasonal_naive_quantiles(
    context: Float[np.ndarray, "B T"],
    horizon: int,
    season: int,
    levels: Sequence[float] | Float64[np.ndarray, " Q"],
) -> Float64[np.ndarray, "B horizon Q"]:
    """Quantiles around `seasonal_naive`: those of the changes over a season within the context.

    They grow with the square root of the number of seasons ahead, as the changes of a seasonal
    random walk do (Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd edition,
    Section 5.5). Their shape is that of the changes, not a normal distribution's.

    Args:
      context: the past [B, T]; NaN marks a missing value, whose changes do not count.
      horizon: the number of steps to forecast.
      season: the number of steps in a season, less than T.
      levels: of the quantiles [Q], rising.

    Returns:
      quantiles [B, horizon, Q], float64, in the units of the context; NaN at a phase that was never
      observed, and for a series of which no change is.

    Raises:
      DataError: as `seasonal_naive` does; the levels do not rise between 0 and 1; or T is not
        above season, so that there is no change over a season.
    """
    tau = check_levels(levels)
    values = context.astype(np.float64)
    point = seasonal_naive(values, horizon, season)
    if values.shape[1] == season:
        raise DataError(
            f"season is {season}, but the context has only {season} points; quantiles take changes "
            "over a season, so more than one"
        )
    changes = values[:, season:] - values[:, :-season]
    spread = np.full((len(values), len(tau)), np.nan)
    known = ~np.isnan(changes).all(axis=1)
    if known.any():
        spread[known] = np.nanquantile(changes[known], tau, axis=1).T
    seasons_ahead = np.sqrt(np.arange(horizon) // season + 1.0)
    return point[..., None] + spread[:, None, :] * seasons_ahead[None, :, None]


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
