"""Quantiles of any level from those that a model has heads for."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.sample_paths import quantile_function


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
