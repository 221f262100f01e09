"""Forecasting any horizon from heads of a few fixed ones (arXiv 2409.16040, Algorithm 1).

Repeat: take the largest head that is no longer than what remains, read it at the last position,
append its values, feed them back.
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from timemoe_jax.models.time_moe import Cache, TimeMoe


def horizon_plan(horizon: int, horizon_lengths: tuple[int, ...]) -> tuple[int, ...]:
    """The heads to read, one after the other.

    Where no head is short enough for what remains, the shortest is read and cut.

    Args:
      horizon: points to forecast, at least 1.
      horizon_lengths: those of the heads, increasing.
    """
    plan: list[int] = []
    remaining = horizon
    while remaining > 0:
        fitting = [p for p in horizon_lengths if p <= remaining]
        plan.append(fitting[-1] if fitting else horizon_lengths[0])
        remaining -= plan[-1]
    return tuple(plan)


def decode(
    model: TimeMoe, x: Float[Array, "B T"], mask: Bool[Array, "B T"], horizon: int
) -> Float[Array, "B H"]:
    """Forecasts with a key/value cache.

    Args:
      model: the model.
      x: contexts, normalised; not read where the mask is False.
      mask: False where a point is missing or padding; the last of each series must be True.
      horizon: points to forecast; static.

    Returns:
      float32 forecasts.
    """
    plan = horizon_plan(horizon, model.config.horizon_lengths)
    hidden, cache = model.prefill(x, mask, x.shape[1] + sum(plan[:-1]))
    block = model.head(hidden, plan[0])
    blocks = [block]
    # Steps of one kind run under one scan: 720 points are 12 steps, but 3 kinds to compile.
    for (_, predict), steps in itertools.groupby(itertools.pairwise(plan)):
        count = len(list(steps))

        def step(carry: tuple[Array, Cache], _: None, predict: int = predict) -> tuple:
            block, cache = carry
            hidden, cache = model.extend(block, cache)
            block = model.head(hidden, predict)
            return (block, cache), block

        if count == 1:
            (block, cache), _ = step((block, cache), None)
            blocks.append(block)
        else:
            more: Array
            (block, cache), more = jax.lax.scan(step, (block, cache), None, length=count)
            blocks.append(jnp.moveaxis(more, 0, 1).reshape(x.shape[0], -1))
    return jnp.concatenate(blocks, axis=1)[:, :horizon]


def decode_uncached(
    model: TimeMoe, x: Float[Array, "B T"], mask: Bool[Array, "B T"], horizon: int
) -> Float[Array, "B H"]:
    """As `decode`, reading the whole series anew at every step: the reference for it."""
    context = x.shape[1]
    for predict in horizon_plan(horizon, model.config.horizon_lengths):
        values = model(x, mask).predictions[predict][:, -1]
        x = jnp.concatenate([x, values.astype(x.dtype)], axis=1)
        mask = jnp.pad(mask, ((0, 0), (0, predict)), constant_values=True)
    return x[:, context : context + horizon].astype(jnp.float32)
