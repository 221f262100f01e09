"""Experts that are chosen for a series instead of a point (arXiv 2505.15151).

A router's kernel holds a centroid for each expert. The similarity of a patch h to it, sigmoid(h ·
centroid), is averaged over the patches of its series up to it, so that nothing depends on what
comes later; the experts are the top-k of these means plus a bias that balances their load. A chosen
expert weighs its mean without the bias, over the sum of those chosen.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from timemoe_jax.nn.experts.parallel import Experts, Options
from timemoe_jax.nn.experts.routing import route
from timemoe_jax.nn.layers import Initializer, Linear, SwiGLU


def prefix_means(
    scores: Float[Array, "*B T E"], mask: Bool[Array, "*B T"]
) -> Float[Array, "*B T E"]:
    """The mean of the scores of each position and those before it that count; 0 where none does."""
    counted = mask[..., None].astype(scores.dtype)
    sums = jnp.cumsum(jnp.where(mask[..., None], scores, 0), axis=-2)
    return sums / jnp.maximum(jnp.cumsum(counted, axis=-2), 1)


class ChannelMoe(nnx.Module):
    """sum of the chosen experts + a shared expert, which every patch passes.

    Routed experts have the width `d_hidden`, the shared one `d_shared`; 0 leaves it out. The scope
    "channel" chooses by what the series is like up to a patch, "token" by the patch alone. The
    selection bias is as in `SparseMoe`; the router is float32, the products are in `dtype`.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        d_shared: int,
        *,
        num_experts: int,
        num_experts_per_tok: int,
        scope: str,
        init: Initializer,
        dtype: jnp.dtype,
        options: Options,
        selection_bias: bool,
        rngs: nnx.Rngs,
    ):
        self.router = Linear(d_model, num_experts, init=init, dtype=jnp.dtype("float32"), rngs=rngs)
        self.experts = Experts(
            num_experts, d_model, d_hidden, init=init, dtype=dtype, options=options, rngs=rngs
        )
        self.shared = (
            SwiGLU(d_model, d_shared, init=init, dtype=dtype, rngs=rngs) if d_shared else None
        )
        self.selection_bias = nnx.Param(jnp.zeros((num_experts,))) if selection_bias else None
        self.num_experts_per_tok = num_experts_per_tok
        self.scope = scope

    def __call__(
        self, x: Float[Array, "B C T D"], mask: Bool[Array, "B C T"]
    ) -> tuple[Float[Array, "B C T D"], Float[Array, "B C T E"], Float[Array, ""]]:
        """Returns the output, the similarities chosen by (float32), and the dropped pairs."""
        similarity = jax.nn.sigmoid(self.router(x))
        if self.scope == "channel":
            similarity = prefix_means(similarity, mask)
        bias = None if self.selection_bias is None else self.selection_bias[...]
        rows = similarity.reshape(-1, similarity.shape[-1])
        routing = route(rows, self.num_experts_per_tok, bias, "similarity")
        by_window = x.reshape(x.shape[0], -1, x.shape[-1])
        routed, dropped = self.experts(by_window, routing)
        y = routed.reshape(x.shape)
        return (y if self.shared is None else y + self.shared(x)), similarity, dropped
