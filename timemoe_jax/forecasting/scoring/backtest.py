"""Backtests: how a model would have done on the last points of each series, beside seasonal naive.

A fold hides one horizon and all that follows, and scores its forecast from the points before.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from timemoe_jax.data.seasons import season_of
from timemoe_jax.errors import DataError, listed
from timemoe_jax.forecasting.intervals.rolling import (
    Predict,
    Together,
    first_observed,
    label_series,
    rolling_forecasts,
)
from timemoe_jax.forecasting.scoring.baselines import seasonal_naive
from timemoe_jax.forecasting.scoring.metrics import seasonal_scale, without_nan

NAMES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Score:
    """Errors over all folds of a series; NaN where one is not defined."""

    mae: float  # the mean absolute error, in the units of the series
    rmse: float  # the root of the mean squared error, in the same units
    mase: float  # the MAE over the mean absolute change over a season before the first fold


@dataclasses.dataclass(frozen=True)
class SeriesBacktest:
    """The scores of one series."""

    name: str
    model: Score
    seasonal_naive: Score  # on the same points
    season: int  # its steps; 1 repeats the last value
    season_found: bool  # in the series, rather than given or that of a calendar
    points: int  # that were scored: those observed, and for which seasonal naive has a value
    missing: int  # points not scored: nothing was observed there, or nothing in the context
    loses: bool  # whether the MAE of the model is above that of seasonal naive


@dataclasses.dataclass(frozen=True, eq=False)
class Backtest:
    """The result of `backtest`."""

    horizon: int  # the points of a fold
    folds: int  # of each series
    series: tuple[SeriesBacktest, ...]
    forecasts: Float64[np.ndarray, "N folds H"]  # in the units of each series, oldest first
    origins: Int[np.ndarray, "N folds"]  # the indices of the first points of the folds

    @property
    def losing(self) -> tuple[SeriesBacktest, ...]:
        """The series on which the model loses to seasonal naive."""
        return tuple(each for each in self.series if each.loses)

    def summary(self) -> str:
        """A few lines: the mean scores, and the names of series on which the model loses."""
        head = f"backtest of {len(self.series)} series, {_count(self.folds, 'fold')} of "
        lines = [f"{head}{_count(self.horizon, 'step')}"]
        for title, key in (("model", "model"), ("seasonal naive", "seasonal_naive")):
            scores: list[Score] = [getattr(each, key) for each in self.series]
            mase, without = _mean([score.mase for score in scores])
            note = f" (without {_count(without, 'series')} that has none)" if without else ""
            mae = f", MAE {scores[0].mae:.4g}" if len(scores) == 1 else ""
            lines.append(f"{title}: mean MASE {mase:.3f}{note}{mae}")
        missing = sum(each.missing for each in self.series)
        if missing:
            lines.append(f"{_count(missing, 'missing point')} not scored")
        if not self.losing:
            lines.append("the model loses to seasonal naive on no series")
            return "\n".join(lines)
        losses = listed([_loss(each) for each in self.losing], NAMES_SHOWN, "; ")
        lines.append(
            f"the model LOSES to seasonal naive on {len(self.losing)} of {len(self.series)} "
            f"series: {losses}"
        )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the forecasts, as JSON takes it: None in place of NaN."""
        rows = [without_nan(dataclasses.asdict(each)) for each in self.series]
        return {"horizon": self.horizon, "folds": self.folds, "series": rows}


