"""Seasonal naive as both leaderboards run it: what every relative score divides by."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from scipy.stats import norm

from timemoe_jax.evaluation.methods.base import MethodForecast


class NormalSeasonalNaive:
    """Repeats the last season, with quantiles of a normal distribution around it.

    Its deviation is that of the changes over a season within the context, times the square root of
    the number of seasons ahead (Hyndman and Athanasopoulos, Forecasting: Principles and Practice,
    3rd edition, Section 5.5). A missing value is the one before it, or else the first one observed;
    0 where nothing was. A context shorter than a season begins with its first value until it is as
    long, and has no spread.

    Args:
      most_points: at most so many last points are read, and a longer season is none; None: all.
    """

    name = "seasonal_naive_normal"
    isolated = False

    def __init__(self, most_points: int | None = None):
        self.most_points = most_points

    def predict(
        self,
        contexts: Sequence[Float64[np.ndarray, " _"]],
        horizon: int,
        season: int,
        levels: Sequence[float],
        freq: str | None = None,
    ) -> MethodForecast:
        """Forecasts each context; see `methods.base.Method`."""
        point = np.empty((len(contexts), horizon))
        spread = np.empty(len(contexts))
        if self.most_points and season > self.most_points:
            season = 1
        phase = np.arange(horizon) % season
        for i, context in enumerate(contexts):
            values = _filled(context)
            values = values[-self.most_points :] if self.most_points else values
            if len(values) < season:
                values = np.pad(values, (season - len(values), 0), mode="edge")
            point[i] = values[len(values) - season :][phase]
            changes = values[season:] - values[:-season]
            spread[i] = np.sqrt(np.square(changes).mean()) if changes.size else 0.0
        ahead = np.sqrt(np.arange(horizon) // season + 1.0)
        deviation = spread[:, None] * ahead
        quantiles = point[..., None] + deviation[..., None] * norm.ppf(np.asarray(levels))
        return MethodForecast(point, quantiles)


def _filled(values: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
    missing = np.isnan(values)
    if not missing.any():
        return values
    if missing.all():
        return np.zeros_like(values)
    first = int(np.argmin(missing))
    last = np.maximum.accumulate(np.where(missing, first, np.arange(len(values))))
    return values[last]
