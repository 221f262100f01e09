"""Time-MoE: a decoder over single time points with routed experts (arXiv 2409.16040).

The layers are stacked (a leading L axis on every parameter) and run by `jax.lax.scan`, so that
compile time hardly grows with depth.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from timemoe_jax.models.base import ModelOutput
from timemoe_jax.models.heads import Heads
from timemoe_jax.models.time_moe import beside
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.sharding import RULES
from timemoe_jax.nn import copies, weighing
from timemoe_jax.nn.attention.cache import CacheLayer, KeyValues
from timemoe_jax.nn.attention.layer import Attention
from timemoe_jax.nn.experts.layer import SparseMoe
from timemoe_jax.nn.experts.leaders import leaders_of, points_since_start
from timemoe_jax.nn.lag_start import start_at_lags
from timemoe_jax.nn.layers import (
    Linear,
    PointEmbedding,
    ResidualBlock,
    RMSNorm,
    SwiGLU,
    patch_features,
    through_layers,
)
from timemoe_jax.runtime import partitioning

# Beyond it asinh(value) is no value of a series; sinh of it is 2e8 deviations.
_FARTHEST = 20.0
# Steps after which e-times less is left of what a forecast begins from.
_FADES = (1, 4, 16, 64, 256, np.inf)


class Block(nnx.Module):
    """x += attention(norm(x)); x += feed-forward(norm(x))."""

    def __init__(self, config: TimeMoeConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        init = nnx.initializers.normal(config.initializer_range)
        size = config.hidden_size
        self.attention_norm = RMSNorm(size, eps=config.rms_norm_eps)
        self.attention = Attention(
            size,
            config.num_attention_heads,
            config.num_key_value_heads,
            theta=config.rope_theta,
            init=init,
            dtype=dtype,
            implementation=config.attention_implementation,
            rngs=rngs,
        )
        self.ffn_norm = RMSNorm(size, eps=config.rms_norm_eps)
        self.ffn: SwiGLU | SparseMoe
        if config.use_dense:
            self.ffn = SwiGLU(size, config.intermediate_size, init=init, dtype=dtype, rngs=rngs)
        else:
            self.ffn = SparseMoe(
                size,
                config.expert_size,
                config.intermediate_size if config.shared_expert else None,
                num_experts=config.num_experts,
                num_experts_per_tok=config.num_experts_per_tok,
                init=init,
                dtype=dtype,
                implementation=config.expert_implementation,
                exchange=config.expert_exchange,
                capacity_factor=config.expert_capacity_factor,
                selection_bias=config.router_bias,
                rngs=rngs,
            )

    def _feed_forward(
        self,
        x: Float[Array, "B T D"],
        leaders: Int[Array, "B T"] | None = None,
        before: Float[Array, "B E"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T E"] | None, Float[Array, ""] | None]:
        normed = self.ffn_norm(x)
        if isinstance(self.ffn, SparseMoe):
            y, logits, dropped = self.ffn(normed, leaders, before)
            return x + y, logits, dropped
        return x + self.ffn(normed), None, None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"] | None,
        segments: Int[Array, "B T"] | None = None,
        leaders: Int[Array, "B T"] | None = None,
    ) -> tuple[
        Float[Array, "B T D"], KeyValues, Float[Array, "B T E"] | None, Float[Array, ""] | None
    ]:
        """The output, the keys and values, the router's logits and how many pairs were dropped."""
        attended, kv = self.attention(self.attention_norm(x), mask, segments)
        x, logits, dropped = self._feed_forward(x + attended, leaders)
        return x, kv, logits, dropped

    def extend(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        position: Int[Array, ""] | int,
        past: CacheLayer | None = None,
        last: bool = False,
        leaders: Int[Array, "B T"] | None = None,
        before: Float[Array, "B E"] | None = None,
    ) -> tuple[Float[Array, "B R D"], KeyValues, Float[Array, "B R E"] | None]:
        """Runs new positions against a cache: see `Attention.extend`, and `SparseMoe`.

        Also returns the router's logits.
        """
        normed = self.attention_norm(x)
        attended, new = self.attention.extend(normed, mask, position, past, last)
        if last:
            x = x[:, -1:]
        x, logits, _ = self._feed_forward(x + attended, leaders, before)
        return x, new, logits


