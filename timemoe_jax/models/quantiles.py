"""Quantiles that never cross."""

import math
import statistics

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def non_crossing(outputs: Float[Array, "*N Q"], levels: tuple[float, ...]) -> Float[Array, "*N Q"]:
    """Quantiles that never decrease from level to level, from outputs y of any values.

    The level a nearest 1/2 has its quantile itself, every other a step away from its neighbor on
    that side:

        q[a] = z[a] + y[a]
        q[i] = q[i - 1] + softplus(c[i] + y[i])    above a
        q[i] = q[i + 1] - softplus(c[i] + y[i])    below a

    where z are the standard normal's quantiles and softplus(c[i]) is the distance from z[i] to its
    neighbor. So outputs of 0, about which a model starts, are the quantiles of a z-scored series as
    a whole. Sums of positive steps are those of arXiv 2111.06581, which begins at the lowest level.
    """
    normal = [statistics.NormalDist().inv_cdf(level) for level in levels]
    anchor = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5))
    quantiles = {anchor: normal[anchor] + outputs[..., anchor]}
    # One after the other, since a rounded sum never decreases by adding a step, while sums that
    # are rounded in different orders might.
    for i in (*range(anchor + 1, len(levels)), *reversed(range(anchor))):
        towards = 1 if i > anchor else -1
        distance = max(towards * (normal[i] - normal[i - towards]), 1e-6)
        start = math.log(math.expm1(distance))  # the inverse of softplus
        step = jax.nn.softplus(start + outputs[..., i])
        quantiles[i] = quantiles[i - towards] + towards * step
    return jnp.stack([quantiles[i] for i in range(len(levels))], axis=-1)