def backtest(
    series: Sequence[Float64[np.ndarray, " _"]],
    horizon: int,
    folds: int,
    predict: Predict,
    context_length: int,
    season: int | None = None,
    names: Sequence[str] | None = None,
    together: Together | None = None,
) -> Backtest:
    """Scores a model on the last `folds` horizons of each series: see `Forecaster.backtest`.

    Both methods forecast from the points before a fold: the model from its context, seasonal naive
    from all of them. A step counts for both or for neither: it counts if it was observed and if its
    phase was observed before.
    """
    for name, value in (("horizon", horizon), ("folds", folds), ("context_length", context_length)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, but is {value}")
    if season is not None and season < 1:
        raise DataError(f"season must be at least 1, but is {season}")
    labels = label_series(names, len(series))
    origins = check_folds(series, horizon, folds, season, labels)
    no_gaps = [0] * len(series)
    rolled = rolling_forecasts(
        series, origins, (horizon,), predict, context_length, no_gaps, labels, together
    )
    results = [
        _score(each, origin, forecasts, season, label)
        for each, origin, forecasts, label in zip(series, origins, rolled, labels, strict=True)
    ]
    shape = (len(series), folds)
    return Backtest(
        horizon=horizon,
        folds=folds,
        series=tuple(results),
        forecasts=np.array(rolled, np.float64).reshape(*shape, horizon),
        origins=np.array(origins, np.int64).reshape(shape),
    )


def check_folds(
    series: Sequence[Float64[np.ndarray, " _"]],
    horizon: int,
    folds: int,
    season: int | None,
    labels: Sequence[str],
) -> list[Int[np.ndarray, " folds"]]:
    """Where the folds of each series begin; a DataError says which series is too short for them."""
    return [
        _fold_origins(each, horizon, folds, season, label)
        for each, label in zip(series, labels, strict=True)
    ]


def _fold_origins(
    series: Float64[np.ndarray, " T"], horizon: int, folds: int, season: int | None, label: str
) -> Int[np.ndarray, " folds"]:
    """Where the folds begin; the last one ends with the series."""
    before = max(2, season or 1)  # what seasonal naive and a change over one step need
    first = len(series) - folds * horizon
    if first < before:
        raise DataError(
            f"{label} has {len(series)} points, too few for {_count(folds, 'fold')} of "
            f"{_count(horizon, 'step')}: it needs at least {folds * horizon + before}, "
            f"{before} of them before the first fold; give fewer folds or a shorter horizon"
        )
    if first_observed(series) >= first:
        raise DataError(
            f"{label} has no observed value among the {first} points before its first fold; give "
            "fewer folds or a shorter horizon"
        )
    return first + horizon * np.arange(folds)


def _score(
    series: Float64[np.ndarray, " T"],
    origins: Int[np.ndarray, " folds"],
    forecasts: Float64[np.ndarray, "folds H"],
    season: int | None,
    label: str,
) -> SeriesBacktest:
    horizon = forecasts.shape[1]
    past = series[: origins[0]]
    chosen = season_of([past]).points if season is None else season
    naive = np.concatenate([seasonal_naive(series[None, :t], horizon, chosen) for t in origins])
    target = series[origins[0] :].reshape(forecasts.shape)
    counted = ~(np.isnan(target) | np.isnan(naive) | np.isnan(forecasts))
    if not counted.any():
        raise DataError(f"{label} has no observed value to score in its folds; give more folds")
    scale = seasonal_scale(past, chosen)
    model, baseline = (
        _errors(target[counted] - rows[counted], scale) for rows in (forecasts, naive)
    )
    return SeriesBacktest(
        name=label,
        model=model,
        seasonal_naive=baseline,
        season=chosen,
        season_found=season is None,
        points=int(counted.sum()),
        missing=int(counted.size - counted.sum()),
        loses=model.mae > baseline.mae,
    )


def _errors(errors: Float64[np.ndarray, " _"], scale: float) -> Score:
    largest = float(np.abs(errors).max()) or 1.0  # scaled, so that no square overflows
    mae = float(np.abs(errors).mean())
    rmse = largest * float(np.sqrt(np.square(errors / largest).mean()))
    return Score(mae, rmse, mae / scale if scale > 0 else math.nan)


def _loss(each: SeriesBacktest) -> str:
    origin = "found" if each.season_found else "known"
    return (
        f"{each.name} (MAE {each.model.mae:.4g} against {each.seasonal_naive.mae:.4g}, season "
        f"{each.season} {origin})"
    )


def _mean(values: Sequence[float]) -> tuple[float, int]:
    """The mean of the values that are known, and how many are not."""
    known = [value for value in values if not math.isnan(value)]
    return (float(np.mean(known)) if known else math.nan), len(values) - len(known)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 or noun == "series" else "s")
