"""Attention from new positions to those of a key/value cache.

A cache holds the keys and values of all layers, in arrays of a fixed size, and is carried through
loops and written in place. Nothing here makes a copy of it, or of one layer of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.nn import attention_kernels as kernels
from timemoe_jax.nn.attention_chunks import TILE_BYTES, scores, softmax_read


class KeyValues(NamedTuple):
    """Keys and values of a stretch of positions."""

    keys: Float[Array, "... B K T H"]
    values: Float[Array, "... B K T H"]


def write(
    cache: KeyValues, new: KeyValues, layer: Int[Array, ""] | int, position: Int[Array, ""] | int
) -> KeyValues:
    """Writes the keys and values of new positions of a layer.

    Args:
      cache: [L, B, K, S, H].
      new: [B, K, T, H].
      layer: which of the L.
      position: of the first of the T.
    """
    at = (layer, 0, 0, position, 0)
    written = (
        jax.lax.dynamic_update_slice(a, part[None].astype(a.dtype), at)
        for a, part in zip(cache, new, strict=True)
    )
    return KeyValues(*written)


def read(
    queries: Float[Array, "B N T H"],
    cache: KeyValues,
    layer: Int[Array, ""] | int,
    positions: Int[Array, " T"],
    mask: Bool[Array, "B S"],
) -> Float[Array, "B N T H"]:
    """Attention of some positions to a layer of a cache, up to their own.

    On a CPU a few heads are read at a time, so that their scores stay in the processor's cache.

    Args:
      queries: of the positions.
      cache: [L, B, K, S, H], the positions themselves already in it.
      layer: which of the L.
      positions: of the queries.
      mask: False where a position of the cache must not be read.
    """
    batch, kv_heads, size, width = cache.keys.shape[1:]
    allowed = positions[:, None] >= jnp.arange(size)
    pairs = batch * kv_heads
    rows = queries.reshape(pairs, 1, -1, width)
    # A tile is so many key/value heads, of one series or of several, with their query heads.
    tile = pairs
    if kernels.current_platform() == "cpu":
        fitting = TILE_BYTES // (4 * rows.shape[2] * size)
        tile = max((g for g in range(1, pairs + 1) if pairs % g == 0 and g <= fitting), default=1)
    by_pair = KeyValues(*(a.reshape(a.shape[0], pairs, size, width) for a in cache))
    mask = jnp.repeat(mask, kv_heads, axis=0)

    def one(part: tuple[Array, Array, Array]) -> Float[Array, "G 1 R H"]:
        start, rows, mask = part
        keys, values = (
            jax.lax.dynamic_slice(a, (layer, start, 0, 0), (1, tile, size, width))[0][:, None]
            for a in by_pair
        )
        return softmax_read(scores(rows, keys, allowed & mask[:, None]), values)[0]

    if tile == pairs:
        out = one((jnp.zeros((), jnp.int32), rows, mask))
    else:
        starts = jnp.arange(0, pairs, tile)
        tiles = (starts, rows.reshape(-1, tile, *rows.shape[1:]), mask.reshape(-1, tile, size))
        out = jax.lax.map(one, tiles)
    return out.astype(cache.values.dtype).reshape(queries.shape)
