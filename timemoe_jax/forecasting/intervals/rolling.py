"""Forecasts from rolling origins: what a model would have forecast at earlier points of a series.

An origin is the index of the first point that is forecast; the context is the points before it.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.contexts import Context

# `predict(contexts, horizon)`: from N contexts to point forecasts [N, horizon] of what follows each
# context and its gap, or to quantiles [N, horizon, Q]; each from its own context alone.
Predict = Callable[[list[Context], int], np.ndarray]

# Values that the model gets in one call, 128 MB: enough for large batches.
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
    shape: tuple[int, ...],
    predict: Predict,
    context_length: int,
    gaps: Sequence[int],
    labels: Sequence[str],
) -> list[Float64[np.ndarray, "_ H ..."]]:
    """Forecasts every series from each of its K origins, in few large calls of the model.

    For each series, `gaps` says how many of the last points before an origin to hide, as though
    they were missing. The shape of one forecast is (horizon,) or (horizon, Q). Returns forecasts
    [K, *shape] for each series; a row of NaN where nothing of the context is observed.
    """
    forecasts = [np.full((len(each), *shape), np.nan) for each in origins]
    for part in _parts(origins, context_length):
        contexts, indices = [], []
        for i, k in part:
            end = int(origins[i][k])
            seen = series[i][max(0, end - context_length) : end - gaps[i]]
            if not np.isnan(seen).all():
                context = Context.of(seen, context_length, labels[i])
                contexts.append(context._replace(gap=context.gap + gaps[i]))
                indices.append((i, k))
        if contexts:
            rows = _checked(predict(contexts, shape[0]), shape, contexts)
            for (i, k), row in zip(indices, rows, strict=True):
                forecasts[i][k] = row
    return forecasts


def label_series(names: Sequence[str] | None, count: int) -> list[str]:
    """What to call each series in an error: its name, or "series 0" and so on."""
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


def _checked(
    forecasts: np.ndarray, shape: tuple[int, ...], contexts: Sequence[Context]
) -> Float64[np.ndarray, "N H ..."]:
    """What a model returned, as float64; refuses another shape and values that are not finite."""
    values = np.asarray(forecasts, np.float64)
    expected = (len(contexts), *shape)
    if values.shape != expected:
        raise DataError(
            f"predict returned the shape {values.shape} for {len(contexts)} contexts and a horizon "
            f"of {shape[0]}; it must be {expected}"
        )
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        label = contexts[int(np.argmin(finite))].label
        raise DataError(f"predict returned a value that is not finite for {label}")
    return values
