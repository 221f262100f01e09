"""Long contexts read at two rates: their end point by point, and all of it by means of several.

A model reads as many points as it was trained on. A context of several times as many says more of
its days, its weeks and its level than its end does, and is no longer than that at a slower rate.
What is forecast of the means moves what is forecast of the points towards itself, as forecasts of
temporal hierarchies are reconciled (Athanasopoulos et al., Eur. J. Oper. Res. 262, 2017).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from timemoe_jax.models.decoding import Decoded

SLOW = 0.5  # the weight of the slower rate
LEAST = 3  # times what is read point by point: a shorter context is not read at the slower rate
_FLAT = 1e-5  # a deviation, beside that of the whole context, of what is not to be scaled

Decode = Callable[[Float[Array, "B T"], Bool[Array, "B T"], int], Decoded]


def decode_at_rates(
    decode: Decode,
    x: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    horizon: int,
    near: int,
    rate: int,
) -> Decoded:
    """A forecast from the last `near` points, and from the means of each `rate` points of all.

    Args:
      decode: forecasts a horizon after contexts whose last points are observed.
      x: normalized contexts.
      mask: False where a point is missing, or before a context begins.
      horizon: steps to forecast.
      near: points that are read one by one. Contexts of fewer than `LEAST` times as many have the
        forecast of these alone.
      rate: points of a mean, which is that of those that are observed.
    """
    if rate == 1 or x.shape[1] <= near:
        return decode(x, mask, horizon)
    fine = _standardized(decode, x[:, -near:], mask[:, -near:], horizon)
    if x.shape[1] < LEAST * near:
        return fine
    assert fine.quantiles is not None
    begins = jnp.argmax(mask, axis=1)[:, None]
    weight = jnp.where(x.shape[1] - begins >= LEAST * near, SLOW, 0.0)
    steps = -(-horizon // rate)
    slow = _standardized(decode, *_means(x, mask, rate), steps)
    assert slow.quantiles is not None
    moved = jnp.repeat(slow.point - _means_of_steps(fine.point, rate), rate, axis=1)[:, :horizon]
    point = fine.point + weight * moved
    of_slow = jnp.repeat(slow.quantiles - slow.point[..., None], rate, axis=1)[:, :horizon]
    spread = fine.quantiles - fine.point[..., None]
    spread += weight[..., None] * (of_slow - spread)
    return Decoded(point, point[..., None] + spread)


def _standardized(
    decode: Decode, x: Float[Array, "B T"], mask: Bool[Array, "B T"], horizon: int
) -> Decoded:
    """A forecast after contexts that are z-scored first, in their own units again."""
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(mask, x, 0), axis=1, keepdims=True) / count
    squares = jnp.sum(jnp.where(mask, jnp.square(x - mean), 0), axis=1, keepdims=True)
    deviation = jnp.sqrt(squares / count)
    deviation = jnp.where(deviation > _FLAT, deviation, 1.0)
    said = decode(jnp.where(mask, (x - mean) / deviation, 0), mask, horizon)
    quantiles = said.quantiles
    if quantiles is not None:
        quantiles = quantiles * deviation[..., None] + mean[..., None]
    return Decoded(said.point * deviation + mean, quantiles)


def _means(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], rate: int
) -> tuple[Float[Array, "B S"], Bool[Array, "B S"]]:
    """Of each `rate` points, the last of which is the last of the context, the observed ones."""
    missing = -x.shape[1] % rate
    x, mask = (jnp.pad(a, ((0, 0), (missing, 0))) for a in (jnp.where(mask, x, 0), mask))
    total, count = (jnp.sum(a.reshape(len(a), -1, rate), axis=2) for a in (x, mask))
    return total / jnp.maximum(count, 1), count > 0


def _means_of_steps(point: Float[Array, "B H"], rate: int) -> Float[Array, "B S"]:
    """Of each `rate` steps, and of those that are left at the end."""
    missing = -point.shape[1] % rate
    left = jnp.full((len(point), missing), jnp.nan, point.dtype)
    whole = jnp.concatenate([point, left], axis=1)
    return jnp.nanmean(whole.reshape(len(point), -1, rate), axis=2)
