"""Time-MoE: a decoder over single time points with routed experts (arXiv 2409.16040).

The layers are stacked (a leading L axis on every parameter) and run by `jax.lax.scan`, so that
compile time does not grow with depth.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import ModelOutput
from timemoe_jax.models.quantiles import non_crossing
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.sharding import RULES
from timemoe_jax.nn.attention.cache import CacheLayer, KeyValues
from timemoe_jax.nn.attention.layer import Attention
from timemoe_jax.nn.experts.layer import SparseMoe
from timemoe_jax.nn.experts.leaders import leaders_of, points_since_start
from timemoe_jax.nn.lag_start import start_at_lags
from timemoe_jax.nn.layers import Linear, PointEmbedding, RMSNorm, SwiGLU
from timemoe_jax.runtime import partitioning

# By the name of `TimeMoeConfig.remat`, what of a layer is kept for the backward pass; the rest is
# computed again. None keeps what the backward pass reads.
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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


class TimeMoe(nnx.Module):
    """The whole model.

    Args:
      config: the architecture, and how to compute it.
      rngs: the source of the initial parameters: kernels N(0, initializer_range), biases 0,
        norm scales 1, but for `embedding_range` and `attention_reach`.
    """

    def __init__(self, config: TimeMoeConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        init = nnx.initializers.normal(config.initializer_range)
        self.config = config
        ranges = config.embedding_range or (config.initializer_range,) * 2
        gate_init, value_init = map(nnx.initializers.normal, ranges)
        self.embed = PointEmbedding(
            config.hidden_size, gate_init=gate_init, value_init=value_init, dtype=dtype, rngs=rngs
        )

        @nnx.split_rngs(splits=config.num_hidden_layers)
        @nnx.vmap(axis_size=config.num_hidden_layers)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks = stack(rngs)
        if config.attention_reach:
            start_at_lags(self.blocks.attention, config.attention_reach)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        def heads(width: int) -> nnx.Dict:
            return nnx.Dict(
                {
                    str(p): Linear(config.hidden_size, p * width, init=init, dtype=dtype, rngs=rngs)
                    for p in config.horizon_lengths
                }
            )

        self.heads = heads(1)
        # After all others, so that a seed gives those the same values with them and without.
        levels = len(config.quantile_levels)
        self.quantile_heads = heads(levels) if levels else None

    def __call__(
        self,
        x: Float[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> ModelOutput:
        """Predicts at every position.

        Args:
          x: series, already normalized.
          mask: False where a point is missing or padding: its value is read by no position, not
            even its own. None reads all.
          segments: which of the series packed into a row each point is of; every series is
            predicted as if it stood alone. None: a row is one series.

        Returns:
          float32 predictions of every head at every position (those at masked positions mean
          nothing), the hidden states, the router's logits and how many (token, choice) pairs each
          layer dropped.
        """
        hidden, logits, dropped = self._run(x, mask, segments)
        predictions = {p: self.head(hidden, p) for p in self.config.horizon_lengths}
        return ModelOutput(predictions, hidden, logits, dropped)

    def head(self, hidden: Float[Array, "*N D"], horizon: int) -> Float[Array, "*N P"]:
        """The `horizon` values after each position, float32."""
        return self.heads[str(horizon)](hidden).astype(jnp.float32)

    def quantile_head(self, hidden: Float[Array, "*N D"], horizon: int) -> Float[Array, "*N P Q"]:
        """Quantiles of the `horizon` values after each position, float32, at each level.

        Those of a value never decrease from level to level: see `non_crossing`.

        Raises:
          ConfigError: the model has no quantile heads.
        """
        levels = self.config.quantile_levels
        if self.quantile_heads is None:
            raise ConfigError("quantile_levels is (), so the model has no heads of quantiles")
        outputs = self.quantile_heads[str(horizon)](hidden).astype(jnp.float32)
        return non_crossing(outputs.reshape(*hidden.shape[:-1], horizon, len(levels)), levels)

    def _run(
        self,
        x: Float[Array, "B T"],
        mask: Bool[Array, "B T"] | None,
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "L B T E"] | None, Float[Array, " L"] | None]:
        """Embedding, blocks and final norm."""
        if mask is not None:
            x = jnp.where(mask, x, 0)
        graph, state = nnx.split(self.blocks)
        lengths, since = self.config.segments, None
        if lengths:
            read = jnp.ones(x.shape, bool) if mask is None else mask
            since = points_since_start(read, segments)

        def layer(h: Float[Array, "B T D"], own: Any) -> tuple:
            weights, length = own
            weights = partitioning.gather_fsdp(weights, RULES, "blocks.")
            leaders = None if since is None else leaders_of(since, length)
            h, _, logits, dropped = nnx.merge(graph, weights)(h, mask, segments, leaders)
            h = partitioning.constrain(h, partitioning.BATCH)
            return h, (logits, dropped)

        if policy := REMAT[self.config.remat]:
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        per_layer: tuple
        each = (state, jnp.array(lengths, jnp.int32) if lengths else None)
        h, per_layer = jax.lax.scan(layer, self.embed(x), each)
        return self.norm(h), *per_layer
