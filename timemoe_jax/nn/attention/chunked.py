"""Causal attention a chunk of queries at a time, with a backward pass of its own.

Each chunk meets the keys up to its end: half the products of the plain form, and never more scores
at once than chunk x length. The forward pass keeps the output and, per query, the logarithm of the
softmax's denominator; the backward pass computes the scores again from those (arXiv 2205.14135,
algorithm 4, with the loop over queries outside). It is written so that no product has a large left
operand to transpose, for which a CPU needs three times as long: the gradients of keys and values
are added up as [H, S], each the product of a transposed [H, Q] with [Q, S].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.runtime import partitioning

# Of all implementations: one query per head and position, one key and value per key/value head and
# position; a mask that is False where a position must not be read (None reads all); segments, of
# which each position reads its own alone (None is one segment).
Queries = Float[Array, "B N T H"]
Keys = Float[Array, "B K T H"]
Mask = Bool[Array, "B T"] | None
Segments = Int[Array, "B T"] | None

TILE_BYTES = 2**20  # of float32 scores, about what a core's caches hold
FORBIDDEN = -1e30  # added to a score: its weight is exactly 0 beside any other


def scores(
    queries: Float[Array, "B K Q H"],
    keys: Float[Array, "B K S H"],
    allowed: Bool[Array, "#B T S"],
) -> Float[Array, "B K Q S"]:
    """Scaled scores in float32; those that are not allowed are too low to have a weight.

    The queries of a key/value head are those of its query heads one after the other: Q = heads * T.
    """
    batch, kv_heads, rows, size = queries.shape
    length = allowed.shape[-2]
    raw = jnp.einsum("bkqh,bksh->bkqs", queries, keys, preferred_element_type=jnp.float32)
    by_head = raw.reshape(batch, kv_heads, rows // length, length, -1)
    by_head = by_head * size**-0.5 + jnp.where(allowed, 0.0, FORBIDDEN)[:, None, None]
    return by_head.reshape(raw.shape)


def softmax_read(
    score: Float[Array, "B K Q S"], values: Float[Array, "B K S H"]
) -> tuple[Float[Array, "B K Q H"], Float[Array, "B K Q 1"]]:
    """The values weighted by a softmax, float32, and the logarithm of its denominator.

    The division comes after the product with the values: over [Q, H] instead of [Q, S].
    """
    largest = jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
    weights = jnp.exp(score - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    read = jnp.einsum(
        "bkqs,bksh->bkqh",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    return read / total, largest + jnp.log(total)


def allowed_reads(start: int, stop: int, mask: Mask, segments: Segments) -> Bool[Array, "#B Q S"]:
    """Which of the first `stop` positions each of the queries `start` to `stop` may read."""
    allowed = (jnp.arange(start, stop)[:, None] >= jnp.arange(stop))[None]
    if mask is not None:
        allowed = allowed & mask[:, None, :stop]
    if segments is not None:
        allowed = allowed & (segments[:, start:stop, None] == segments[:, None, :stop])
    return allowed


def _chunks(length: int, chunk: int) -> list[tuple[int, int]]:
    return [(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _rows(a: Float[Array, "B N T H"], kv_heads: int, start: int, stop: int) -> Array:
    """A chunk of positions, [B, K, N / K * Q, H]."""
    part = a[:, :, start:stop]
    return part.reshape(a.shape[0], kv_heads, -1, a.shape[3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def chunked(
    queries: Queries, keys: Keys, values: Keys, mask: Mask, segments: Segments, chunk: int
) -> Queries:
    """`causal_attention` in a static loop over chunks of so many queries."""
    return _forward(queries, keys, values, mask, segments, chunk)[0]


def _forward(
    queries: Array, keys: Array, values: Array, mask: Any, segments: Any, chunk: int
) -> Any:
    kv_heads, outputs, denominators = keys.shape[1], [], []
    for start, stop in _chunks(queries.shape[2], chunk):
        rows = _rows(queries, kv_heads, start, stop)
        score = scores(rows, keys[:, :, :stop], allowed_reads(start, stop, mask, segments))
        read, denominator = softmax_read(score, values[:, :, :stop])
        by_head = (*queries.shape[:2], stop - start, -1)
        outputs.append(read.astype(queries.dtype).reshape(by_head))
        denominators.append(denominator.reshape(by_head))
    out = jnp.concatenate(outputs, axis=2)
    log_denominators = jnp.concatenate(denominators, axis=2)
    return out, (queries, keys, values, mask, segments, out, log_denominators)


def _backward(chunk: int, residuals: Any, d_out: Float[Array, "B N T H"]) -> Any:
    """Computes, with P = exp(S - log denominator) and row sums r = <dO, O>,

    dV = P^T dO,  dS = P * (dO V^T - r),  dQ = dS K / sqrt(H),  dK = dS^T Q / sqrt(H).
    """
    queries, keys, values, mask, segments, out, denominators = residuals
    (batch, kv_heads, length, size), dtype = keys.shape, queries.dtype
    row_sums = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    zeros = partitioning.vary_like(jnp.zeros((batch, kv_heads, size, length)), queries)
    d_keys, d_values, d_queries = zeros, zeros, []
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    for start, stop in _chunks(length, chunk):
        rows, d_rows, denominator, row_sum = (
            _rows(a, kv_heads, start, stop) for a in (queries, d_out, denominators, row_sums)
        )
        read_keys, read_values = keys[:, :, :stop], values[:, :, :stop]
        allowed = allowed_reads(start, stop, mask, segments)
        weights = jnp.exp(scores(rows, read_keys, allowed) - denominator)
        d_weights = jnp.einsum(
            "bkqh,bksh->bkqs", d_rows, read_values, preferred_element_type=jnp.float32
        )
        d_scores = (weights * (d_weights - row_sum) * size**-0.5).astype(dtype)
        d_rows_t, rows_t = jnp.swapaxes(d_rows, 2, 3), jnp.swapaxes(rows, 2, 3)
        d_values = d_values.at[..., :stop].add(product(d_rows_t, weights.astype(dtype)))
        d_keys = d_keys.at[..., :stop].add(product(rows_t, d_scores))
        d_part = product(d_scores, read_keys).astype(dtype)
        d_queries.append(d_part.reshape(*queries.shape[:2], stop - start, size))
    by_position = (jnp.swapaxes(d, 2, 3).astype(dtype) for d in (d_keys, d_values))
    no_gradients = (
        None if a is None else np.zeros(a.shape, jax.dtypes.float0) for a in (mask, segments)
    )
    return jnp.concatenate(d_queries, axis=2), *by_position, *no_gradients


chunked.defvjp(_forward, _backward)
