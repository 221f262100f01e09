"""Quantiles around the simple forecasts: how far off each was at earlier points of the series.

Contexts are [B, T], NaN where a value is missing; quantiles [B, horizon, Q] have their units. A
series without a single earlier error has NaN quantiles. Levels rise between 0 and 1; else a
DataError.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

from timemoe_jax.data.series import check_levels
from timemoe_jax.forecasting.scoring.baselines import (
    context_parroting,
    drift,
    drift_slope,
    fill_forward,
    seasonal_naive_quantiles,
    window_average,
)

Levels = Sequence[float] | Float64[np.ndarray, " Q"]
ORIGINS = 100  # most earlier points from which a method is tried
# A quantile of fewer errors is not taken from them alone.
LEAST_ERRORS = 10
POINTS_TRIED = 8192  # of a long context, the last ones in which methods are tried


def naive_quantiles(
    context: Float[np.ndarray, "B T"], horizon: int, levels: Levels
) -> Float64[np.ndarray, "B horizon Q"]:
    """Around `naive`: the changes over one step, times the square root of the steps ahead.

    See `baselines.seasonal_naive_quantiles`, of which this is the case of a season of one step. A
    context has two points or more; else a DataError.
    """
    return seasonal_naive_quantiles(context, horizon, 1, levels)


def drift_quantiles(
    context: Float[np.ndarray, "B T"], horizon: int, levels: Levels
) -> Float64[np.ndarray, "B horizon Q"]:
    """Around `drift`: what changes over one step are off the line, growing with the steps ahead.

    At step h they are times sqrt(h (1 + h / (T - 1))), where the second term is for the slope that
    is estimated (Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd edition,
    Section 5.5).
    """
    tau = check_levels(levels)
    values = context.astype(np.float64)
    point, slope = drift(values, horizon), drift_slope(values)
    off = np.diff(values, axis=1) - slope[:, None]
    spread = sorted_quantiles(off.T, tau)
    steps = np.arange(1, horizon + 1)
    growth = np.sqrt(steps * (1 + steps / max(context.shape[1] - 1, 1)))
    return point[..., None] + spread[:, None, :] * growth[None, :, None]


def window_average_quantiles(
    context: Float[np.ndarray, "B T"], horizon: int, window: int, levels: Levels
) -> Float64[np.ndarray, "B horizon Q"]:
    """Around `window_average`: its errors from earlier points of the series, step by step.

    From up to 100 earlier origins, evenly spaced in the last 8,192 points: see `spread_of`.
    """
    tau = check_levels(levels)
    point = window_average(context.astype(np.float64), horizon, window)
    spreads = []
    for row in context.astype(np.float64):
        values = row[-POINTS_TRIED:]
        origins = earlier_origins(len(values), window)
        past = [window_average(values[None, :origin], 1, window)[0, 0] for origin in origins]
        forecasts = np.repeat(np.array(past).reshape(-1, 1), horizon, axis=1)
        spreads.append(spread_of(values, origins, forecasts, tau))
    return point[..., None] + np.stack(spreads)


def context_parroting_quantiles(
    context: Float[np.ndarray, "B T"], horizon: int, stretch: int, levels: Levels
) -> Float64[np.ndarray, "B horizon Q"]:
    """Around `context_parroting`: its errors from earlier points of the series, step by step.

    From up to 100 earlier origins, evenly spaced in the last 8,192 points: see `spread_of`. There
    missing values count as the last ones observed before them, so that all distances are one
    product of matrices.
    """
    tau = check_levels(levels)
    point = context_parroting(context.astype(np.float64), horizon, stretch)
    spreads = []
    for row in context.astype(np.float64):
        values = row[-POINTS_TRIED:]
        origins = earlier_origins(len(values), 2 * stretch)
        forecasts = _parroted(values, origins, horizon, stretch)
        spreads.append(spread_of(values, origins, forecasts, tau))
    return point[..., None] + np.stack(spreads)


def _parroted(
    values: Float64[np.ndarray, " T"], origins: Int64[np.ndarray, " K"], horizon: int, stretch: int
) -> Float64[np.ndarray, "K H"]:
    """What `context_parroting` copies at each origin."""
    filled = fill_forward(values)
    known = filled[~np.isnan(filled)]
    if not len(origins) or not known.size:
        return np.full((len(origins), horizon), np.nan)
    filled = np.where(np.isnan(filled), known[0], filled)
    scaled = filled - known[0]
    scaled = scaled / (np.abs(scaled).max() or 1.0)  # so that no square overflows
    stretches = np.lib.stride_tricks.sliding_window_view(scaled, stretch)
    last = stretches[origins - stretch]  # that end at each origin
    squares = np.square(stretches).sum(axis=1)
    # Of |a - b|^2, what depends on a: the place of the earlier stretch.
    distances = squares[:, None] - 2 * stretches @ last.T
    starts = np.arange(len(stretches))[:, None]
    distances = np.where(starts <= origins - 2 * stretch, distances, np.inf)
    # Of equals, the latest.
    match = len(stretches) - 1 - distances[::-1].argmin(axis=0)
    lags = origins - stretch - match
    ahead = np.arange(horizon)
    return filled[(origins - lags)[:, None] + ahead % lags[:, None]]


def earlier_origins(length: int, least: int) -> Int64[np.ndarray, " K"]:
    """Up to `ORIGINS` points of a series from which to forecast, `least` points before the first.

    They are evenly spaced, and the last has one point after it.
    """
    count = min(ORIGINS, max(0, length - least))
    return np.linspace(least, length - 1, count).round().astype(np.int64)


def spread_of(
    values: Float64[np.ndarray, " T"],
    origins: Int64[np.ndarray, " K"],
    forecasts: Float64[np.ndarray, "K H"],
    tau: Float64[np.ndarray, " Q"],
) -> Float64[np.ndarray, "H Q"]:
    """How far off to put each quantile of each step, by the errors of forecasts at K origins."""
    horizon = forecasts.shape[1]
    later = np.append(values, np.full(horizon, np.nan))
    truths = later[origins[:, None] + np.arange(horizon)]
    return quantiles_by_step(truths - forecasts, tau)


def quantiles_by_step(
    errors: Float64[np.ndarray, "K H"], tau: Float64[np.ndarray, " Q"]
) -> Float64[np.ndarray, "H Q"]:
    """Quantiles of the errors of each step, NaN where there is no error at all.

    A step with fewer than 10 errors takes the quantiles of the last step before it with as many,
    times the square root of the ratio of the two steps, as errors of a random walk grow. Where no
    step has as many, the errors of all steps count together, each divided by the root of its step.
    """
    steps = np.sqrt(np.arange(1, errors.shape[1] + 1))
    enough = (~np.isnan(errors)).sum(axis=0) >= LEAST_ERRORS
    if not enough.any():
        pooled = (errors / steps).reshape(-1, 1)
        return sorted_quantiles(pooled, tau) * steps[:, None]
    # Steps before the first with enough errors take that one's.
    first = int(enough.argmax())
    source = np.maximum.accumulate(np.where(enough, np.arange(len(enough)), first))
    used = np.unique(source)
    own = np.empty((len(enough), len(tau)))
    own[used] = sorted_quantiles(errors[:, used], tau)
    return own[source] * (steps / steps[source])[:, None]


def sorted_quantiles(
    samples: Float64[np.ndarray, "K N"], tau: Float64[np.ndarray, " Q"]
) -> Float64[np.ndarray, "N Q"]:
    """Quantiles of each column over its values that are no NaN; NaN for a column without any.

    The quantile of level tau of n values is at the place tau (n + 1) among them, as in conformal
    prediction, so that few values do not make intervals too narrow.
    """
    counts = (~np.isnan(samples)).sum(axis=0)
    if not len(samples):
        return np.full((samples.shape[1], len(tau)), np.nan)
    ranked = np.sort(samples, axis=0)  # NaN last
    places = np.clip(tau * (counts[:, None] + 1) - 1, 0, np.maximum(counts - 1, 0)[:, None])
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(counts - 1, 0)[:, None])
    columns = np.arange(samples.shape[1])[:, None]
    share = places - low
    return ranked[low, columns] * (1 - share) + ranked[high, columns] * share
