"""Forecasts from rolling origins: what a model would have forecast at earlier points of a series.

An origin is the index of the first point that is forecast; the context is the points before it.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.contexts import Beside, Context

# `predict(contexts, horizon)`: from N contexts to point forecasts [N, horizon] of what follows each
# context and its gap, or to quantiles [N, horizon, Q]; each from its own context alone.
Predict = Callable[[list[Context], int], np.ndarray]


class Together(NamedTuple):
    """What a joint model reads at once."""

    items: Sequence[int]  # the item of each series; those of one end together
    beside: Sequence[Beside] = ()  # covariates of the items


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
    together: Together | None = None,
) -> list[Float64[np.ndarray, "_ H ..."]]:
    """Forecasts every series from each of its K origins, in few large calls of the model.

    For each series, `gaps` says how many of the last points before an origin to hide, as though
    they were missing. The shape of one forecast is (horizon,) or (horizon, Q). A joint model reads
    what is `together` up to the origin, and what is known ahead as it came. Returns forecasts
    [K, *shape] for each series; a row of NaN where nothing of the context is observed.
    """
    forecasts = [np.full((len(each), *shape), np.nan) for each in origins]
    items = range(len(series)) if together is None else together.items
    members = collections.defaultdict(list)  # the series of each item
    for i, item in enumerate(items):
        members[item].append(i)
    for part in _parts(origins, context_length):
        contexts: list[Context] = []
        rows: dict[tuple[int, int], int] = {}  # of the forecast of a series from an origin
        windows = dict.fromkeys((items[i], int(origins[i][k])) for i, k in part)
        for number, (item, end) in enumerate(windows):
            before = len(contexts)
            for i in members[item]:
                seen = _seen(series[i], end, gaps[i], context_length, labels[i])
                if seen is not None:
                    rows[i, end] = len(contexts)
                    contexts.append(seen)
            if together is not None and len(contexts) > before:
                contexts += _beside(together, item, end, shape[0], context_length)
                contexts[before:] = [each._replace(item=number) for each in contexts[before:]]
        if not contexts:
            continue
        found = _checked(predict(contexts, shape[0]), shape, contexts)
        for i, k in part:
            row = rows.get((i, int(origins[i][k])))
            if row is not None:
                forecasts[i][k] = found[row]
    return forecasts


def _seen(
    series: Float64[np.ndarray, " T"],
    end: int,
    gap: int,
    context_length: int,
    label: str,
) -> Context | None:
    """What is read of a series before an origin; None where nothing of it is observed."""
    seen = series[max(0, end - context_length) : max(0, end - gap)]
    if np.isnan(seen).all():
        return None
    context = Context.of(seen, context_length, label)
    return context._replace(gap=context.gap + gap)


def _beside(
    together: Together, item: int, end: int, horizon: int, context_length: int
) -> Iterator[Context]:
    """What is read of the covariates of an item at an origin, with what was known ahead then."""
    for other in together.beside:
        if other.item != item:
            continue
        if other.ahead is None:
            gap = trailing_gap(other.values)
            seen = _seen(other.values, end, gap, context_length, other.name)
            if seen is not None:
                yield seen
        elif not np.isnan(other.values[max(0, end - context_length) : end]).all():
            later = other.values[end : end + horizon]
            yield other._replace(values=other.values[:end], ahead=later).context(context_length)


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
