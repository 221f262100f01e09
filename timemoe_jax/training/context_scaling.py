"""Z-scoring a training window by its first points, as a forecast is by its context.

`Forecaster` with normalize="instance" z-scores what it reads by its own statistics. A model trained
on series z-scored as a whole has seen levels and scales that know the future, and never a context
of mean 0 and deviation 1. Here the first points of a window, a random number of them, play the
context: they alone give the statistics, and only forecasts made from the last of them on count.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.data.pipeline.standardize import FLAT_CONTEXT


class Scaled(NamedTuple):
    """Windows scaled by their contexts."""

    values: Float[Array, "B S"]  # of all points: the inputs, and what follows them
    positions: Float[Array, "B T"]  # 1 where a forecast counts


def context_lengths(key: Array, mask: Bool[Array, "B T"], shortest: int) -> Int[Array, " B"]:
    """Draws how many of the inputs of each window are its context, from `shortest` up.

    The shortest is counted from the first observed one, since windows may be padded before it. All
    lengths are equally likely. A series that ends before the shortest is its own context.
    """
    available = last_observed(mask) + 1
    least = shortest + jnp.argmax(mask, axis=1)
    share = jax.random.uniform(key, available.shape)
    drawn = least + jnp.floor(share * (available - least + 1)).astype(jnp.int32)
    return jnp.minimum(jnp.maximum(drawn, least), available)


def last_observed(mask: Bool[Array, "B T"]) -> Int[Array, " B"]:
    """The last observed position of each window; -1 where there is none."""
    index = jnp.arange(mask.shape[1])
    return jnp.max(jnp.where(mask, index, -1), axis=1)


def scale_by_context(
    values: Float[Array, "B S"],
    mask: Bool[Array, "B S"],
    contexts: Int[Array, " B"],
    num_inputs: int,
    clip: float = 0.0,
) -> Scaled:
    """Z-scores windows by the observed points of their contexts (population deviation).

    The windows are of series that are z-scored as a whole, and `clip` bounds how far from 0 their
    new values lie (0: no bound). A window whose context is flat has no scale, and none of its
    forecasts counts.
    """
    index = jnp.arange(values.shape[1])
    used = mask & (index < contexts[:, None])
    count = jnp.maximum(jnp.sum(used, axis=1), 1)
    mean = jnp.sum(jnp.where(used, values, 0), axis=1) / count
    centered = values - mean[:, None]
    deviation = jnp.sqrt(jnp.sum(jnp.where(used, centered, 0) ** 2, axis=1) / count)
    flat = deviation < FLAT_CONTEXT
    scaled = centered / jnp.where(flat, 1.0, deviation)[:, None]
    if clip > 0:
        scaled = jnp.clip(scaled, -clip, clip)
    counts = mask & (index >= contexts[:, None] - 1) & ~flat[:, None]
    return Scaled(jnp.where(mask, scaled, 0), counts[:, :num_inputs].astype(jnp.float32))
