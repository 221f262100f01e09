"""The sparse feed-forward layer: a router, the routed experts and the shared expert."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from timemoe_jax.nn.experts.leaders import led
from timemoe_jax.nn.experts.parallel import Experts, Options
from timemoe_jax.nn.experts.routing import route
from timemoe_jax.nn.layers import Initializer, Linear, SwiGLU


class SparseMoe(nnx.Module):
    """sum of the chosen experts + sigmoid(w·x) * shared expert (arXiv 2409.16040, Eq. 5 to 7).

    A routed expert has the width `d_hidden`, the shared one `d_shared` (None leaves it out). The
    router is float32, the products are in `dtype`; implementation, exchange and capacity are those
    of `Options`. With `selection_bias` there is a bias [E], at first 0, that takes part in the
    choice of the experts alone (arXiv 2408.15664). It has no gradient; a training step moves it.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        d_shared: int | None,
        *,
        num_experts: int,
        num_experts_per_tok: int,
        init: Initializer,
        dtype: jnp.dtype,
        implementation: str,
        exchange: str,
        capacity_factor: float,
        selection_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        router_dtype = jnp.dtype("float32")
        self.router = Linear(d_model, num_experts, init=init, dtype=router_dtype, rngs=rngs)
        self.experts = Experts(
            num_experts,
            d_model,
            d_hidden,
            init=init,
            dtype=dtype,
            options=Options(implementation, capacity_factor, exchange),
            rngs=rngs,
        )
        self.shared = (
            SwiGLU(d_model, d_shared, init=init, dtype=dtype, rngs=rngs) if d_shared else None
        )
        self.shared_gate = (
            Linear(d_model, 1, init=init, dtype=dtype, rngs=rngs) if d_shared else None
        )
        # A model without it has no such parameter, so that its tree is the published one.
        self.selection_bias = nnx.Param(jnp.zeros((num_experts,))) if selection_bias else None
        self.num_experts_per_tok = num_experts_per_tok

    def __call__(
        self,
        x: Float[Array, "B T D"],
        leaders: Int[Array, "B T"] | None = None,
        before: Float[Array, "B E"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T E"], Float[Array, ""]]:
        """Returns the output, the router's logits (float32) and the dropped (token, choice)s.

        With `leaders` the choice of each token is its leader's, and so are its logits: see
        `nn.experts.leaders`. `before` are the logits of the last leader before the tokens.
        """
        logits = self.router(x)
        logits = logits if leaders is None else led(logits, leaders, before)
        bias = None if self.selection_bias is None else self.selection_bias[...]
        routing = route(logits.reshape(-1, logits.shape[-1]), self.num_experts_per_tok, bias)
        routed, dropped = self.experts(x, routing)
        if self.shared is None or self.shared_gate is None:
            return routed, logits, dropped
        shared = jax.nn.sigmoid(self.shared_gate(x)) * self.shared(x)
        return routed + shared, logits, dropped
