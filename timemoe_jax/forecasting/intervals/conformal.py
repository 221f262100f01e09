"""Intervals for a model that gives points only: split-conformal, calibrated on rolling origins.

The score of an earlier forecast is its absolute error at one step of the horizon. The half-width
of the interval of confidence c is the ceil((K + 1) c)-th smallest of K scores of that step (Vovk,
Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Lei, G'Sell, Rinaldo,
Tibshirani and Wasserman, Distribution-free predictive inference for regression, 2018). Were the
scores and the coming error exchangeable, it would hold the truth with a probability between c and
c + 1 / (K + 1). The errors of a time series are not exactly that: they overlap, and series
change. So coverage is measured (`benchmarks/coverage.py`), not guaranteed.

The quantile of level tau is point + sign(tau - 1/2) Q, Q the half-width of confidence
|2 tau - 1|: the level 0.5 is the point itself, and levels cannot cross. That each single quantile
has its level takes errors as often above as below; the interval between tau and 1 - tau does not.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.intervals.plan import (
    CalibrationPlan,
    choose_origins,
    confidence_of,
    listed,
    make_plan,
    wanted_origins,
)
from timemoe_jax.forecasting.intervals.rolling import (
    Predict,
    label_series,
    rolling_forecasts,
    trailing_gap,
)

# Origins of all calibration series together, about, and at least one of each.
CALIBRATION_ORIGINS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """What `conformal_offsets` found for N series, a horizon of H and Q levels.

    Attributes:
      levels: of the quantiles [Q], rising.
      offsets: what to add to the point forecast [N, H, Q], in the units of each series.
      residuals: for each series the errors [K, H], what came minus what was forecast, in its units;
        a row per origin, the oldest first; NaN where nothing came or nothing could be forecast.
        With a calibration set, those of all its series, on the scale of this one.
      origins: for each series the indices of the first points forecast [K]; empty with a
        calibration set.
      counts: how many errors each half-width was taken from [N, H].
      pooled: whether the errors are those of a calibration set.
    """

    levels: tuple[float, ...]
    offsets: Float64[np.ndarray, "N H Q"]
    residuals: tuple[Float64[np.ndarray, "_ H"], ...]
    origins: tuple[Int[np.ndarray, " _"], ...]
    counts: Int[np.ndarray, "N H"]
    pooled: bool

    def quantiles(self, point: Float64[np.ndarray, "N H"]) -> Float64[np.ndarray, "N H Q"]:
        """The quantiles around point forecasts, in the units of the series."""
        return point[..., None] + self.offsets


def conformal_offsets(
    series: Sequence[Float64[np.ndarray, " _"]],
    horizon: int,
    levels: Sequence[float] | Float64[np.ndarray, " Q"],
    predict: Predict,
    context_length: int,
    calibration: Sequence[Float64[np.ndarray, " _"]] | None = None,
    names: Sequence[str] | None = None,
    origins: int | None = None,
    min_context: int | None = None,
) -> Calibrated:
    """Calibrates quantiles on the errors that the model made at earlier origins.

    Each series is calibrated on its own errors alone, so that the others in the call change
    nothing. Origins are spread evenly, at most one horizon apart, up to the last whose horizon is
    still observed. They begin where the context is as long as the forecast's own; where that would
    leave less than the second half of the series, in its middle. An error at a missing step does
    not count. Where a series ends in missing values, as many are hidden before each origin.

    With `calibration` the errors are those of its series, each divided by `context_scale` of the
    context that it was made from, and multiplied by that of the series at hand, which may then be
    short. A context without scale has no such errors, and they are not counted.

    Args:
      series: NaN where a value is missing; their forecasts follow their ends.
      horizon: points to forecast.
      levels: of the quantiles, rising, between 0 and 1.
      predict: the model, with the same settings as the forecast itself. If it is equivariant to
        shifts and scales of a series, so are the offsets.
      context_length: at most so many points are read by a forecast.
      calibration: other series, of the kind of these.
      names: what to call each series in an error.
      origins: at most so many per series; by default 59, or twice what the levels need, and more
        where values are missing.
      min_context: the fewest points before an origin; by default the horizon, but at least 16.

    Raises:
      DataError: an argument is out of range, a series is too short, or too few of its errors count.
    """
    plan = make_plan(horizon, levels, context_length, min_context, origins)
    labels = label_series(names, len(series))
    if calibration is not None:
        return _from_others(plan, series, calibration, predict, labels)
    gaps = [trailing_gap(each) for each in series]
    chosen = [
        choose_origins(plan, each, gap, wanted_origins(plan, each), max(1, plan.needed), label)
        if plan.needed
        else np.zeros(0, np.int64)
        for each, gap, label in zip(series, gaps, labels, strict=True)
    ]
    made = rolling_forecasts(series, chosen, horizon, predict, context_length, gaps, labels)
    residuals = tuple(
        outcomes(each, where, horizon) - forecast
        for each, where, forecast in zip(series, chosen, made, strict=True)
    )
    counts = [(~np.isnan(each)).sum(axis=0) for each in residuals]
    offsets = [_offsets(each, plan, label) for each, label in zip(residuals, labels, strict=True)]
    shape = (len(series), horizon)
    return Calibrated(
        levels=plan.levels,
        offsets=np.array(offsets).reshape(*shape, len(plan.levels)),
        residuals=residuals,
        origins=tuple(chosen),
        counts=np.array(counts, np.int64).reshape(shape),
        pooled=False,
    )


def context_scale(context: Float64[np.ndarray, " T"]) -> float:
    """The spread of a context: the median absolute deviation from the median.

    Where that is 0, since most values are equal, it is the mean of those deviations; 0 for a
    constant context, and where nothing is observed. Single large values hardly move it, unlike a
    standard deviation.
    """
    observed = context[~np.isnan(context)]
    if not observed.size:
        return 0.0
    deviations = np.abs(observed - np.median(observed))
    return float(np.median(deviations)) or float(deviations.mean())


def outcomes(
    series: Float64[np.ndarray, " T"], origins: Int[np.ndarray, " K"], horizon: int
) -> Float64[np.ndarray, "K H"]:
    """What came after each origin."""
    return series[origins[:, None] + np.arange(horizon)]


def _offsets(
    residuals: Float64[np.ndarray, "K H"], plan: CalibrationPlan, label: str
) -> Float64[np.ndarray, "H Q"]:
    """sign(tau - 1/2) times the ceil((K + 1) |2 tau - 1|)-th smallest absolute error of a step."""
    ordered, counts = ordered_scores(np.abs(residuals), plan, label)
    offsets = np.zeros((plan.horizon, len(plan.levels)))
    for q, level in enumerate(plan.levels):
        if level != 0.5:
            half_width = conformal_quantile(ordered, counts, level)
            offsets[:, q] = half_width if level > 0.5 else -half_width
    return offsets


def ordered_scores(
    scores: Float64[np.ndarray, "K H"], plan: CalibrationPlan, label: str
) -> tuple[Float64[np.ndarray, "K H"], Int[np.ndarray, " H"]]:
    """The scores of each step in rising order, what is missing last, and how many are there.

    Args:
      scores: NaN where one is missing.
      plan: says how many are needed.
      label: what to call them in an error.

    Raises:
      DataError: too few are there at some step.
    """
    counts = (~np.isnan(scores)).sum(axis=0)
    if counts.min(initial=plan.needed) < plan.needed:
        step = int(counts.argmin())
        raise DataError(
            f"{label} has {counts[step]} errors that count at step {step + 1} of the horizon, of "
            f"{len(scores)} forecasts; the levels {listed(plan.levels)} need {plan.needed} "
            "(an error at a missing value does not count)"
        )
    return np.sort(scores, axis=0), counts


def conformal_quantile(
    ordered: Float64[np.ndarray, "K H"], counts: Int[np.ndarray, " H"], level: float
) -> Float64[np.ndarray, " H"]:
    """The ceil((K + 1) |2 tau - 1|)-th smallest of the K scores of each step, tau the level."""
    c = confidence_of(level)
    rank = -(-(counts + 1) * c.numerator // c.denominator)
    return ordered[rank - 1, np.arange(ordered.shape[1])]


def _from_others(
    plan: CalibrationPlan,
    series: Sequence[Float64[np.ndarray, " _"]],
    calibration: Sequence[Float64[np.ndarray, " _"]],
    predict: Predict,
    labels: Sequence[str],
) -> Calibrated:
    """Scores of a calibration set, on the scale of each series."""
    if not len(calibration):
        raise DataError("calibration holds no series; give at least one, or None")
    gaps = [trailing_gap(each) for each in series]
    scores = {gap: _scores(plan, calibration, gap, predict) for gap in sorted(set(gaps))}
    unit = {
        gap: _offsets(each, plan, "the calibration set as a whole") for gap, each in scores.items()
    }
    counts = {gap: (~np.isnan(each)).sum(axis=0) for gap, each in scores.items()}
    scales = [context_scale(each[-plan.context_length :]) for each in series]
    shape = (len(series), plan.horizon)
    offsets = [unit[gap] * scale for gap, scale in zip(gaps, scales, strict=True)]
    return Calibrated(
        levels=plan.levels,
        offsets=np.array(offsets).reshape(*shape, len(plan.levels)),
        residuals=tuple(scores[gap] * scale for gap, scale in zip(gaps, scales, strict=True)),
        origins=tuple(np.zeros(0, np.int64) for _ in labels),
        counts=np.array([counts[gap] for gap in gaps], np.int64).reshape(shape),
        pooled=True,
    )


def _scores(
    plan: CalibrationPlan,
    calibration: Sequence[Float64[np.ndarray, " _"]],
    gap: int,
    predict: Predict,
) -> Float64[np.ndarray, "K H"]:
    """Errors over the scale of the context that each was made from, of all series together."""
    labels = [f"calibration series {i}" for i in range(len(calibration))]
    count = min(plan.origins, max(1, -(-CALIBRATION_ORIGINS // len(calibration))))
    remedy = "leave it out, or give a shorter horizon"
    chosen = [
        choose_origins(plan, each, gap, count, 1, label, remedy)
        for each, label in zip(calibration, labels, strict=True)
    ]
    gaps = [gap] * len(calibration)
    made = rolling_forecasts(
        calibration, chosen, plan.horizon, predict, plan.context_length, gaps, labels
    )
    scores = []
    for each, origins, forecasts in zip(calibration, chosen, made, strict=True):
        errors = outcomes(each, origins, plan.horizon) - forecasts
        contexts = [each[max(0, t - plan.context_length) : t - gap] for t in origins.tolist()]
        scales = np.array([context_scale(context) for context in contexts])
        scores.append(errors / np.where(scales > 0, scales, np.nan)[:, None])
    return np.concatenate(scores)
