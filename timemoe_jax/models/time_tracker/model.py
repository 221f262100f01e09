"""Time Tracker: a decoder over patches of several variates (arXiv 2505.15151).

The first layers read each variate by itself, the last ones also those that it is linked to. Layers
are stacked (a leading L axis on every parameter) and run by `jax.lax.scan`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt32

from timemoe_jax.models.base import ModelOutput
from timemoe_jax.models.heads import Heads
from timemoe_jax.models.time_tracker.config import TimeTrackerConfig
from timemoe_jax.models.time_tracker.sharding import RULES
from timemoe_jax.nn import variate_graph
from timemoe_jax.nn.attention.any_variate import AnyVariateAttention, Links
from timemoe_jax.nn.experts.by_channel import ChannelMoe
from timemoe_jax.nn.experts.parallel import Options
from timemoe_jax.nn.layers import Linear, RMSNorm, SwiGLU, through_layers
from timemoe_jax.runtime import partitioning

# The output of a layer: states, similarities to the experts, dropped (patch, choice) pairs.
Layer = tuple[Float[Array, "B C N D"], Float[Array, "B C N E"] | None, Float[Array, ""] | None]


class Block(nnx.Module):
    """x += attention(norm(x)); x += feed-forward(norm(x))."""

    def __init__(self, config: TimeTrackerConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        init = nnx.initializers.normal(config.initializer_range)
        size = config.hidden_size
        self.attention_norm = RMSNorm(size, eps=config.rms_norm_eps)
        self.attention = AnyVariateAttention(
            size,
            config.num_attention_heads,
            theta=config.rope_theta,
            init=init,
            dtype=dtype,
            implementation=config.attention_implementation,
            rngs=rngs,
        )
        self.ffn_norm = RMSNorm(size, eps=config.rms_norm_eps)
        self.ffn: SwiGLU | ChannelMoe
        if config.use_dense:
            width = config.shared_size + config.num_experts_per_tok * config.expert_size
            self.ffn = SwiGLU(size, width, init=init, dtype=dtype, rngs=rngs)
            return
        implementation, factor = config.expert_implementation, config.expert_capacity_factor
        self.ffn = ChannelMoe(
            size,
            config.expert_size,
            config.shared_size,
            num_experts=config.num_experts,
            num_experts_per_tok=config.num_experts_per_tok,
            scope=config.routing_scope,
            init=init,
            dtype=dtype,
            options=Options(implementation, factor, config.expert_exchange),
            selection_bias=config.router_bias,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "B C N D"],
        mask: Bool[Array, "B C N"],
        links: Links | None,
        mixed: bool,
    ) -> Layer:
        """A layer that reads the linked variates (None is all), or each variate by itself."""
        normed = self.attention_norm(x)
        if mixed:
            x = x + self.attention.among(normed, mask, links)
        else:
            x = x + self.attention.apart(normed, mask)
        normed = self.ffn_norm(x)
        if isinstance(self.ffn, ChannelMoe):
            y, similarity, dropped = self.ffn(normed, mask)
            return x + y, similarity, dropped
        return x + self.ffn(normed), None, None


class TimeTracker(Heads):
    """The whole model.

    Args:
      config: the architecture, and how to compute it.
      rngs: the source of the initial parameters: kernels N(0, initializer_range), biases 0,
        norm scales 1.
    """

    def __init__(self, config: TimeTrackerConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        init = nnx.initializers.normal(config.initializer_range)
        self.config = config
        width = config.patch_size * (2 if config.patch_marks else 1)
        self.embed = Linear(width, config.hidden_size, init=init, dtype=dtype, rngs=rngs)

        @nnx.split_rngs(splits=config.num_hidden_layers)
        @nnx.vmap(axis_size=config.num_hidden_layers)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks = stack(rngs)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        alpha = config.graph_alpha
        logit = jnp.asarray(math.log(alpha / (1 - alpha)))
        self.alpha_logit = nnx.Param(logit) if config.graph_alpha_learned else None
        self.add_heads(config, rngs)

    def __call__(
        self,
        x: Float[Array, "B C T"],
        mask: Bool[Array, "B C T"] | None = None,
        segments: None = None,
        draws: UInt32[Array, " B"] | None = None,
        ahead: tuple[Float[Array, "B C F"], Bool[Array, "B C F"]] | None = None,
    ) -> ModelOutput:
        """Predicts at every patch.

        Args:
          x: series, already normalized; T is a multiple of the stride.
          mask: False where a point is missing or padding: its value is read by none. None reads
            all.
          segments: windows of several variates are never packed.
          draws: a number for each window that its links are drawn by; None takes those that are
            more probable than the threshold.
          ahead: values and mask of the F points after x, of which those of the variates that are
            known ahead are read; None: nothing is known of them.

        Returns:
          float32 predictions of every head at every patch, the hidden states, the similarities to
          the experts, and how many (patch, choice) pairs each layer dropped. The last
          `config.known_variates` are read ahead, and what is predicted for them means nothing.
        """
        mask = jnp.ones(x.shape, bool) if mask is None else mask
        links = None
        if self.config.mixing == "graph":
            links = self._links(*self._first_points(x, mask), draws)
        hidden, similarity, dropped = self.states(*self._read_ahead(x, mask, ahead), links)
        predictions = {p: self.head(hidden, p) for p in self.config.horizon_lengths}
        return ModelOutput(predictions, hidden, similarity, dropped)

    def states(
        self, x: Float[Array, "B C T"], mask: Bool[Array, "B C T"], links: Links | None
    ) -> tuple[Array, Float[Array, "L B C N E"] | None, Float[Array, " L"] | None]:
        """The states [B, C, N, D] that the heads read, similarities, and dropped pairs.

        The links are those of pieces of `max_variates` variates, [B * pieces, C', C'].
        """
        config = self.config
        patches, observed = self._patches(x, mask)
        h = self.embed(patches)
        mixed = 0 if config.mixing == "none" else config.num_mixed_layers
        apart = config.num_hidden_layers - mixed
        h, first = self._through(h, observed, None, slice(0, apart), False)
        if not mixed:
            return self.norm(h), *first
        variates = h.shape[1]
        h, observed = self._pieces(h), self._pieces(observed)
        h, last = self._through(h, observed, links, slice(apart, None), True)

        def whole(a: Array, axis: int) -> Array:
            joined = a.reshape(*a.shape[:axis], x.shape[0], -1, *a.shape[axis + 2 :])
            return jax.lax.slice_in_dim(joined, 0, variates, axis=axis + 1)

        similarity = None if last[0] is None else whole(last[0], 1)
        joined = jax.tree.map(lambda *a: jnp.concatenate(a), first, (similarity, last[1]))
        return self.norm(whole(h, 0)), *joined

    def _through(
        self, h: Array, mask: Array, links: Links | None, layers: slice, mixed: bool
    ) -> tuple[Array, tuple[Array | None, Array | None]]:
        """Runs some of the layers, mixed or each variate by itself."""
        graph, state = nnx.split(self.blocks)

        def layer(h: Array, weights: nnx.State) -> tuple[Array, tuple]:
            weights = partitioning.gather_fsdp(weights, RULES, "blocks.")
            h, *router = nnx.merge(graph, weights)(h, mask, links, mixed)
            return partitioning.constrain(h, partitioning.BATCH), tuple(router)

        own = jax.tree.map(lambda a: a[layers], state)
        return through_layers(layer, h, own, self.config.remat)

    def _patches(self, x: Array, mask: Array) -> tuple[Array, Bool[Array, "B C N"]]:
        """Patch k ends with point (k + 1) * stride - 1; the first ones may begin before 0."""
        config, overlap = self.config, self.config.patch_size - self.config.stride
        widths = ((0, 0), (0, 0), (overlap, 0))
        x, mask = jnp.pad(jnp.where(mask, x, 0), widths), jnp.pad(mask, widths)
        starts = jnp.arange(0, x.shape[-1] - overlap, config.stride)
        index = starts[:, None] + jnp.arange(config.patch_size)
        values, marks = x[..., index], mask[..., index]
        if config.patch_marks:
            values = jnp.concatenate([values, marks.astype(values.dtype)], axis=-1)
        return values, jnp.any(marks, axis=-1)

    def _read_ahead(
        self, x: Array, mask: Array, ahead: tuple[Array, Array] | None
    ) -> tuple[Array, Array]:
        """Of the variates that are known ahead, what is known at each point."""
        config, variates, length = self.config, x.shape[1], x.shape[-1]
        if not config.known_variates:
            return x, mask
        known = (jnp.arange(variates) >= variates - config.known_variates)[:, None]

        def read(a: Array, later: Array) -> Array:
            whole = jnp.concatenate([a, later], axis=-1)
            return jnp.where(known, known_at(whole, config.lead, length), a)

        later = (x[..., :0], mask[..., :0]) if ahead is None else ahead
        return read(x, later[0]), read(mask, later[1])

    def _pieces(self, a: Float[Array, "B C ..."]) -> Float[Array, "B' C' ..."]:
        """The variates in pieces of `max_variates`, each like a window of its own."""
        most, variates = self.config.max_variates, a.shape[1]
        if variates <= most:
            return a
        missing = -variates % most
        padded = jnp.pad(a, [(0, 0), (0, missing)] + [(0, 0)] * (a.ndim - 2))
        return padded.reshape(-1, most, *a.shape[2:])

    def links_in_use(self, x: Array, mask: Array) -> Links | None:
        """The links that the last points of contexts say, as `states` takes them."""
        if self.config.mixing != "graph":
            return None
        return self._links(*self._last_points(x, mask), None)

    def link_matrix(self, x: Array, mask: Array) -> Float[Array, "B C C"]:
        """The probabilities that `links_in_use` compares; 0 of variates in different pieces."""
        variates = x.shape[1]
        probability = self.link_probability(*self._last_points(x, mask))
        pieces, size = len(probability) // len(x), probability.shape[-1]
        of_window = probability.reshape(len(x), pieces, size, size)
        same = jnp.eye(pieces, dtype=probability.dtype)
        blocks = jnp.einsum("bpmn,pq->bpmqn", of_window, same)
        whole = blocks.reshape(len(x), pieces * size, pieces * size)
        return whole[:, :variates, :variates]

    def _last_points(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """The points of contexts that links are found from, with masked ones before short ones."""
        missing = max(0, self.config.graph_points - x.shape[-1])
        widths, last = ((0, 0), (0, 0), (missing, 0)), slice(-self.config.graph_points, None)
        return jnp.pad(x, widths)[..., last], jnp.pad(mask, widths)[..., last]

    def link_probability(self, x: Array, mask: Array) -> Float[Array, "B' C' C'"]:
        """How probable links are by `graph_points` points of each variate, in pieces of them."""
        x, mask = self._pieces(x), self._pieces(mask)
        alpha: Any = self.config.graph_alpha
        if self.alpha_logit is not None:
            alpha = jax.nn.sigmoid(self.alpha_logit[...])
        distance = variate_graph.spectral_distance(x, mask)
        return variate_graph.link_probability(distance, jnp.any(mask, axis=-1), alpha)

    def _links(self, x: Array, mask: Array, draws: Array | None) -> Links:
        config = self.config
        probability = self.link_probability(x, mask)
        if draws is None:
            return variate_graph.links_in_use(probability, config.graph_threshold)
        pieces = len(probability) // len(x)
        numbers = draws[:, None] + jnp.arange(pieces, dtype=jnp.uint32)
        drawn = variate_graph.drawn_links(
            probability, numbers.reshape(-1), config.graph_temperature
        )
        return drawn if self.alpha_logit is not None else drawn > 0

    def _first_points(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """The first points of each window, from its first observed one on."""
        size = self.config.graph_points
        begin = jnp.argmax(jnp.any(mask, axis=1), axis=-1)
        widths = ((0, 0), (0, 0), (0, size))

        def cut(a: Array) -> Array:
            of_window = jax.vmap(lambda b, i: jax.lax.dynamic_slice_in_dim(b, i, size, axis=-1))
            return of_window(jnp.pad(a, widths), begin)

        return cut(x), cut(mask)


def known_at(a: Array, lead: int, length: int) -> Array:
    """What is known at each of `length` points: the values `lead` later; zeros past the end."""
    shifted = a[..., lead : lead + length]
    return jnp.pad(shifted, ((0, 0), (0, 0), (0, length - shifted.shape[-1])))