class TimeMoe(Heads):
    """The whole model.

    Args:
      config: the architecture, and how to compute it.
      rngs: the source of the initial parameters: kernels N(0, initializer_range), biases 0,
        norm scales 1, but for `embedding_range` and `attention_reach`.
    """

    def __init__(self, config: TimeMoeConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.config = config
        size = config.hidden_size
        if config.patch_size == 1:
            ranges = config.embedding_range or (config.initializer_range,) * 2
            gate_init, value_init = map(nnx.initializers.normal, ranges)
            self.embed = PointEmbedding(
                size, gate_init=gate_init, value_init=value_init, dtype=dtype, rngs=rngs
            )
        else:
            self.patch_embed = ResidualBlock(2 * config.patch_size, size, dtype=dtype, rngs=rngs)

        @nnx.split_rngs(splits=config.num_hidden_layers)
        @nnx.vmap(axis_size=config.num_hidden_layers)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks = stack(rngs)
        if config.attention_reach:
            start_at_lags(self.blocks.attention, config.attention_reach)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        self.add_heads(config, rngs, points=config.point_heads)
        if config.copy_lags:
            self._add_copies(config, rngs)

    def _add_copies(self, config: TimeMoeConfig, rngs: nnx.Rngs) -> None:
        """What reads copies, and what adds them to the quantiles by a factor for each patch."""
        size, dtype = config.hidden_size, jnp.dtype(config.dtype)
        width = copies.COPIES * copies.AHEAD + copies.number_of_clues(config.patch_size)
        self.copy_embed = ResidualBlock(width, size, silent=True, dtype=dtype, rngs=rngs)
        none = nnx.initializers.zeros
        self.copy_heads = nnx.Dict(
            {
                str(p): Linear(
                    size,
                    copies.COPIES * (p // config.patch_size),
                    init=none,
                    dtype=dtype,
                    use_bias=True,
                    rngs=rngs,
                )
                for p in config.horizon_lengths
            }
        )

        def fading(factors: int) -> nnx.Dict:
            width = factors * len(_FADES)
            return nnx.Dict(
                {
                    str(p): Linear(size, width, init=none, dtype=dtype, use_bias=True, rngs=rngs)
                    for p in config.horizon_lengths
                }
            )

        if config.anchored:
            self.anchor_heads = fading(copies.ANCHORS)
        if config.weighed:
            self.weigh_heads = fading(weighing.FACTORS)

    def __call__(
        self,
        x: Float[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> ModelOutput:
        """Predicts at every position, of which each patch has one.

        Args:
          x: series, already normalized. With patches the last one ends with the last point, and the
            first is filled up with missing points on its left.
          mask: False where a point is missing or padding: its value is read by no position, not
            even its own. None reads all.
          segments: which of the series packed into a row each point is of; every series is
            predicted as if it stood alone. None: a row is one series. A patch is of the series of
            its last point.

        Returns:
          float32 predictions of every head at every position (those at masked positions mean
          nothing), the hidden states, the router's logits and how many (token, choice) pairs each
          layer dropped.
        """
        hidden, logits, dropped = self._run(x, mask, segments)
        predictions = {p: self.head(hidden, p) for p in self.config.horizon_lengths}
        return ModelOutput(predictions, hidden, logits, dropped)

    def quantile_head(self, hidden: Float[Array, "*N D"], horizon: int) -> Float[Array, "*N P Q"]:
        """Quantiles of the `horizon` values after each position: see `Heads.quantile_head`."""
        said = self.squashed_quantiles(hidden, horizon)
        return jnp.sinh(jnp.clip(said, -_FARTHEST, _FARTHEST)) if self.config.asinh else said

    def squashed_quantiles(
        self, hidden: Float[Array, "*N D"], horizon: int
    ) -> Float[Array, "*N P Q"]:
        """What the heads themselves say: asinh of the quantiles of a model with `asinh`."""
        own = super().quantile_head(hidden, horizon)
        if not self.config.weighed:
            return own
        state, known = self._beside(hidden, horizon)
        others = weighing.precise(
            *(known.copied, known.anchors[..., 0]),
            *(known.phases, known.changes, known.matches, known.spans),
            *(known.growth, known.departures, known.seen),
        )
        factors = self._fading(self.weigh_heads, state, horizon)
        return weighing.weigh(own, others, factors, self.config.quantile_levels)

    def raw_quantiles(self, hidden: Float[Array, "*N D"], horizon: int) -> Float[Array, "*N P Q"]:
        """Of a model with `copy_lags` also the copies behind the states, times factors."""
        if not self.config.copy_lags:
            return super().raw_quantiles(hidden, horizon)
        state, known = self._beside(hidden, horizon)
        factors = self.copy_heads[str(horizon)](state).astype(jnp.float32)
        factors = factors.reshape(*hidden.shape[:-1], copies.COPIES, -1)
        factors = jnp.repeat(factors, self.config.patch_size, axis=-1)
        factors = factors[..., : self.steps_of(horizon)]
        added = jnp.sum(factors * known.copied, axis=-2)
        if self.config.anchored:
            added += self._anchored(state, known.anchors, horizon)
        return super().raw_quantiles(state, horizon) + added[..., None]

    def _anchored(
        self, state: Float[Array, "*N D"], anchors: Float[Array, "*N A"], horizon: int
    ) -> Float[Array, "*N P"]:
        """The anchors by factors, each a sum of such as fade over a number of steps."""
        factors = self._fading(self.anchor_heads, state, horizon)
        return jnp.sum(anchors[..., None] * factors, axis=-2)

    def _fading(
        self, heads: nnx.Dict, state: Float[Array, "*N D"], horizon: int
    ) -> Float[Array, "*N F P"]:
        """Factors that heads read, each a sum of such as fade over a number of steps."""
        read = heads[str(horizon)](state).astype(jnp.float32)
        fading = jnp.exp(
            -jnp.arange(self.steps_of(horizon)) / np.array(_FADES, np.float32)[:, None]
        )
        return read.reshape(*state.shape[:-1], -1, len(_FADES)) @ fading

    def with_copies(
        self, hidden: Float[Array, "B N D"], found: copies.Copies | None, last: bool = False
    ) -> Float[Array, "B N H"]:
        """States as the heads read them: with `copy_lags` what is known of copies follows."""
        longest = self.steps_of(self.config.horizon_lengths[-1])
        return hidden if found is None else beside.join(hidden, found, longest, last)

    def _beside(
        self, hidden: Float[Array, "*N H"], horizon: int
    ) -> tuple[Float[Array, "*N D"], beside.Beside]:
        """The states of what `with_copies` returned, and what is known of copies for a head."""
        longest = self.steps_of(self.config.horizon_lengths[-1])
        return beside.split(hidden, self.config, longest, self.steps_of(horizon))

    def tokens(
        self,
        x: Float[Array, "B T"],
        mask: Bool[Array, "B T"] | None,
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Bool[Array, "B N"] | None, copies.Copies | None]:
        """What the blocks read: points or patches, embedded, and which of them hold anything.

        Also, of a model with `copy_lags`, the copies of every position.
        """
        x = jnp.arcsinh(x) if self.config.asinh else x
        if self.config.patch_size == 1:
            return self.embed(x if mask is None else jnp.where(mask, x, 0)), mask, None
        mask = jnp.ones(x.shape, bool) if mask is None else mask
        patches, observed = (self._patches(a) for a in (x, mask))
        embedded = self.patch_embed(patch_features(patches, observed))
        held = jnp.any(observed, axis=-1)
        if not self.config.copy_lags:
            return embedded, held, None
        found = copies.find(
            patches.reshape(len(x), -1),
            observed.reshape(len(x), -1),
            None if segments is None else self._patches(segments).reshape(len(x), -1),
            self.config.patch_size,
            self.config.copy_lags,
        )
        ahead = found.at(copies.AHEAD)
        z = jnp.concatenate([ahead.reshape(*ahead.shape[:2], -1), found.clues], axis=-1)
        return embedded + self.copy_embed(z), held, found

    def _patches(self, a: Shaped[Array, "B T"]) -> Shaped[Array, "B N P"]:
        """Points in patches; zeros, or False, are before the first point where one is not full."""
        size = self.config.patch_size
        full = jnp.pad(a, ((0, 0), (-a.shape[1] % size, 0)))
        return full.reshape(len(a), -1, size)

    def _run(
        self,
        x: Float[Array, "B T"],
        mask: Bool[Array, "B T"] | None,
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B N H"], Float[Array, "L B N E"] | None, Float[Array, " L"] | None]:
        """Embedding, blocks and final norm; with `copy_lags` the copies beside the states."""
        h, mask, found = self.tokens(x, mask, segments)
        if segments is not None and self.config.patch_size > 1:
            segments = self._patches(segments)[..., -1]
        graph, state = nnx.split(self.blocks)
        lengths, since = self.config.segments, None
        if lengths:
            read = jnp.ones(h.shape[:2], bool) if mask is None else mask
            since = points_since_start(read, segments)

        def layer(h: Float[Array, "B T D"], own: Any) -> tuple:
            weights, length = own
            weights = partitioning.gather_fsdp(weights, RULES, "blocks.")
            leaders = None if since is None else leaders_of(since, length)
            h, _, logits, dropped = nnx.merge(graph, weights)(h, mask, segments, leaders)
            h = partitioning.constrain(h, partitioning.BATCH)
            return h, (logits, dropped)

        per_layer: tuple
        each = (state, jnp.array(lengths, jnp.int32) if lengths else None)
        h, per_layer = through_layers(layer, h, each, self.config.remat)
        return self.with_copies(self.norm(h), found), *per_layer
