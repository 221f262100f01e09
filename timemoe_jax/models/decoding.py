"""Forecasting any horizon from heads of a few fixed ones (arXiv 2409.16040, Algorithm 1).

Repeat: take the largest head that is no longer than what remains, read it at the last position,
append its values, feed them back. Only the last position's output is ever read, so that the last
layer computes no other.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax import partitioning
from timemoe_jax.models.time_moe import Block, TimeMoe
from timemoe_jax.nn import attention_cache
from timemoe_jax.nn.attention_cache import KeyValues


class Cache(NamedTuple):
    """Keys and values of the positions seen so far, in arrays of a fixed size S."""

    layers: KeyValues  # [L, B, K, S, H]
    mask: Bool[Array, "B S"]  # False where a position must not be read
    position: Int[Array, ""]  # how many are filled


class Decoded(NamedTuple):
    """A forecast, float32."""

    point: Float[Array, "B H"]
    quantiles: Float[Array, "B H Q"] | None  # None of a model without heads for them


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
) -> Decoded:
    """Forecasts with a key/value cache.

    The quantiles of a later block are those given that the blocks before it came as forecast.

    Args:
      model: the model.
      x: contexts, normalised; not read where the mask is False.
      mask: False where a point is missing or padding; the last of each series must be True.
      horizon: points to forecast; static.
    """
    plan = horizon_plan(horizon, model.config.horizon_lengths)
    hidden, cache = prefill(model, x, mask, x.shape[1] + sum(plan[:-1]))
    blocks = [_heads(model, hidden, plan[0])]
    point = blocks[0].point
    # Steps of one kind run under one scan: 720 points are 12 steps, but 3 kinds to compile.
    for (_, predict), steps in itertools.groupby(itertools.pairwise(plan)):
        count = len(list(steps))

        def step(carry: tuple[Array, Cache], _: None, predict: int = predict) -> tuple:
            point, cache = carry
            hidden, cache = extend(model, point, cache)
            block = _heads(model, hidden, predict)
            return (block.point, cache), block

        if count == 1:
            (point, cache), block = step((point, cache), None)
            blocks.append(block)
        else:
            more: Decoded
            (point, cache), more = jax.lax.scan(step, (point, cache), None, length=count)
            blocks.append(jax.tree.map(_join, more))
    joined: Decoded = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *blocks)
    return jax.tree.map(lambda a: a[:, :horizon], joined)


def _join(steps: Float[Array, "steps B P *Q"]) -> Float[Array, "B R *Q"]:
    """Blocks of several steps, one after the other."""
    return jnp.moveaxis(steps, 0, 1).reshape(steps.shape[1], -1, *steps.shape[3:])


def _heads(model: TimeMoe, hidden: Float[Array, "B D"], predict: int) -> Decoded:
    levels = model.config.quantile_levels
    quantiles = model.quantile_head(hidden, predict) if levels else None
    return Decoded(model.head(hidden, predict), quantiles)


def prefill(
    model: TimeMoe, x: Float[Array, "B T"], mask: Bool[Array, "B T"], size: int
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads a context, and leaves room to go on.

    Args:
      model: the model.
      x: the context.
      mask: False where a point is missing or padding.
      size: positions that the cache shall hold, at least T.

    Returns:
      the hidden state of the last position, and the cache.
    """
    config = model.config
    shape = (config.num_hidden_layers, len(x), config.num_key_value_heads, size, config.head_dim)
    empty = partitioning.constrain(
        jnp.zeros(shape, config.dtype), None, partitioning.BATCH, "tensor"
    )
    room = jnp.pad(mask, ((0, 0), (0, size - x.shape[1])), constant_values=True)
    cache = Cache(KeyValues(empty, empty), room, jnp.zeros((), jnp.int32))

    def read(
        block: Block, h: Float[Array, "B T D"], layers: KeyValues, index: Int[Array, ""]
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        h, new, *_ = block(h, mask)
        return h, attention_cache.write(layers, new, index, 0)

    return _through_layers(model, jnp.where(mask, x, 0), cache, read)


def extend(
    model: TimeMoe, x: Float[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads more points after those in the cache; returns as `prefill` does."""

    def read(
        block: Block, h: Float[Array, "B T D"], layers: KeyValues, index: Int[Array, ""]
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        return block.extend(h, layers, index, cache.position, cache.mask)

    return _through_layers(model, x, cache, read)


def _through_layers(
    model: TimeMoe,
    x: Float[Array, "B T"],
    cache: Cache,
    read: Callable[..., tuple[Float[Array, "B T D"], KeyValues]],
) -> tuple[Float[Array, "B D"], Cache]:
    """Runs new points through all layers, the last one for the last point alone."""
    graph, state = nnx.split(model.blocks)

    def block_of(index: Int[Array, ""] | int) -> Block:
        def one(stacked: Array) -> Array:
            return jax.lax.dynamic_index_in_dim(stacked, index, 0, keepdims=False)

        weights = partitioning.gather_fsdp(jax.tree.map(one, state), "blocks.")
        return nnx.merge(graph, weights)

    def step(carry: tuple, index: Int[Array, ""]) -> tuple[tuple, None]:
        # The whole cache is carried and updated in place: as scanned inputs and outputs it would
        # be copied at every step.
        return read(block_of(index), *carry, index), None

    last = model.config.num_hidden_layers - 1
    carry = (model.embed(x), cache.layers)
    (h, layers), _ = jax.lax.scan(step, carry, jnp.arange(last))
    position = cache.position
    h, layers = block_of(last).extend(h, layers, last, position, cache.mask, last=True)
    return model.norm(h[:, -1]), Cache(layers, cache.mask, position + x.shape[1])


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
