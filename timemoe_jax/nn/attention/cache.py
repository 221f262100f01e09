"""Attention from new positions to themselves and to those of a key/value cache.

A cache holds the keys and values of all layers, in arrays of a fixed size. The layers only read it;
the keys and values of new positions are written once, after the last layer. (If each layer wrote
its own, the compiler would copy the whole cache at every layer.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.nn.attention import kernels
from timemoe_jax.nn.attention.chunked import TILE_BYTES, scores, softmax_read


class KeyValues(NamedTuple):
    """Keys and values of a stretch of positions."""

    keys: Float[Array, "... B K T H"]
    values: Float[Array, "... B K T H"]


class CacheLayer(NamedTuple):
    """One layer of a cache, without a copy of it."""

    cache: KeyValues  # [L, B, K, S, H]
    layer: Int[Array, ""]
    filled: Int[Array, ""]  # how many of the S positions are
    mask: Bool[Array, "B S"]  # False where one must not be read


def write(cache: KeyValues, new: KeyValues, position: Int[Array, ""] | int) -> KeyValues:
    """Writes new keys and values [L, B, K, T, H] into a cache [L, B, K, S, H] at a position."""
    at = (0, 0, 0, position, 0)
    pairs = zip(cache, new, strict=True)
    return KeyValues(*(jax.lax.dynamic_update_slice(a, b.astype(a.dtype), at) for a, b in pairs))


def read(
    queries: Float[Array, "B N R H"],
    new: KeyValues,
    mask: Bool[Array, "B T"],
    past: CacheLayer | None,
) -> Float[Array, "B N R H"]:
    """Attention of the last R of T new positions to those up to their own, and to a cache.

    The mask is False where a new position must not be read; `past` is None where nothing came
    before. On a CPU a few heads are read at a time, so that their scores stay in the processor's
    cache.
    """
    batch, kv_heads, length, width = new.keys.shape
    wanted = queries.shape[2]
    size = length + (0 if past is None else past.mask.shape[1])
    causal = jnp.arange(length - wanted, length)[:, None] >= jnp.arange(length)
    rows = queries.reshape(batch, kv_heads, -1, width)
    series, heads = _tile(batch, kv_heads, 4 * rows.shape[2] * size)

    def read_tile(start: tuple[Array, Array]) -> Float[Array, "G C Q H"]:
        b, k = start

        def part(a: Array, first: tuple[Array, ...], last: int) -> Array:
            lead = (1,) * (len(first) - 2)
            sizes = (*lead, series, heads, *a.shape[len(first) : last])
            zeros = (0,) * (last - len(first))
            return jax.lax.dynamic_slice(a, (*first, *zeros), sizes).reshape(sizes[len(lead) :])

        keys, values = (part(a, (b, k), 4) for a in new)
        allowed = causal & jax.lax.dynamic_slice_in_dim(mask, b, series)[:, None]
        if past is not None:
            old = (part(a, (past.layer, b, k), 5) for a in past.cache)
            keys, values = (
                jnp.concatenate([before, after], axis=2)
                for before, after in zip(old, (keys, values), strict=True)
            )
            cached = jnp.arange(past.mask.shape[1]) < past.filled
            cached = cached & jax.lax.dynamic_slice_in_dim(past.mask, b, series)
            cached = jnp.broadcast_to(cached[:, None], (series, wanted, cached.shape[1]))
            allowed = jnp.concatenate([cached, allowed], axis=2)
        return softmax_read(scores(part(rows, (b, k), 4), keys, allowed), values)[0]

    starts = jnp.meshgrid(
        jnp.arange(0, batch, series), jnp.arange(0, kv_heads, heads), indexing="ij"
    )
    first_series, first_head = (a.reshape(-1) for a in starts)
    if first_series.size == 1:
        out = read_tile((first_series[0], first_head[0]))
    else:
        out = jax.lax.map(read_tile, (first_series, first_head))
        # Tiles of heads follow one another within those of series.
        out = out.reshape(batch // series, kv_heads // heads, series, heads, -1, width)
        out = out.swapaxes(1, 2)
    return out.astype(new.values.dtype).reshape(queries.shape)


def _tile(batch: int, kv_heads: int, bytes_of_head: int) -> tuple[int, int]:
    """How many series, and how many key/value heads of each, are read at a time."""
    if kernels.current_platform() != "cpu":
        return batch, kv_heads

    def most(count: int, fitting: int) -> int:
        return max((n for n in range(1, count + 1) if count % n == 0 and n <= fitting), default=1)

    heads = most(kv_heads, TILE_BYTES // bytes_of_head)
    if heads < kv_heads:
        return 1, heads
    return most(batch, TILE_BYTES // (bytes_of_head * kv_heads)), heads
