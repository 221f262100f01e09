"""Attention both ways, of tokens to one another or to those of another sequence of their time."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from timemoe_jax.nn.attention.causal import rotary
from timemoe_jax.nn.attention.chunked import FORBIDDEN
from timemoe_jax.nn.dropout import Seed, dropout
from timemoe_jax.nn.layers import Initializer, Linear


class EncoderAttention(nnx.Module):
    """Grouped-query attention without a causal mask; biases but for the output.

    N / K query heads share a key/value head. Rotary positions turn neighboring features (2i, 2i+1)
    together, count from the oldest token, and are those of queries and of keys.
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

    def __call__(
        self,
        x: Float[Array, "R T D"],
        mask: Bool[Array, "R T"] | None = None,
        source: Float[Array, "R T D"] | None = None,
        rate: float = 0.0,
        seed: Seed | None = None,
    ) -> Float[Array, "R T D"]:
        """Reads the tokens of the source, by default of x itself; a mask leaves some of them out.

        A seed draws dropout of the probabilities.
        """
        source = x if source is None else source
        positions = jnp.arange(x.shape[1])
        queries = rotary(self._heads(self._paired(self.query, x)), positions, self.theta)
        keys = rotary(self._heads(self._paired(self.key, source)), positions, self.theta)
        values = self._heads(self.value(source))
        rows, heads, length, size = queries.shape
        groups = queries.reshape(rows, keys.shape[1], -1, size)
        scores = jnp.einsum("rkqh,rksh->rkqs", groups, keys, preferred_element_type=jnp.float32)
        scores = scores * size**-0.5
        if mask is not None:
            scores = scores + jnp.where(mask, 0.0, FORBIDDEN)[:, None, None]
        weights = dropout(jax.nn.softmax(scores, axis=-1), rate, seed).astype(values.dtype)
        read = jnp.einsum("rkqs,rksh->rkqh", weights, values)
        read = read.reshape(rows, heads, length, size).transpose(0, 2, 1, 3)
        return self.out(read.reshape(rows, length, -1))

    def _paired(self, linear: Linear, x: Float[Array, "R T D"]) -> Float[Array, "R T C"]:
        """A projection whose pairs (2i, 2i+1) of a head are (i, i + H/2), as `rotary` takes them.

        The kernel is put in this order, not the features, of which there are more.
        """

        def ordered(a: Array) -> Array:
            pairs = a.reshape(*a.shape[:-1], -1, self.head_dim // 2, 2)
            return jnp.swapaxes(pairs, -1, -2).reshape(a.shape)

        assert linear.bias is not None
        flat = x.reshape(-1, x.shape[-1]).astype(linear.dtype)
        kernel, bias = ordered(linear.kernel[...]), ordered(linear.bias[...])
        y = flat @ kernel.astype(linear.dtype) + bias.astype(linear.dtype)
        return y.reshape(*x.shape[:-1], -1)

    def _heads(self, x: Float[Array, "R T C"]) -> Float[Array, "R N T H"]:
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(0, 2, 1, 3)
