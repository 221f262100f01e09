"""The sparse layer of an encoder: decisions of single tokens or of whole segments.

Segment g of a row is its tokens g s .. g s + s - 1, counted from the oldest one, and zeros after
the newest. The router and the shared expert read a segment as one vector; the routed experts
compute its tokens one by one, at the router's choice for all of them (arXiv 2601.21641). Segments
of one token are the usual mixture of experts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from timemoe_jax.nn.dropout import Seed, counted, dropout, mixed
from timemoe_jax.nn.experts.kinds import Inner
from timemoe_jax.nn.experts.parallel import Experts, Options
from timemoe_jax.nn.experts.routing import Routing, choose
from timemoe_jax.nn.layers import Initializer, Linear


class Noise(NamedTuple):
    """What dropout in a layer is drawn with."""

    experts: Seed
    shared: Seed
    router: Seed


class Decisions(NamedTuple):
    """What the router of a layer decided, for S segments or tokens of each row."""

    logits: Float[Array, "R S E"]
    # Those that chose, where dropout was drawn of them; else None: the softmax of the logits.
    probabilities: Float[Array, "R S E"] | None
    counts: Bool[Array, "R S"]  # whether it is of a token that is not padding
    dropped: Float[Array, ""]  # (decision, choice) pairs that no expert computed


class SegmentMoe(nnx.Module):
    """sum of the chosen experts + sigmoid(v·u) * shared expert, u a segment's tokens in a row.

    Args:
      d_model: width of a token.
      d_hidden: hidden width of a routed expert.
      shared: the shared expert: a module of u [R, S, s D], a rate and a seed.
      kinds: of each routed expert (`nn.experts.kinds`); none leaves the shared expert alone,
        without a gate.
      segment: tokens of a decision, s.
      whole: whether a routed expert, too, reads and gives a segment as one vector, of hidden width
        s F.
      each_token: whether the router reads every token by itself, and decides for it alone; the
        shared expert stays on segments.
      num_experts_per_tok: K.
      renormalize: whether the weights of the chosen experts are divided by their sum, else they
        are the router's probabilities.
      temperature: what the router's logits are divided by.
      dropout: rate within the experts; `router_dropout` that of the router's probabilities.
      options: how to compute the experts; their kind and dropout are set here.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        shared: nnx.Module,
        *,
        kinds: Sequence[str],
        segment: int,
        whole: bool = False,
        each_token: bool = False,
        num_experts_per_tok: int,
        renormalize: bool,
        temperature: float = 1.0,
        dropout: float = 0.0,
        router_dropout: float = 0.0,
        init: Initializer,
        dtype: jnp.dtype,
        options: Options,
        rngs: nnx.Rngs,
    ):
        self.segment, self.kinds, self.whole = segment, tuple(kinds), whole
        self.each_token = each_token
        self.num_experts_per_tok = num_experts_per_tok
        self.renormalize, self.temperature = renormalize, temperature
        self.dropout, self.router_dropout = dropout, router_dropout
        wide, single = segment * d_model, jnp.dtype("float32")
        self.shared = shared
        count, reads = len(self.kinds), d_model if each_token else wide
        self.router = Linear(reads, count, init=init, dtype=single, rngs=rngs) if kinds else None
        self.shared_gate = Linear(wide, 1, init=init, dtype=dtype, rngs=rngs) if kinds else None

        def experts(kind: str, count: int) -> Experts:
            # Phases are of many turns: half precision would leave nothing of them.
            turning = kind.startswith("fourier")
            return Experts(
                count,
                wide if whole else d_model,
                segment * d_hidden if whole else d_hidden,
                init=nnx.initializers.normal(1.0) if turning else init,
                dtype=single if turning else dtype,
                options=options._replace(inner=Inner(kind, dropout)),
                rngs=rngs,
            )

        each = {kind: self.kinds.count(kind) for kind in dict.fromkeys(self.kinds)}
        stacks = {kind: experts(kind, n) for kind, n in each.items()}
        self.experts = nnx.Dict(stacks) if kinds else None

    def __call__(
        self,
        x: Float[Array, "R T D"],
        mask: Bool[Array, "R T"] | None = None,
        noise: Noise | None = None,
    ) -> tuple[Float[Array, "R T D"], Decisions | None]:
        """Applies the layer to normed tokens; a mask leaves out those at the end of a row."""
        rows, length, size = x.shape
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        x = jnp.pad(x, ((0, 0), (0, -length % self.segment), (0, 0)))
        u = x.reshape(rows, -1, self.segment * size)
        shared: Any = self.shared
        mixed_in = shared(u, self.dropout, None if noise is None else noise.shared)
        if self.router is None:
            return mixed_in[:, :length], None
        assert self.shared_gate is not None
        logits = self.router(x if self.each_token else u) / self.temperature
        routing, probabilities = self._route(logits, noise)
        routed, dropped = self._experts(u if self.whole else x, routing)
        gated = jax.nn.sigmoid(self.shared_gate(u)) * mixed_in
        y = routed.reshape(x.shape) + gated.reshape(x.shape)
        tokens = length if mask is None else jnp.sum(mask, axis=1, keepdims=True)
        first = jnp.arange(logits.shape[1]) * (1 if self.each_token else self.segment)
        counts = jnp.broadcast_to(first < tokens, logits.shape[:2])
        return y[:, :length], Decisions(logits, probabilities, counts, dropped)

    def _route(
        self, logits: Float[Array, "R S E"], noise: Noise | None
    ) -> tuple[Routing, Float[Array, "R S E"] | None]:
        """Decisions [R S, K], one for each row of logits, and the probabilities if dropped."""
        probabilities = jax.nn.softmax(logits, axis=-1)
        drops = noise is not None and self.router_dropout > 0
        if noise is not None and drops:
            probabilities = dropout(probabilities, self.router_dropout, noise.router)
        flat = probabilities.reshape(-1, logits.shape[-1])
        routing = choose(flat, self.num_experts_per_tok)
        if self.renormalize:
            total = jnp.maximum(jnp.sum(routing.weights, axis=-1, keepdims=True), 1e-6)
            routing = routing._replace(weights=routing.weights / total)
        if noise is not None and self.dropout > 0:
            seeds = mixed(noise.experts ^ mixed(counted(routing.indices.shape)))
            routing = routing._replace(seeds=seeds)
        return routing, probabilities if drops else None

    def _experts(
        self, x: Float[Array, "R N W"], routing: Routing
    ) -> tuple[Float[Array, "R N W"], Float[Array, ""]]:
        """Each kind computes the choices of its own experts."""
        assert self.experts is not None
        if len(self.experts) == 1:
            (experts,) = self.experts.values()
            return experts(x, routing)
        total, dropped = jnp.zeros_like(x), jnp.zeros(())
        for kind, experts in self.experts.items():
            # The place of each expert among those of its kind; nobody here for the others.
            own = [i for i, each in enumerate(self.kinds) if each == kind]
            place = jnp.full((len(self.kinds),), -1).at[jnp.array(own)].set(jnp.arange(len(own)))
            y, left_out = experts(x, routing._replace(indices=place[routing.indices]))
            total, dropped = total + y.astype(total.dtype), dropped + left_out
        return total, dropped
