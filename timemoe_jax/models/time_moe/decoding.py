"""Forecasting with a key/value cache (arXiv 2409.16040, Algorithm 1).

Only the output at the last position is ever read, so the last layer computes no other.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.models.decoding import Decoded, horizon_plan
from timemoe_jax.models.time_moe.model import Block, TimeMoe
from timemoe_jax.models.time_moe.sharding import RULES
from timemoe_jax.nn.attention.cache import CacheLayer, KeyValues, write
from timemoe_jax.runtime import partitioning


class Cache(NamedTuple):
    """Keys and values of the positions seen so far, in arrays of a fixed size S."""

    layers: KeyValues  # [L, B, K, S, H]
    mask: Bool[Array, "B S"]  # False where a position must not be read
    position: Int[Array, ""]  # how many are filled


def decode(
    model: TimeMoe, x: Float[Array, "B T"], mask: Bool[Array, "B T"], horizon: int
) -> Decoded:
    """Forecasts with a key/value cache after contexts whose last points are observed.

    Contexts are normalized, and not read where the mask is False; the horizon is static. The
    quantiles of a later block are those given that the blocks before it came as forecast.
    """
    config = model.config
    plan = horizon_plan(horizon, config.horizon_lengths, config.forecast_plan)
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
    if quantiles is not None and not model.config.point_heads:
        return Decoded(quantiles[..., levels.index(0.5)], quantiles)
    return Decoded(model.head(hidden, predict), quantiles)


def prefill(
    model: TimeMoe, x: Float[Array, "B T"], mask: Bool[Array, "B T"], size: int
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads a context into a cache of `size` points, at least T and by whole patches more.

    Returns the hidden state of the last position, and the cache.
    """
    tokens, held = model.tokens(x, mask)
    observed = mask if held is None else held

    def read(
        block: Block, h: Float[Array, "B T D"], index: Int[Array, ""]
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        h, new, *_ = block(h, observed)
        return h, new

    def read_last(block: Block, h: Float[Array, "B T D"]) -> tuple[Array, KeyValues]:
        return block.extend(h, observed, 0, last=True)

    hidden, new = _through_layers(model, tokens, read, read_last)
    room = (size - x.shape[1]) // model.config.patch_size
    layers = jax.tree.map(lambda a: jnp.pad(a, ((0, 0),) * 3 + ((0, room), (0, 0))), new)
    observed = jnp.pad(observed, ((0, 0), (0, room)), constant_values=True)
    return hidden, Cache(layers, observed, jnp.asarray(tokens.shape[1], jnp.int32))


def extend(
    model: TimeMoe, x: Float[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads more points, whole patches, after those in the cache; returns as `prefill` does."""
    tokens, _ = model.tokens(x, None)
    observed = jnp.ones(tokens.shape[:2], bool)

    def read(
        block: Block, h: Float[Array, "B T D"], index: Int[Array, ""], last: bool = False
    ) -> tuple[Array, KeyValues]:
        past = CacheLayer(cache.layers, index, cache.position, cache.mask)
        return block.extend(h, observed, cache.position, past, last)

    def read_last(block: Block, h: Float[Array, "B T D"]) -> tuple[Array, KeyValues]:
        index = jnp.asarray(model.config.num_hidden_layers - 1, jnp.int32)
        return read(block, h, index, last=True)

    hidden, new = _through_layers(model, tokens, read, read_last)
    layers = write(cache.layers, new, cache.position)
    return hidden, Cache(layers, cache.mask, cache.position + tokens.shape[1])


def _through_layers(
    model: TimeMoe,
    tokens: Float[Array, "B T D"],
    read: Callable[..., tuple[Array, KeyValues]],
    read_last: Callable[..., tuple[Array, KeyValues]],
) -> tuple[Float[Array, "B D"], KeyValues]:
    """Runs new tokens through all layers, the last one for the last token alone.

    Returns the hidden state of the last token, and the keys and values of all, [L, B, K, T, H].
    """
    graph, state = nnx.split(model.blocks)
    last = model.config.num_hidden_layers - 1

    def block_of(index: Int[Array, ""] | int) -> Block:
        def one(stacked: Array) -> Array:
            if isinstance(index, int):
                return stacked[index]
            return jax.lax.dynamic_index_in_dim(
                stacked, index, 0, keepdims=False, allow_negative_indices=False
            )

        weights = partitioning.gather_fsdp(jax.tree.map(one, state), RULES, "blocks.")
        return nnx.merge(graph, weights)

    def step(h: Float[Array, "B T D"], index: Int[Array, ""]) -> tuple[Array, KeyValues]:
        return read(block_of(index), h, index)

    h, new = jax.lax.scan(step, tokens, jnp.arange(last))
    h, newest = read_last(block_of(last), h)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), new, newest)
    return model.norm(h[:, -1]), joined
