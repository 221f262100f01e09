"""Quantiles of any level, and values of any probability, from quantiles of a few levels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.series import check_levels
from timemoe_jax.errors import DataError


def quantile_function(
    probabilities: Float64[np.ndarray, "S H"],
    quantiles: Float64[np.ndarray, "H Q"],
    levels: Sequence[float] | Float64[np.ndarray, " Q"],
) -> Float64[np.ndarray, "S H"]:
    """The values that a forecast does not exceed with the given probabilities, in its units.

    Values are linear in the standard normal quantile of the probability: between neighboring
    levels, and on in the same lines beyond the outermost ones. So the tails are those of normal
    distributions, and a normal distribution of which two levels are known is met everywhere. At a
    level itself the value is exactly its quantile. There are at least two levels, and no quantile
    is below the one before it.
    """
    from scipy.special import ndtri  # a tenth of a second, which most forecasts do not need

    tau = check_levels(levels)
    score, knots = ndtri(probabilities), ndtri(tau)
    # The knot at which each line begins; the outermost lines go on.
    left = np.clip(np.searchsorted(tau, probabilities, side="right") - 1, 0, len(tau) - 2)
    steps = np.arange(quantiles.shape[0])
    low, high = quantiles[steps, left], quantiles[steps, left + 1]
    weight = (score - knots[left]) / (knots[left + 1] - knots[left])
    return np.where(weight == 1, high, low + weight * (high - low))


def at_levels(
    quantiles: Float64[np.ndarray, "N H P"],
    model_levels: Sequence[float],
    levels: Sequence[float],
) -> Float64[np.ndarray, "N H Q"]:
    """Interpolates quantiles of the model's levels to levels between them: `quantile_function`."""
    outside = [level for level in levels if not model_levels[0] <= level <= model_levels[-1]]
    if outside:
        raise DataError(
            f"quantile_levels holds {outside[0]:g}, but the model has heads for "
            f"{', '.join(f'{level:g}' for level in model_levels)}; ask for levels between these, "
            "or for intervals='conformal'"
        )
    heads = {level: k for k, level in enumerate(model_levels)}
    result = np.empty((*quantiles.shape[:2], len(levels)))
    tau, ones = np.array(model_levels), np.ones((1, quantiles.shape[1]))
    for k, level in enumerate(levels):
        if level in heads:
            result[..., k] = quantiles[..., heads[level]]
        else:
            for i, each in enumerate(quantiles):
                result[i, :, k] = quantile_function(level * ones, each, tau)[0]
    return result
