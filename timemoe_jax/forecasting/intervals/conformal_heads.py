"""Conformal calibration for a model that gives quantiles: each interval widened, or narrowed.

The score of an earlier interval is by how much the truth lay outside it, negative inside; the
ceil((K + 1) c)-th smallest of K scores is added at both ends (Romano, Patterson and Candes,
Conformalized quantile regression, 2019). As with points, errors of a time series are not quite
exchangeable, so coverage is measured, not guaranteed: see `intervals`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.intervals.conformal import (
    Calibrated,
    conformal_quantile,
    ordered_scores,
    outcomes,
)
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


def conformalised_offsets(
    series: Sequence[Float64[np.ndarray, " _"]],
    horizon: int,
    levels: Sequence[float] | Float64[np.ndarray, " Q"],
    predict_quantiles: Predict,
    context_length: int,
    names: Sequence[str] | None = None,
    origins: int | None = None,
    min_context: int | None = None,
) -> Calibrated:
    """Calibrates a model's quantiles on how its intervals did at earlier origins.

    Origins, missing values and lengths are as in `conformal_offsets`, and each series is calibrated
    on its own.

    Args:
      series: NaN where a value is missing.
      horizon: points to forecast.
      levels: of the quantiles, rising, with 1 - tau for every tau, and 0.5.
      predict_quantiles: as `Predict`, but to quantiles [N, horizon, Q] of those levels.
      context_length: at most so many points are read by a forecast.
      names: what to call each series in an error.
      origins: at most so many per series.
      min_context: the fewest points before an origin.

    Returns:
      what to give to `adjust_quantiles`, with the errors of the median as residuals.

    Raises:
      DataError: as `conformal_offsets` does, or the levels are not symmetric about 0.5.
    """
    plan = make_plan(horizon, levels, context_length, min_context, origins)
    _check_symmetry(plan.levels)
    labels = label_series(names, len(series))
    gaps = [trailing_gap(each) for each in series]
    chosen = [
        choose_origins(plan, each, gap, wanted_origins(plan, each), plan.needed, label)
        for each, gap, label in zip(series, gaps, labels, strict=True)
    ]
    made = rolling_forecasts(
        series, chosen, horizon, predict_quantiles, context_length, gaps, labels, len(plan.levels)
    )
    truths = [outcomes(each, at, horizon) for each, at in zip(series, chosen, strict=True)]
    offsets = [
        _offsets(quantiles, truth, plan, label)
        for quantiles, truth, label in zip(made, truths, labels, strict=True)
    ]
    middle = len(plan.levels) // 2
    residuals = tuple(
        truth - quantiles[..., middle] for truth, quantiles in zip(truths, made, strict=True)
    )
    shape = (len(series), horizon)
    counts = [(~np.isnan(each)).sum(axis=0) for each in residuals]
    return Calibrated(
        levels=plan.levels,
        offsets=np.array(offsets).reshape(*shape, len(plan.levels)),
        residuals=residuals,
        origins=tuple(chosen),
        counts=np.array(counts, np.int64).reshape(shape),
        pooled=False,
    )


def adjust_quantiles(
    quantiles: Float64[np.ndarray, "N H Q"], offsets: Float64[np.ndarray, "N H Q"]
) -> Float64[np.ndarray, "N H Q"]:
    """Adds offsets to quantiles that are symmetric about a median, and keeps them from crossing.

    Each level has an offset of its own, so that a narrowed interval may end up within a smaller
    one. Going outwards from the median, which stays as it is, a quantile is at least as far out as
    the one before it: intervals only become wider by that.
    """
    moved = quantiles + offsets
    middle = moved.shape[-1] // 2
    above = np.maximum.accumulate(moved[..., middle:], axis=-1)
    below = np.minimum.accumulate(moved[..., middle::-1], axis=-1)[..., ::-1]
    return np.concatenate([below, above[..., 1:]], axis=-1)


def _offsets(
    quantiles: Float64[np.ndarray, "K H Q"],
    truth: Float64[np.ndarray, "K H"],
    plan: CalibrationPlan,
    label: str,
) -> Float64[np.ndarray, "H Q"]:
    """Of each pair of levels, the score that both ends move out by."""
    offsets = np.zeros((plan.horizon, len(plan.levels)))
    for low in range(len(plan.levels) // 2):
        high = len(plan.levels) - 1 - low
        outside = np.maximum(quantiles[..., low] - truth, truth - quantiles[..., high])
        ordered, counts = ordered_scores(outside, plan, label)
        by = conformal_quantile(ordered, counts, plan.levels[low])
        offsets[:, low], offsets[:, high] = -by, by
    return offsets


def _check_symmetry(levels: tuple[float, ...]) -> None:
    confidences = [confidence_of(level) for level in levels]
    if len(levels) < 3 or len(levels) % 2 == 0 or confidences != confidences[::-1]:
        raise DataError(
            f"levels must be 0.5 and pairs of tau and 1 - tau, as 0.1, 0.5, 0.9 are, but are "
            f"{listed(levels)}"
        )
