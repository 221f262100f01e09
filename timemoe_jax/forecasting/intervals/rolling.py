"""Forecasts from rolling origins: what a model would have said at earlier points of a series.

An origin is the index of the first point that is forecast; the context is the points before it.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int

from timemoe_jax.errors import DataError

# `predict(contexts, horizon)`: a list of N float64 contexts [T_i], NaN where a value is missing, to
# point forecasts [N, horizon], each from its own context alone.
Predict = Callable[[list[np.ndarray], int], np.ndarray]

# Values handed to the model in one call, 128 MB: enough for large batches.
POINTS_PER_CALL = 2**24


def trailing_gap(series: Float64[np.ndarray, " T"]) -> int:
    """How many missing values follow the last observed one; all of them where none is observed."""
    observed = np.flatnonzero(~np.isnan(series))
    return len(series) - 1 - int(observed[-1]) if observed.size else len(series)


def first_observed(series: Float64[np.ndarray, " T"]) -> int:
    """The index of the first observed value; the length where none is observed."""
    observed = np.flatnonzero(~np.isnan(series))
    return int(observed[0]) if observed.size else len(series)


def rolling_forecasts(
    series: Sequence[Float64[np.ndarray, " _"]],
    origins: Sequence[Int[np.ndarray, " _"]],
    horizon: int,
    predict: Predict,
    context_length: int,
    gaps: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    num_levels: int | None = None,
) -> list[Float64[np.ndarray, "_ H ..."]]:
    """Forecasts every series from each of its origins, in few large calls of the model.

    Args:
      series: of any lengths, NaN where a value is missing.
      origins: for each series the indices of the first points to forecast, each at least 1.
      horizon: points to forecast.
      predict: the model.
      context_length: at most so many points before an origin are read.
      gaps: for each series, how many of the last points before an origin to hide, as though they
        were missing; by default none.
      names: what to call each series in an error.
      num_levels: the quantiles Q of every step, where the model gives [N, horizon, Q] rather than
        points.

    Returns:
      for each series forecasts [K, horizon] or [K, horizon, Q]; a row of NaN where nothing of the
      context is observed.

    Raises:
      DataError: what the model returned has the wrong shape or is not finite.
    """
    gaps = [0] * len(series) if gaps is None else gaps
    labels = label_series(names, len(series))
    shape = (horizon,) if num_levels is None else (horizon, num_levels)
    forecasts = [np.full((len(each), *shape), np.nan) for each in origins]
    for part in _parts(origins, context_length):
        contexts, places = [], []
        for i, k in part:
            end = int(origins[i][k])
            context = series[i][max(0, end - context_length) : end]
            if gaps[i]:
                context = context.copy()
                context[-gaps[i] :] = np.nan
            if not np.isnan(context).all():
                contexts.append(context)
                places.append((i, k))
        if contexts:
            called = [labels[i] for i, _ in places]
            made = checked_forecasts(predict(contexts, horizon), shape, called)
            for (i, k), row in zip(places, made, strict=True):
                forecasts[i][k] = row
    return forecasts


def label_series(names: Sequence[str] | None, count: int) -> list[str]:
    """What to call each series in an error.

    Raises:
      DataError: there are not as many names as series.
    """
    if names is None:
        return [f"series {i}" for i in range(count)]
    if len(names) != count:
        raise DataError(f"names has {len(names)} entries, but there are {count} series")
    return list(names)


def _parts(
    origins: Sequence[Int[np.ndarray, " _"]], context_length: int
) -> Iterator[list[tuple[int, int]]]:
    """(series, origin) pairs, as many at a time as a call of the model may take."""
    part: list[tuple[int, int]] = []
    points = 0
    for i, each in enumerate(origins):
        for k, end in enumerate(each):
            size = min(int(end), context_length)
            if part and points + size > POINTS_PER_CALL:
                yield part
                part, points = [], 0
            part.append((i, k))
            points += size
    if part:
        yield part


def checked_forecasts(
    forecasts: np.ndarray, shape: tuple[int, ...], labels: Sequence[str]
) -> Float64[np.ndarray, "N H ..."]:
    """What a model returned, as float64.

    Args:
      forecasts: should be [N, horizon], or [N, horizon, Q].
      shape: what should follow N.
      labels: the series of each row.

    Raises:
      DataError: the shape is another, or a forecast is not finite.
    """
    values = np.asarray(forecasts, np.float64)
    if values.shape != (len(labels), *shape):
        raise DataError(
            f"predict returned the shape {values.shape} for {len(labels)} contexts and a horizon "
            f"of {shape[0]}; it must be {(len(labels), *shape)}"
        )
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if bad.size:
        raise DataError(f"predict returned a value that is not finite for {labels[bad[0]]}")
    return values
