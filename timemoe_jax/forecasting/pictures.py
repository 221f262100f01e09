"""A forecast as a picture: context, what came after it where that is known, forecast and bands."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.contexts import Inputs
from timemoe_jax.plotting import MAX_PANELS, Panel, plot_forecasts


def plot_series(
    path: str | os.PathLike[str],
    forecast: Callable[..., Any],
    series: Sequence[Float64[np.ndarray, " _"]],
    names: Sequence[str],
    holdout: int = 0,
    times: Sequence[Any] | None = None,
    context_length: int | None = None,
    items: Sequence[int] | None = None,
) -> Path:
    """Forecasts series by `Forecaster.forecast`, its options bound, and writes a picture of them.

    The last `holdout` points of each series are held out, and drawn beside their forecast. With
    them, `times` may be the pandas Index [T] of each series; without times the picture counts
    steps. At most `context_length` points before a forecast are drawn. Of a joint model `items`
    says which series are read together.
    """
    for each, name in zip(series, names, strict=True):
        if holdout and len(each) <= holdout:
            raise DataError(
                f"{name} has {len(each)} points; to hold out a horizon of {holdout} it needs more"
            )
    series, names = series[:MAX_PANELS], names[:MAX_PANELS]
    contexts = [each[: len(each) - holdout] for each in series]
    truths = [each[len(each) - holdout :] for each in series] if holdout else None
    given: Any = contexts
    if items is not None:
        given = Inputs(list(contexts), list(names), None, items[: len(contexts)])
    out = forecast(given, names=names)
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
