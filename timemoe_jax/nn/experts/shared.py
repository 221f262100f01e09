"""Shared experts beside the plain feed-forward layer: a convolution over time, and a Fourier layer.

Each is called with tokens [R, T, D], a rate and a seed of the dropout before its last map.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from timemoe_jax.nn.dropout import Seed, dropout
from timemoe_jax.nn.experts.kinds import fourier
from timemoe_jax.nn.layers import Initializer
from timemoe_jax.nn.patches import uniform_of

TAPS = 3  # tokens that the depthwise kernel reads: one on each side


def _param(rngs: nnx.Rngs, init: Initializer, *shape: int) -> nnx.Param:
    return nnx.Param(init(rngs.params(), shape, jnp.float32))


class ConvExpert(nnx.Module):
    """down(gelu(up(c))), c the tokens after a depthwise convolution over time, if there is one.

    With a gate it is down(silu(up(c)) * gate(c)). Before the first token and after the last the
    convolution reads zeros; it reads all tokens, whatever their experts. No biases.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        depthwise: bool,
        gated: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        wide = uniform_of(d_hidden, d_model)
        self.depthwise = (
            _param(rngs, uniform_of(d_model, 1, TAPS), TAPS, 1, d_model) if depthwise else None
        )
        self.up = _param(rngs, wide, 1, d_model, d_hidden)
        self.gate = _param(rngs, wide, 1, d_model, d_hidden) if gated else None
        self.down = _param(rngs, wide, 1, d_hidden, d_model)
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "R T D"], rate: float = 0.0, seed: Seed | None = None
    ) -> Float[Array, "R T D"]:
        """Applies the expert to all tokens of each row."""
        c = x.astype(self.dtype)
        if self.depthwise is not None:
            kernel = self.depthwise[...].astype(self.dtype)
            padded = jnp.pad(c, ((0, 0), (1, 1), (0, 0)))
            each = [padded[:, j : j + c.shape[1]] * kernel[j, 0] for j in range(TAPS)]
            c = each[0] + each[1] + each[2]
        up = c @ self.up[0].astype(self.dtype)
        if self.gate is None:
            hidden = jax.nn.gelu(up, approximate=False)
        else:
            hidden = jax.nn.silu(up) * (c @ self.gate[0].astype(self.dtype))
        return dropout(hidden, rate, seed) @ self.down[0].astype(self.dtype)


class FourierExpert(nnx.Module):
    """F(down(F(up(x)))), with a gate F(down(F(up(x)) * sigmoid(F(gate(x))))); float32.

    F is `kinds.fourier`.
    """

    def __init__(self, d_model: int, d_hidden: int, *, gated: bool, rngs: nnx.Rngs):
        init = nnx.initializers.normal(1.0)
        self.up = _param(rngs, init, d_model, 3 * d_hidden // 4)
        self.gate = _param(rngs, init, d_model, 3 * d_hidden // 4) if gated else None
        self.down = _param(rngs, init, d_hidden, 3 * d_model // 4)

    def __call__(
        self, x: Float[Array, "R T D"], rate: float = 0.0, seed: Seed | None = None
    ) -> Float[Array, "R T D"]:
        """Applies the expert to every token."""
        x = x.astype(jnp.float32)
        hidden = fourier(x @ self.up[...])
        if self.gate is not None:
            hidden = hidden * jax.nn.sigmoid(fourier(x @ self.gate[...]))
        return fourier(dropout(hidden, rate, seed) @ self.down[...])
