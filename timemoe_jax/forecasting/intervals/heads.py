"""Quantiles of any level from those that a model has heads for, calibrated or as they are."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.intervals.conformal_heads import (
    adjust_quantiles,
    conformalised_offsets,
)
from timemoe_jax.forecasting.intervals.paths import quantile_function
from timemoe_jax.forecasting.intervals.rolling import Predict


def at_levels(
    quantiles: Float64[np.ndarray, "N H P"], own: Sequence[float], levels: Sequence[float]
) -> Float64[np.ndarray, "N H Q"]:
    """Interpolates quantiles between the levels that they are of, as `quantile_function` does.

    Args:
      quantiles: of the levels `own`, none below the one before it.
      own: rising.
      levels: that are asked for.

    Raises:
      DataError: a level lies outside those there are, where nothing is known.
    """
    outside = [level for level in levels if not own[0] <= level <= own[-1]]
    if outside:
        raise DataError(
            f"quantile_levels holds {outside[0]:g}, but the model has heads for "
            f"{', '.join(f'{level:g}' for level in own)}; ask for levels between these, or for "
            "intervals='conformal'"
        )
    known = {level: k for k, level in enumerate(own)}
    result = np.empty((*quantiles.shape[:2], len(levels)))
    tau, p = np.array(own), np.ones((1, quantiles.shape[1]))
    for k, level in enumerate(levels):
        if level in known:
            result[..., k] = quantiles[..., known[level]]
        else:
            for i, each in enumerate(quantiles):
                result[i, :, k] = quantile_function(level * p, each, tau)[0]
    return result


def calibrated(
    quantiles: Float64[np.ndarray, "N H P"],
    own: Sequence[float],
    levels: Sequence[float],
    series: Sequence[Float64[np.ndarray, " _"]],
    predict: Predict,
    context_length: int,
    names: Sequence[str],
) -> Float64[np.ndarray, "N H Q"]:
    """As `at_levels`, each interval widened or narrowed by how it did at earlier origins.

    Conformalised quantile regression: see `conformal_quantiles`.

    Args:
      quantiles: of the forecast, at the levels `own`.
      own: rising.
      levels: that are asked for.
      series: that were forecast.
      predict: the model's quantiles [N, H, P] at the levels `own` from earlier contexts.
      context_length: at most so many points are read by a forecast.
      names: what to call each series in an error.

    Raises:
      DataError: a level or its mirror image lies outside those there are, or a series is too short.
    """
    every = _mirrored(levels)

    def predict_every(contexts: list[np.ndarray], horizon: int) -> np.ndarray:
        return at_levels(predict(contexts, horizon), own, every)

    horizon = quantiles.shape[1]
    found = conformalised_offsets(series, horizon, every, predict_every, context_length, names)
    adjusted = adjust_quantiles(at_levels(quantiles, own, every), found.offsets)
    return adjusted[..., [every.index(level) for level in levels]]


def _mirrored(levels: Sequence[float]) -> tuple[float, ...]:
    """The levels, with 0.5, and with 1 - tau for every tau."""
    found = list(levels)
    for level in (0.5, *levels):
        if not any(abs(1 - level - other) < 1e-9 for other in found):
            found.append(1 - level)
    return tuple(sorted(found))
