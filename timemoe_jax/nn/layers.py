"""The small parts: linear maps, point embedding, norm, gated feed-forward layer, loop of layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

Initializer = nnx.initializers.Initializer

# By the name of a model's `remat`, what of a layer is kept for the backward pass; the rest is
# computed again. None keeps what the backward pass reads.
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
# Layers in one turn of the loop over them. What the backward pass reads is stacked turn by turn,
# which costs a fifth of an update of a small model; all at once, deep ones would compile for long.
_AT_ONCE = 4


def through_layers(layer: Callable[..., Any], h: Any, stacked: Any, remat: str) -> Any:
    """Runs `layer(h, of_layer) -> (h, more)` over a leading axis of layers, as `jax.lax.scan`.

    `remat` says what of a layer the backward pass computes again: see `REMAT`.
    """
    policy = REMAT[remat]
    if policy is None:
        return jax.lax.scan(layer, h, stacked, unroll=_AT_ONCE)
    # One at a time: within a turn the compiler would find that it has computed that already.
    again = jax.checkpoint(layer, policy=policy, prevent_cse=False)
    return jax.lax.scan(again, h, stacked)


class Linear(nnx.Module):
    """y = x @ kernel (+ bias), computed in `dtype`, with parameters kept in float32.

    `init` makes the kernel [d_in, d_out]; a bias [d_out] starts at 0.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        init: Initializer,
        dtype: jnp.dtype,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (d_in, d_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((d_out,), jnp.float32)) if use_bias else None
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "... d_in"], width: int | None = None
    ) -> Float[Array, "... d_out"]:
        """Applies the map to the last axis; `width`: the first so many outputs alone."""
        kernel = self.kernel[...][:, :width].astype(self.dtype)
        # As one matrix: XLA's CPU backend takes four times as long for the gradient of a product
        # whose rows are spread over several axes.
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y = (rows @ kernel).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias[...][:width].astype(self.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + eps) * scale (arXiv 1910.07467).

    The division is computed in float32 and cast back to the input's dtype before the product with
    the scale, in the order of the published implementation.
    """

    def __init__(self, size: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalizes the last axis."""
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        normed = (x32 * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype)
        return normed * self.scale[...].astype(x.dtype)


class PointEmbedding(nnx.Module):
    """silu(x W_gate) * (x W_value) for a scalar x (arXiv 2409.16040, Eq. 1).

    The products are elementwise: a matrix product with an inner dimension of one would round x on
    accelerators whose default precision is below float32.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        gate_init: Initializer,
        value_init: Initializer,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.gate = nnx.Param(gate_init(rngs.params(), (1, hidden_size), jnp.float32))
        self.value = nnx.Param(value_init(rngs.params(), (1, hidden_size), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeds every point."""
        x = x[..., None].astype(self.dtype)
        gate = x * self.gate[0].astype(self.dtype)
        return jax.nn.silu(gate) * (x * self.value[0].astype(self.dtype))


class ResidualBlock(nnx.Module):
    """z skip + silu(z inner) outer, the residual block of arXiv 2310.10688.

    Its kernels keep the variance of what they read. With `silent` those that say something start at
    0: a block that is added to a trained model then changes nothing at first.
    """

    def __init__(
        self,
        width: int,
        hidden_size: int,
        *,
        silent: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        says = nnx.initializers.zeros if silent else init
        self.inner = Linear(width, hidden_size, init=init, dtype=dtype, use_bias=True, rngs=rngs)
        self.outer = Linear(hidden_size, hidden_size, init=says, dtype=dtype, rngs=rngs)
        self.skip = Linear(width, hidden_size, init=says, dtype=dtype, rngs=rngs)

    def __call__(self, z: Float[Array, "... Z"]) -> Float[Array, "... D"]:
        """Applies the block to the last axis."""
        return self.skip(z) + self.outer(jax.nn.silu(self.inner(z)))


def patch_features(x: Float[Array, "B N P"], mask: Bool[Array, "B N P"]) -> Float[Array, "B N 2*P"]:
    """The points of each patch, 0 where one is not observed, and which of them are."""
    return jnp.concatenate([jnp.where(mask, x, 0), mask.astype(x.dtype)], axis=-1)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)), without biases (arXiv 2002.05202)."""

    def __init__(
        self, d_model: int, d_hidden: int, *, init: Initializer, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.gate = Linear(d_model, d_hidden, init=init, dtype=dtype, rngs=rngs)
        self.up = Linear(d_model, d_hidden, init=init, dtype=dtype, rngs=rngs)
        self.down = Linear(d_hidden, d_model, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Applies the layer to the last axis."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
