"""Forecasting with a key/value cache (arXiv 2409.16040, Algorithm 1).

Only the output at the last position is ever read, so the last layer computes no other.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.models.decoding import Decoded, horizon_plan
from timemoe_jax.models.time_moe.model import Block, TimeMoe
from timemoe_jax.models.time_moe.sharding import RULES
from timemoe_jax.nn.attention.cache import CacheLayer, KeyValues, write
from timemoe_jax.nn.experts.leaders import leaders_of, points_since_start
from timemoe_jax.runtime import partitioning


class Cache(NamedTuple):
    """Keys and values of the positions seen so far, in arrays of a fixed size S."""

    layers: KeyValues  # [L, B, K, S, H]
    mask: Bool[Array, "B S"]  # False where a position must not be read
    position: Int[Array, ""]  # how many are filled
    led: "Led | None" = None  # of a model whose points share their choices


class Led(NamedTuple):
    """What points to come must know of the leaders before them.

    The points of a series are counted from its first one, whatever a cache holds: it is never cut.
    A context that is cut and read anew begins a count of its own.
    """

    logits: Float[Array, "L B E"]  # of each layer's last leader
    points: Int[Array, " B"]  # of each series so far


# What a layer adds to a cache: keys and values, and the logits of its last leader if it has any.
_New = tuple[KeyValues, Float[Array, "B E"] | None]


def decode(
    model: TimeMoe, x: Float[Array, "B T"], mask: Bool[Array, "B T"], horizon: int
) -> Decoded:
    """Forecasts with a key/value cache after contexts whose last points are observed.

    Contexts are normalized, and not read where the mask is False; the horizon is static. The
    quantiles of a later block are those given that the blocks before it came as forecast.
    """
    config = model.config
    if config.copy_lags:
        return _decode_anew(model, x, mask, horizon)
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
    return _in_a_row(blocks, horizon)


def _decode_anew(
    model: TimeMoe, x: Float[Array, "B T"], mask: Bool[Array, "B T"], horizon: int
) -> Decoded:
    """As `decode`, without a cache: copies come from all points before, given or forecast."""
    config = model.config
    blocks = []
    for predict in horizon_plan(horizon, config.horizon_lengths, config.forecast_plan):
        hidden, _ = prefill(model, x, mask, x.shape[1])
        blocks.append(_heads(model, hidden, predict))
        point = blocks[-1].point
        x = jnp.concatenate([x, point.astype(x.dtype)], axis=1)
        mask = jnp.concatenate([mask, jnp.ones(point.shape, bool)], axis=1)
    return _in_a_row(blocks, horizon)


def _in_a_row(blocks: Sequence[Decoded], horizon: int) -> Decoded:
    """One forecast of the blocks of several reads of heads, cut at the horizon."""
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

    Returns what the heads read at the last position, and the cache.
    """
    tokens, held, found = model.tokens(x, mask)
    observed = mask if held is None else held
    since = points_since_start(observed) if model.config.segments else None

    def read(
        block: Block, h: Float[Array, "B T D"], index: Int[Array, ""]
    ) -> tuple[Float[Array, "B T D"], _New]:
        h, new, logits, _ = block(h, observed, None, _leaders(model, since, index))
        return h, (new, _last(logits, since))

    def read_last(block: Block, h: Float[Array, "B T D"]) -> tuple[Array, _New]:
        if since is not None:  # the last token's leader is another, whose output is needed
            return read(block, h, _last_layer(model))
        h, new, _ = block.extend(h, observed, 0, last=True)
        return h, (new, None)

    hidden, (new, logits) = _through_layers(model, tokens, read, read_last)
    hidden = model.with_copies(hidden[:, None], found, last=True)[:, 0]
    room = (size - x.shape[1]) // model.config.patch_size
    layers = jax.tree.map(lambda a: jnp.pad(a, ((0, 0),) * 3 + ((0, room), (0, 0))), new)
    observed = jnp.pad(observed, ((0, 0), (0, room)), constant_values=True)
    led = None if since is None else Led(logits, since[:, -1] + 1)
    return hidden, Cache(layers, observed, jnp.asarray(tokens.shape[1], jnp.int32), led)


def extend(
    model: TimeMoe, x: Float[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads more points, whole patches, after those in the cache; returns as `prefill` does."""
    tokens, _, _ = model.tokens(x, None)
    observed = jnp.ones(tokens.shape[:2], bool)
    led = cache.led
    since = None if led is None else led.points[:, None] + jnp.arange(tokens.shape[1])

    def read(
        block: Block, h: Float[Array, "B T D"], index: Int[Array, ""], last: bool = False
    ) -> tuple[Array, _New]:
        past = CacheLayer(cache.layers, index, cache.position, cache.mask)
        before = None if led is None else led.logits[index]
        leaders = _leaders(model, since, index)
        h, new, logits = block.extend(h, observed, cache.position, past, last, leaders, before)
        return h, (new, _last(logits, since))

    def read_last(block: Block, h: Float[Array, "B T D"]) -> tuple[Array, _New]:
        return read(block, h, _last_layer(model), last=led is None)

    hidden, (new, logits) = _through_layers(model, tokens, read, read_last)
    layers = write(cache.layers, new, cache.position)
    if led is not None:
        led = Led(logits, led.points + tokens.shape[1])
    return hidden, Cache(layers, cache.mask, cache.position + tokens.shape[1], led)


def _leaders(
    model: TimeMoe, since: Int[Array, "B T"] | None, index: Int[Array, ""]
) -> Int[Array, "B T"] | None:
    """The leaders of new tokens in a layer, of a model whose tokens have any."""
    if since is None:
        return None
    return leaders_of(since, jnp.array(model.config.segments, jnp.int32)[index])


def _last(logits: Float[Array, "B T E"] | None, since: Any) -> Float[Array, "B E"] | None:
    """The logits that the next tokens of the last segment share."""
    return None if since is None or logits is None else logits[:, -1]


def _last_layer(model: TimeMoe) -> Int[Array, ""]:
    return jnp.asarray(model.config.num_hidden_layers - 1, jnp.int32)


def _through_layers(
    model: TimeMoe,
    tokens: Float[Array, "B T D"],
    read: Callable[..., tuple[Array, "_New"]],
    read_last: Callable[..., tuple[Array, "_New"]],
) -> tuple[Float[Array, "B D"], Any]:
    """Runs new tokens through all layers, the last one for the last token alone.

    Returns the hidden state of the last token, and of all layers the keys and values of all tokens,
    [L, B, K, T, H], and the logits of the last leader if there are any, [L, B, E].
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

    def step(h: Float[Array, "B T D"], index: Int[Array, ""]) -> tuple[Array, "_New"]:
        return read(block_of(index), h, index)

    h, new = jax.lax.scan(step, tokens, jnp.arange(last))
    h, newest = read_last(block_of(last), h)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), new, newest)
    return model.norm(h[:, -1]), joined
