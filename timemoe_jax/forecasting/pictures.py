"""A forecast as a picture: context, what came after it where that is known, forecast and bands."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError
from timemoe_jax.plotting import MAX_PANELS, Panel, plot_forecasts


def plot_series(
    path: str | os.PathLike[str],
    forecast: Callable[..., Any],
    series: Sequence[Float64[np.ndarray, " _"]],
    names: Sequence[str],
    holdout: int = 0,
    times: Sequence[Any] | None = None,
    context_length: int | None = None,
) -> Path:
    """Forecasts series and writes a picture of them.

    Args:
      path: of the picture; its ending decides the kind.
      forecast: `Forecaster.forecast` with its options, of series and `names=`.
      series: NaN where a value is missing.
      names: titles, and what to call each series in an error.
      holdout: how many last points of each series to hold out, and to draw beside their forecast.
      times: of each series, a pandas Index [T], if points are held out; None counts steps.
      context_length: draw at most so many last points before the forecast.

    Raises:
      DataError: a series is no longer than what is held out, or `forecast` refuses it.
    """
    for each, name in zip(series, names, strict=True):
        if holdout and len(each) <= holdout:
            raise DataError(
                f"{name} has {len(each)} points; to hold out a horizon of {holdout} it needs more"
            )
    series, names = series[:MAX_PANELS], names[:MAX_PANELS]
    contexts = [each[: len(each) - holdout] for each in series]
    truths = [each[len(each) - holdout :] for each in series] if holdout else None
    out = forecast(contexts, names=names)
    drawn = slice(-context_length if context_length else None, None)
    contexts = [each[drawn] for each in contexts]
    spans = None
    if times is not None:
        spans = [(each[:-holdout][drawn], each[-holdout:]) for each in times]
    levels = out.quantile_levels
    return draw_forecasts(path, names, contexts, out.point, out.quantiles, levels, truths, spans)


def draw_forecasts(
    path: str | os.PathLike[str],
    names: Sequence[str],
    contexts: Sequence[Float64[np.ndarray, " _"]],
    point: Float64[np.ndarray, "N H"],
    quantiles: Float64[np.ndarray, "N H Q"] | None = None,
    levels: Sequence[float] = (),
    truths: Sequence[Float64[np.ndarray, " H"]] | None = None,
    times: Sequence[tuple[Any, Any]] | None = None,
) -> Path:
    """Writes a picture with a panel for each of the first twelve series.

    Truths are what came after the contexts, times a pair of indexes for each context and its
    forecast; without times the picture counts steps.
    """
    panels = [
        Panel(
            title=names[i],
            context=contexts[i],
            forecast=point[i],
            truth=None if truths is None else truths[i],
            quantiles=None if quantiles is None else quantiles[i],
            levels=None if quantiles is None else levels,
            times_context=None if times is None else times[i][0],
            times_forecast=None if times is None else times[i][1],
        )
        for i in range(min(len(names), MAX_PANELS))
    ]
    return plot_forecasts(path, panels)
