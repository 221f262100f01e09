"""A forecast as a picture: context, what came after it where that is known, forecast and bands."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError
from timemoe_jax.plotting import MAX_PANELS, Panel, plot_forecasts


def hold_out(
    series: Sequence[Float64[np.ndarray, " _"]], horizon: int, names: Sequence[str]
) -> tuple[list[Float64[np.ndarray, " _"]], list[Float64[np.ndarray, " _"]]]:
    """Splits the last horizon off each series, to be compared with its forecast.

    Args:
      series: NaN where a value is missing.
      horizon: points to split off.
      names: what to call each series in an error.

    Returns:
      what is before, and what is split off.

    Raises:
      DataError: a series is no longer than the horizon.
    """
    for each, name in zip(series, names, strict=True):
        if len(each) <= horizon:
            raise DataError(
                f"{name} has {len(each)} points; to hold out a horizon of {horizon} it needs more"
            )
    return [each[:-horizon] for each in series], [each[-horizon:] for each in series]


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
    """Writes a picture with a panel for each series, of the first twelve.

    Args:
      path: of the picture; its ending decides the kind.
      names: titles.
      contexts: what was forecast from.
      point: the forecasts.
      quantiles: of the forecasts, drawn as bands.
      levels: of the quantiles.
      truths: what came; None where that is not known.
      times: of each context and its forecast; None counts steps.
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
