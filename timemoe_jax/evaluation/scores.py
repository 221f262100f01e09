"""Scores of a task's windows: of their points, scaled by the past, and of their quantiles.

Axes: W the windows of a task, H the steps of its horizon, Q the levels of its quantiles. A target
that is missing (NaN) does not count.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.tasks import Task
from timemoe_jax.forecasting.scoring.metrics import (
    check_forecast,
    pinball_losses,
    seasonal_scale,
)

INTERVAL = (0.1, 0.9)  # the levels whose interval should hold 80 percent of what comes


@dataclasses.dataclass(frozen=True, eq=False)
class WindowScores:
    """Sums over the observed points of each window, from which all scores follow."""

    levels: tuple[float, ...]
    points: Int64[np.ndarray, " W"]  # observed
    absolute: Float64[np.ndarray, " W"]  # errors of the point forecast, in the units of the series
    squared: Float64[np.ndarray, " W"]
    scale: Float64[np.ndarray, " W"]  # see `seasonal_scales`
    quantile_loss: Float64[np.ndarray, "W Q"]  # twice the pinball loss, in the units of the series
    target: Float64[np.ndarray, " W"]  # absolute values of what came
    covered: Float64[np.ndarray, " W"]  # points within the interval of 80%; NaN without its levels

    @property
    def mase(self) -> Float64[np.ndarray, " W"]:
        """The mean absolute scaled error of each window; NaN without a point or a scale."""
        return _ratio(self.absolute, self.points * self.scale)

    @property
    def sql(self) -> Float64[np.ndarray, " W"]:
        """The scaled quantile loss of each window, a mean over levels; NaN as for `mase`."""
        return _ratio(self.quantile_loss.mean(axis=1), self.points * self.scale)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a method on a task. One of nothing is NaN."""

    mase: float
    crps: float  # the mean over levels of weighted quantile losses
    sql: float  # the scaled quantile loss
    coverage: float  # the share of what came that the interval of 80% held
    mae: float  # in the units of the series
    mse: float
    points: int  # observed targets
    windows: int  # that count towards MASE
    without_scale: int  # windows that do not: their past has no seasonal change, or nothing came


def seasonal_scales(task: Task, one_where_short: bool = True) -> Float64[np.ndarray, " W"]:
    """The mean absolute change over a season in the whole past of each window, in its units.

    A past no longer than a season has none. With `one_where_short`, as GluonTS has it, one that is
    shorter than a season is scaled by its changes from point to point; without it, as in fev, it
    has no scale. A scale is NaN where there is none, or where it is 0, since the past repeats
    itself: such a window counts for no scaled error.
    """
    season = task.scale_season or task.season
    scales = [
        seasonal_scale(past, 1 if one_where_short and season > len(past) else season)
        for past in task.contexts()
    ]
    found = np.array(scales, np.float64)
    return np.where(found > 0, found, np.nan)


def score_windows(
    task: Task,
    forecast: MethodForecast,
    scales: Float64[np.ndarray, " W"] | None = None,
) -> WindowScores:
    """Scores the forecasts of a task's windows.

    Args:
      task: what was asked.
      forecast: of each window, in the order of `task.contexts()`; quantiles of `task.levels`.
      scales: of scaled errors; those of `seasonal_scales` by default.

    Raises:
      DataError: a forecast has another shape, or is not finite where the target is observed.
    """
    target = task.targets()
    _check_shapes(task, forecast)
    check_forecast("the point forecasts", forecast.point, target)
    observed = ~np.isnan(target)
    errors = np.where(observed, np.nan_to_num(target) - forecast.point, 0.0)
    losses = pinball_losses(target, forecast.quantiles, task.levels)
    return WindowScores(
        levels=task.levels,
        points=observed.sum(axis=1),
        absolute=np.abs(errors).sum(axis=1),
        squared=np.square(errors).sum(axis=1),
        scale=seasonal_scales(task) if scales is None else scales,
        quantile_loss=2 * np.nansum(losses, axis=1),
        target=np.nansum(np.abs(target), axis=1),
        covered=_covered(task.levels, forecast.quantiles, target, observed),
    )


def summarize(scores: WindowScores, groups: Int64[np.ndarray, " W"] | None = None) -> Scores:
    """The scores of a task from those of its windows.

    Within a group every observed point counts alike, and weighted losses are sums of losses over
    the sum of the absolute targets. The scores of groups are averaged. GIFT-Eval has one group,
    fev one for each number of a window and target column.

    Args:
      scores: of the windows.
      groups: the number of each window's group; None for a single one.
    """
    if groups is None:
        groups = np.zeros(len(scores.points), np.int64)
    scaled = np.isfinite(scores.scale) & (scores.points > 0)
    counted = np.where(scaled, scores.points, 0)

    def mean(sums: np.ndarray, weights: np.ndarray) -> float:
        """The mean over groups of sums over weights."""
        count = int(groups.max(initial=-1)) + 1
        above, below = (np.bincount(groups, x, count) for x in (sums, weights))
        used = np.unique(groups)
        return float(np.mean(_ratio(above[used], below[used]))) if used.size else float("nan")

    by_scale = np.where(scaled, scores.scale, 1.0)
    losses = scores.quantile_loss.T
    return Scores(
        mase=mean(np.where(scaled, scores.absolute / by_scale, 0.0), counted),
        crps=float(np.mean([mean(loss, scores.target) for loss in losses])),
        sql=mean(np.where(scaled, losses.mean(axis=0) / by_scale, 0.0), counted),
        coverage=mean(scores.covered, scores.points),
        mae=mean(scores.absolute, scores.points),
        mse=mean(scores.squared, scores.points),
        points=int(scores.points.sum()),
        windows=int(scaled.sum()),
        without_scale=int((~scaled).sum()),
    )


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers; NaN of none, and where one is not positive."""
    array = np.asarray(values, np.float64)
    if not array.size or not (array > 0).all():
        return float("nan")
    return float(np.exp(np.log(array).mean()))


def _covered(
    levels: Sequence[float],
    quantiles: Float64[np.ndarray, "W H Q"],
    target: Float64[np.ndarray, "W H"],
    observed: Bool[np.ndarray, "W H"],
) -> Float64[np.ndarray, " W"]:
    ends = [np.flatnonzero(np.isclose(levels, level)) for level in INTERVAL]
    if not all(len(end) for end in ends):
        return np.full(len(target), np.nan)
    lower, upper = (quantiles[..., end[0]] for end in ends)
    within = observed & (lower <= target) & (target <= upper)
    return within.sum(axis=1).astype(np.float64)


def _check_shapes(task: Task, forecast: MethodForecast) -> None:
    shape = (len(task), task.horizon)
    wanted = {"point": shape, "quantiles": (*shape, len(task.levels))}
    for name, right in wanted.items():
        found = getattr(forecast, name).shape
        if found != right:
            raise DataError(
                f"the forecast of {task.name} has {name} of the shape {found}, but must have one "
                f"of {right}: windows, steps{', levels' if name == 'quantiles' else ''}"
            )


def _ratio(above: np.ndarray, below: np.ndarray) -> Float64[np.ndarray, " _"]:
    """Quotients; NaN where nothing is below."""
    there = np.isfinite(below) & (below > 0)
    return np.where(there, above / np.where(there, below, 1.0), np.nan)
