"""The attention of a block: projections, rotary positions, a cache."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.nn.attention import cache as attention_cache
from timemoe_jax.nn.attention.cache import CacheLayer, KeyValues
from timemoe_jax.nn.attention.causal import causal_attention, rotary
from timemoe_jax.nn.layers import Initializer, Linear
from timemoe_jax.runtime import partitioning


class Attention(nnx.Module):
    """Causal multi-head attention; queries, keys and values have biases, the output none.

    K key/value heads, a divisor of the N heads, are shared by as many query heads each; `theta` is
    the base of the rotary wavelengths. Products are in `dtype`, the softmax in float32.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        theta: float,
        init: Initializer,
        dtype: jnp.dtype,
        implementation: str,
        rngs: nnx.Rngs,
    ):
        self.head_dim = hidden_size // num_heads
        kv_size = num_kv_heads * self.head_dim
        linear = functools.partial(Linear, init=init, dtype=dtype, rngs=rngs)
        self.query = linear(hidden_size, hidden_size, use_bias=True)
        self.key = linear(hidden_size, kv_size, use_bias=True)
        self.value = linear(hidden_size, kv_size, use_bias=True)
        self.out = linear(hidden_size, hidden_size)
        self.theta = theta
        self.implementation = implementation

    def _split(self, x: Float[Array, "B T C"]) -> Float[Array, "B N T H"]:
        batch, length, _ = x.shape
        return x.reshape(batch, length, -1, self.head_dim).transpose(0, 2, 1, 3)

    def _merge(self, x: Float[Array, "B N T H"]) -> Float[Array, "B T D"]:
        batch, _, length, _ = x.shape
        return self.out(x.transpose(0, 2, 1, 3).reshape(batch, length, -1))

    def _queries(
        self, x: Float[Array, "B T D"], positions: Int[Array, " T"]
    ) -> Float[Array, "B N T H"]:
        return rotary(self._split(self.query(x)), positions, self.theta)

    def _key_values(self, x: Float[Array, "B T D"], positions: Int[Array, " T"]) -> KeyValues:
        keys = rotary(self._split(self.key(x)), positions, self.theta)
        return KeyValues(keys, self._split(self.value(x)))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Attends within x; also returns the keys and values, for a cache.

        Positions do not begin anew with a segment: rotary scores depend on distances alone.
        """
        positions = jnp.arange(x.shape[1])
        queries, kv = self._queries(x, positions), self._key_values(x, positions)
        # Each device attends within its own series and heads.
        heads, series = P(partitioning.BATCH, "tensor"), P(partitioning.BATCH)
        by_series = tuple(None if a is None else series for a in (mask, segments))

        def attend_within(
            queries: Array, keys: Array, values: Array, mask: Any, segments: Any
        ) -> Array:
            return causal_attention(queries, keys, values, mask, self.implementation, segments)

        attend_here = partitioning.per_device(
            attend_within, in_specs=(heads, heads, heads, *by_series), out_specs=heads
        )
        return self._merge(attend_here(queries, *kv, mask, segments)), kv

    def extend(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        position: Int[Array, ""] | int,
        past: CacheLayer | None = None,
        last: bool = False,
    ) -> tuple[Float[Array, "B R D"], KeyValues]:
        """Attends from new positions, from `position` on, to a cache of this layer and themselves.

        The mask is False where a new position must not be read; `past` is None where nothing came
        before. With `last` only the output of the last position is computed, [B, 1, D]. Returns the
        output, and the keys and values of the new positions.
        """
        positions = position + jnp.arange(x.shape[1])
        new = self._key_values(x, positions)
        if last:
            x, positions = x[:, -1:], positions[-1:]
        heads, series = P(partitioning.BATCH, "tensor"), P(partitioning.BATCH)
        pair, cached = (KeyValues(spec, spec) for spec in _cache_specs())
        read_here = partitioning.per_device(
            attention_cache.read,
            in_specs=(
                heads,
                pair,
                series,
                None if past is None else CacheLayer(cached, P(), P(), series),  # type: ignore[arg-type]
            ),
            out_specs=heads,
        )
        return self._merge(read_here(self._queries(x, positions), new, mask, past)), new


def _cache_specs() -> tuple[Any, Any]:
    """How keys and values are sharded: [B, K, T, H] of a layer, and [L, B, K, S, H] of all."""
    return P(partitioning.BATCH, "tensor"), P(None, partitioning.BATCH, "tensor")
