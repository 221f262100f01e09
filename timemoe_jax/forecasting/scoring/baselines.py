"""Forecasts that any model has to beat: the last value, the last season, the nearest match.

`scoring.spreads` gives their quantiles, and `scoring.linear` a fitted forecast. Each function takes
a context [B, T], the past of B series, in which NaN marks a missing value, and a horizon, the
number of steps to forecast. Forecasts [B, horizon] have the units and the dtype of the context. A
horizon that is not positive, and a context that is not [B, T] with at least one point, are a
DataError.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.data.series import check_levels
from timemoe_jax.errors import DataError

# Context parroting compares a season, but at least this many points: fewer say at what level a
# series is, not where in its course. A window average takes as many.
MIN_STRETCH = 8


def naive(context: Float[np.ndarray, "B T"], horizon: int) -> Float[np.ndarray, "B horizon"]:
    """Forecasts the last observed value for every step; NaN for a series without one."""
    _check(context, horizon)
    return np.repeat(fill_forward(context)[:, -1:], horizon, axis=1)


def seasonal_naive(
    context: Float[np.ndarray, "B T"], horizon: int, season: int
) -> Float[np.ndarray, "B horizon"]:
    """Repeats the last season: the forecast of a step is the last value observed at its phase.

    It is NaN at a phase that was never observed. A season has from 1 to T steps; else a DataError.
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
        last = fill_forward(whole.swapaxes(1, 2))[:, :, -1]
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
    Section 5.5). Their shape is that of the changes, not a normal distribution's. The changes to
    and from a missing value do not count.

    The quantiles are NaN at a phase that was never observed, and for a series without an observed
    change over a season. A season that has not from 1 to T - 1 steps, and levels that do not rise
    between 0 and 1, are a DataError.
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


def drift(context: Float[np.ndarray, "B T"], horizon: int) -> Float[np.ndarray, "B horizon"]:
    """Goes on along the line from the first observed value to the last one.

    (Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd edition, Section 5.2.)
    A series with a single observation is forecast as `naive` does, NaN without any.
    """
    _check(context, horizon)
    point, slope = naive(context, horizon), drift_slope(context)
    steps = np.arange(1, horizon + 1) + _ends_missing(context)[:, None]
    return (point + slope[:, None] * steps).astype(context.dtype)


def drift_slope(context: Float[np.ndarray, "B T"]) -> Float64[np.ndarray, " B"]:
    """The mean change per step between the first and the last observed value; 0 without two."""
    seen = ~np.isnan(context)
    first, last = seen.argmax(axis=1), context.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
    rows = np.arange(len(context))
    rise = context[rows, last].astype(np.float64) - context[rows, first]
    return np.where(last > first, rise / np.maximum(last - first, 1), 0.0)


def window_average(
    context: Float[np.ndarray, "B T"], horizon: int, window: int
) -> Float[np.ndarray, "B horizon"]:
    """Forecasts the mean of the values observed among the last `window` points for every step.

    Where none of them is observed it is the last value that was, as in `naive`. A window has from 1
    to T points; else a DataError.
    """
    _check(context, horizon)
    if not 1 <= window <= context.shape[1]:
        raise DataError(
            f"window must be from 1 to the context's {context.shape[1]} points, but is {window}"
        )
    last = context[:, context.shape[1] - window :]
    count = (~np.isnan(last)).sum(axis=1)
    # Divided before they are added, so that no sum overflows.
    mean = np.nansum(last / np.maximum(count, 1)[:, None], axis=1)
    mean = np.where(count > 0, mean, naive(context, 1)[:, 0])
    return np.repeat(mean[:, None], horizon, axis=1).astype(context.dtype)


