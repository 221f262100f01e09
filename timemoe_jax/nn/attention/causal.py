"""Causal self-attention with rotary positions, grouped key/value heads and a key/value cache.

Heads are laid out [B, N, T, H] throughout: the score products then run over contiguous blocks,
which on a CPU is worth a factor of two or more over [B, T, N, H].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.errors import ConfigError
from timemoe_jax.nn.attention import kernels
from timemoe_jax.nn.attention.chunked import (
    TILE_BYTES,
    Keys,
    Mask,
    Queries,
    Segments,
    allowed_reads,
    chunked,
    scores,
    softmax_read,
)

QUERY_CHUNK = 256
TILE_CHUNK = 128
LONG = 1024  # positions from which on a tile's chunks are of QUERY_CHUNK
KERNELS = {"gpu": "cudnn", "tpu": "splash"}  # by platform, what "auto" prefers
# Shorter than this the kernels would mostly compute padding, and all scores fit in memory anyway.
MIN_KERNEL_LENGTH = 128


def rotary(
    x: Float[Array, "B N T H"], positions: Int[Array, " T"], theta: float
) -> Float[Array, "B N T H"]:
    """Rotates pairs (i, i + H/2) by position * theta^(-2i/H) (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(
    queries: Float[Array, "B N T H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    allowed: Bool[Array, "#B T S"],
) -> Float[Array, "B N T H"]:
    """Scaled dot-product attention; N / K query heads share a key/value head.

    A query reads the positions that `allowed` says; one that may read none gets a finite result
    that means nothing.
    """
    rows = queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[3])
    read, _ = softmax_read(scores(rows, keys, allowed), values)
    return read.astype(values.dtype).reshape(queries.shape)


def causal_attention(
    queries: Queries,
    keys: Keys,
    values: Keys,
    mask: Mask = None,
    implementation: str = "auto",
    segments: Segments = None,
) -> Queries:
    """Attention of each position to itself and those before it.

    Args:
      queries: one per head and position.
      keys: one per key/value head and position.
      values: likewise.
      mask: False where a position must not be read: missing or padded; None reads all.
      implementation: one of

        - "plain": all scores at once;
        - "chunked": a chunk of queries at a time, against the keys up to its end: half the work
          and a fraction of the memory, see `nn.attention.chunked`;
        - "tiled": the same, a few heads at a time, so that the scores stay in the processor's
          cache;
        - "cudnn": the flash attention of a GPU; elsewhere it is "plain" by another name. It knows
          no segments: "chunked" takes its place where there are any;
        - "splash": the flash attention of a TPU; elsewhere it is interpreted, for tests;
        - "auto": see `choose`.
      segments: a position reads those of its own segment alone, so that several series can stand
        one after the other; None is one segment.

    Raises:
      ConfigError: the implementation is not known, or cannot compute this on this device.
    """
    kind = (np.dtype(queries.dtype), queries.shape[3], queries.shape[2], mask is not None)
    segmented = segments is not None
    name = resolve(implementation, *kind, kernels.devices_to_split_over(), segmented)
    _log(name, *kind, segmented)
    return IMPLEMENTATIONS[name](queries, keys, values, mask, segments)


def choose(
    platform: str,
    dtype: np.dtype,
    head_dim: int,
    length: int,
    masked: bool,
    devices: int,
    segmented: bool = False,
) -> str:
    """The implementation that "auto" stands for on a `kernels.kernel_platform`.

    "cudnn" on a GPU and "splash" on a TPU where they can compute this and it is long enough to be
    worth it, "tiled" on a CPU, else "chunked". The compiler cannot split the kernel of a TPU over
    several devices, and the kernel of a GPU knows no segments.
    """
    if platform == "cpu":
        return "tiled"
    name = KERNELS.get(platform, "chunked")
    refused = kernels.refusal(name, platform, dtype, head_dim, masked) is not None
    unable = (name == "splash" and devices > 1) or (name == "cudnn" and segmented)
    return "chunked" if refused or unable or length < MIN_KERNEL_LENGTH else name


def resolve(
    implementation: str,
    dtype: str | np.dtype,
    head_dim: int,
    length: int,
    masked: bool = True,
    devices: int = 1,
    segmented: bool = False,
) -> str:
    """The implementation that a name of `causal_attention` stands for on this device.

    A name that is not known, or that cannot compute this on this device, is a ConfigError.
    """
    known = ("auto", *IMPLEMENTATIONS)
    if implementation not in known:
        raise ConfigError(
            f"implementation must be one of {', '.join(known)}, but is {implementation!r}"
        )
    platform, dtype = kernels.current_platform(), np.dtype(dtype)
    if implementation == "auto":
        return choose(platform, dtype, head_dim, length, masked, devices, segmented)
    if reason := kernels.refusal(implementation, platform, dtype, head_dim, masked):
        raise ConfigError(
            f"implementation {implementation!r} {reason}; 'auto' or 'chunked' would do"
        )
    return "chunked" if segmented and implementation == "cudnn" else implementation


@functools.cache
def _log(name: str, *_: Any) -> None:
    """Logs which implementation runs: once for each kind of input, however often it is traced."""
    logging.info("attention: %s", name)


def _tiled(queries: Queries, keys: Keys, values: Keys, mask: Mask, segments: Segments) -> Queries:
    """Causal attention, a few heads at a time: as many as keep a chunk's scores in the cache."""
    batch, heads, length, size = queries.shape
    kv_heads = keys.shape[1]
    shared = heads // kv_heads
    # Longer chunks are a little faster, where one head's scores fill a tile anyway.
    chunk = min(length, TILE_CHUNK if length <= LONG else QUERY_CHUNK)
    fitting = TILE_BYTES // (4 * shared * chunk * length)
    # A tile has this many key/value heads, of one series or of several, with their query heads.
    pairs = batch * kv_heads
    tile = max((g for g in range(1, pairs + 1) if pairs % g == 0 and g <= fitting), default=1)

    def one(part: tuple[Any, ...]) -> Float[Array, "G N T H"]:
        return chunked(*part, chunk)

    each = jax.tree.map(lambda a: jnp.repeat(a, kv_heads, axis=0), (mask, segments))
    parts = (
        queries.reshape(pairs, shared, length, size),
        keys.reshape(pairs, 1, length, size),
        values.reshape(pairs, 1, length, size),
        *each,
    )
    if tile == pairs:  # a loop of one turn would only take longer to compile
        return one(parts).reshape(queries.shape)
    parts = jax.tree.map(lambda a: a.reshape(-1, tile, *a.shape[1:]), parts)
    return jax.lax.map(one, parts).reshape(queries.shape)


# Functions of queries, keys, values, mask and segments.
IMPLEMENTATIONS: dict[str, Callable[..., Queries]] = {
    "plain": lambda q, k, v, mask, segments: attend(
        q, k, v, allowed_reads(0, q.shape[2], mask, segments)
    ),
    "chunked": lambda *arguments: chunked(*arguments, QUERY_CHUNK),
    "tiled": _tiled,
    # `resolve` puts "chunked" in its place where there are segments.
    "cudnn": lambda q, k, v, mask, _: kernels.cudnn_attention(q, k, v, mask),
    "splash": kernels.splash_attention,
}