def parroting_stretch(season: int, context_length: int) -> int | None:
    """How many points context parroting compares: a season, at least `MIN_STRETCH`.

    At most half of the context, so that there is an earlier stretch; None for a context of one
    point, which has none.
    """
    return min(max(season, MIN_STRETCH), context_length // 2) or None


def context_parroting(
    context: Float[np.ndarray, "B T"], horizon: int, stretch: int
) -> Float[np.ndarray, "B horizon"]:
    """Copies what followed the earlier stretch of the context that is nearest to the last one.

    The match begins at least `stretch` points before the last stretch, so that they do not overlap.
    Where the copied points reach the end of the context, the copy goes on with itself: the points
    between match and last stretch repeat. Of equally near matches the latest counts, since the
    least has changed since then; in a periodic series that is the last period. A series without a
    match is forecast as `naive` does. (Zhang and Gilpin, arXiv 2505.11349.)

    Distances are mean squares over the points that are observed in both stretches; a stretch
    without such a point is no match. A missing value is copied as the last value observed before
    it, and the forecast of a series without a single observation is NaN. A stretch has from 1 to T
    / 2 points; else a DataError.
    """
    _check(context, horizon)
    length = context.shape[1]
    if stretch < 1:
        raise DataError(f"stretch must be at least 1, but is {stretch}")
    if length < 2 * stretch:
        raise DataError(
            f"stretch is {stretch}, but the context has only {length} points; it must have "
            f"{2 * stretch}, so that an earlier stretch lies beside the last one"
        )
    # By lag, from the smallest: of equals, argmin takes the first.
    distances = _distances_to_last(context, stretch)[:, ::-1]
    lags = stretch + distances.argmin(axis=1)
    lags[np.isinf(distances).all(axis=1)] = 1  # the last value again and again: naive
    sources = length - lags[:, None] + np.arange(horizon) % lags[:, None]
    return np.take_along_axis(fill_forward(context), sources, axis=1)


def _distances_to_last(
    context: Float[np.ndarray, "B T"], stretch: int
) -> Float64[np.ndarray, "B N"]:
    """Mean squared distances of earlier stretches to the last one, by where they begin.

    They are relative to a power of two near the largest value, so that no square overflows;
    infinite where no point is observed in both stretches.
    """
    batch, length = context.shape
    count = length - 2 * stretch + 1
    values = context.astype(np.float64)
    missing = np.isnan(values)
    any_missing = bool(missing.any())
    _, exponents = np.frexp(np.abs(np.where(missing, 0, values)).max(axis=1))
    values = np.ldexp(values, -exponents[:, None])
    squares = np.empty((batch, count))
    sums = np.zeros((batch, count))
    common = np.zeros((batch, count), np.int64)
    # Point by point of the stretches: all of them at once would be `stretch` times the context.
    for i in range(stretch):
        last = length - stretch + i
        np.subtract(values[:, i : i + count], values[:, last : last + 1], out=squares)
        np.square(squares, out=squares)
        if any_missing:
            known = ~(missing[:, i : i + count] | missing[:, last : last + 1])
            common += known
            np.add(sums, squares, out=sums, where=known)
        else:
            sums += squares
    if not any_missing:
        return sums / stretch
    return np.where(common > 0, sums / np.maximum(common, 1), np.inf)


def fill_forward(values: Float[np.ndarray, "*batch T"]) -> Float[np.ndarray, "*batch T"]:
    """Each missing value becomes the last one observed before it, if there is any."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    observed = np.where(missing, 0, np.arange(values.shape[-1]))
    return np.take_along_axis(values, np.maximum.accumulate(observed, axis=-1), axis=-1)


def _ends_missing(context: Float[np.ndarray, "B T"]) -> np.ndarray:
    """How many missing values follow the last observed one of each series."""
    return (~np.isnan(context))[:, ::-1].argmax(axis=1)


def _check(context: np.ndarray, horizon: int) -> None:
    if horizon < 1:
        raise DataError(f"horizon must be at least 1, but is {horizon}")
    if context.ndim != 2 or not context.shape[1]:
        raise DataError(
            f"context must be [B, T] with at least one point, but has the shape {context.shape}"
        )
