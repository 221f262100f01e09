"""What Time-MoE gives to the rest of the library."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import Dimension, Family, count_parameters, with_parameters
from timemoe_jax.models.time_moe.config import (
    COMPUTE_FIELDS,
    INITIALIZATION_FIELDS,
    TimeMoeConfig,
)
from timemoe_jax.models.time_moe.published import TimeMoeFormat


class TimeMoeFamily(Family):
    """Time-MoE: a decoder over single points, univariate. JAX is imported where it is needed."""

    name = "time_moe"
    config = TimeMoeConfig
    published = TimeMoeFormat()
    compute_fields = COMPUTE_FIELDS
    free_fields = (
        *INITIALIZATION_FIELDS,
        *("initializer_range", "apply_aux_loss", "router_aux_loss_factor", "segment_lengths"),
        *("slower", "smoothed"),
        *Family.free_fields,
    )
    addable_fields = ("router_bias", "quantile_levels", "copy_lags", "anchored", "weighed")
    silent_fields: ClassVar[Mapping[str, str]] = {
        "copy_lags": r"^copy_(embed|heads)\.",
        "anchored": r"^anchor_heads\.",
    }
    convertible_fields = ("patch_size", "rope_theta")

    def make(self, config: TimeMoeConfig, rngs: Any) -> Any:
        """A model with the published initial parameters."""
        from timemoe_jax.models.time_moe.model import TimeMoe

        return TimeMoe(config, rngs=rngs)

    def converted(self, params: Any, then: TimeMoeConfig, config: TimeMoeConfig) -> Any:
        """Reads shorter patches as the last points of longer ones, whose first ones are missing."""
        size, longer = config.patch_size, then.patch_size
        if size == longer:
            return params
        if not 1 < size < longer:
            raise ConfigError(
                f"model.patch_size is {size}, but the model to go on from has patches of {longer}; "
                f"they can be made shorter, to 2 points at least, and not longer"
            )
        if then.copy_lags:
            raise ConfigError(
                f"model.patch_size is {size}, but the model to go on from has patches of {longer} "
                f"and copy_lags {then.copy_lags}; its factors of copies are of its own patches"
            )
        import jax.numpy as jnp
        from flax import nnx

        flat = dict(nnx.to_flat_state(params))
        for layer in ("inner", "skip"):
            kernel = flat["patch_embed", layer, "kernel"]
            points, marks = kernel[...][:longer], kernel[...][longer:]
            rows = jnp.concatenate([points[-size:], marks[-size:]])
            flat["patch_embed", layer, "kernel"] = kernel.replace(rows)
        return nnx.from_flat_state(list(flat.items()))

    def for_inference(self, config: TimeMoeConfig, dtype: str) -> TimeMoeConfig:
        """Nothing is computed again without a backward pass."""
        return dataclasses.replace(config, dtype=dtype, remat="none")

    def rules(self) -> Any:
        """See `models.time_moe.sharding`."""
        from timemoe_jax.models.time_moe.sharding import RULES

        return RULES

    def decode(self, model: Any, x: Any, mask: Any, horizon: int) -> Any:
        """With a key/value cache; long contexts are read at two rates, short ones smoothed."""
        from timemoe_jax.models.time_moe.decoding import decode
        from timemoe_jax.models.time_moe.rates import decode_at_rates
        from timemoe_jax.nn import smoothing

        config = model.config
        each = functools.partial(decode, model)
        near = config.default_context
        said = decode_at_rates(each, x, mask, horizon, near, config.slower)
        return type(said)(*smoothing.beside(*said, x, mask)) if config.smoothed else said

    def stride(self, config: TimeMoeConfig) -> int:
        """A position for each patch."""
        return config.patch_size

    def has_point_heads(self, config: TimeMoeConfig) -> bool:
        """As the config says."""
        return config.point_heads

    def squashes(self, config: TimeMoeConfig) -> bool:
        """As the config says."""
        return config.asinh

    def idle_parameters(self, config: TimeMoeConfig, params: Any) -> int:
        """Those of the routed experts that a token does not choose (Table 2 of the paper)."""
        if config.use_dense:
            return 0
        import jax

        experts = sum(p.size for p in jax.tree.leaves(params["blocks"]["ffn"]["experts"]))
        return experts // config.num_experts * (config.num_experts - config.num_experts_per_tok)

    def selection_bias(self, params: Any) -> Any:
        """The variable of a model with `router_bias`."""
        return params["blocks"]["ffn"].get("selection_bias")

    def experts_per_token(self, config: TimeMoeConfig) -> int:
        """K of every layer."""
        return 0 if config.use_dense else config.num_experts_per_tok

    def router_loss_factor(self, config: TimeMoeConfig) -> float:
        """`router_aux_loss_factor` where `apply_aux_loss` asks for it."""
        return config.router_aux_loss_factor if config.apply_aux_loss else 0.0

    def bytes_per_series(self, config: TimeMoeConfig, context: int, horizon: int) -> int:
        """The cache, and the rows of one layer."""
        import jax.numpy as jnp

        from timemoe_jax.models.decoding import horizon_plan
        from timemoe_jax.nn import copies

        plan = horizon_plan(horizon, config.horizon_lengths, config.forecast_plan)
        if config.slower > 1:
            context = min(context, config.default_context)
        context = -(-context // config.patch_size)
        positions = context + sum(plan[:-1]) // config.patch_size
        kv_size = config.num_key_value_heads * config.head_dim
        cache = 2 * config.num_hidden_layers * positions * kv_size
        routed = 0 if config.use_dense else 2 * config.num_experts_per_tok * config.hidden_size
        width = 3 * config.intermediate_size + 8 * config.hidden_size + routed
        # What is kept of short lags, in float32.
        lags = 4 * context * 12 * copies.AHEAD if config.copy_lags else 0
        return jnp.dtype(config.dtype).itemsize * (cache + context * width) + lags

    def dimensions(self, config: TimeMoeConfig) -> Sequence[Dimension]:
        """Widths, heads and experts."""
        dimensions = [
            Dimension("model.hidden_size", config.hidden_size, "fsdp"),
            Dimension("model.num_attention_heads", config.num_attention_heads, "tensor"),
            Dimension("model.num_key_value_heads", config.num_key_value_heads, "tensor"),
            Dimension("model.intermediate_size", config.intermediate_size, "tensor"),
        ]
        if config.use_dense:
            return [*dimensions, Dimension("model.use_dense has no experts", 1, "expert")]
        width = "the width of an expert, model.intermediate_size / model.num_experts_per_tok"
        return [
            *dimensions,
            Dimension("model.num_experts", config.num_experts, "expert"),
            Dimension(width, config.expert_size, "tensor"),
        ]

    def resized(
        self, config: TimeMoeConfig, hidden_size: int, num_layers: int, num_heads: int
    ) -> TimeMoeConfig:
        """A sparse model; feed-forward layers are as wide beside the hidden size as before."""
        top = config.num_experts_per_tok
        width = round(hidden_size * config.intermediate_size / config.hidden_size / top)
        return dataclasses.replace(
            config,
            hidden_size=hidden_size,
            intermediate_size=top * max(1, width),
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads,
            use_dense=False,
            # Those of the first layers, and of the last one for further layers.
            segment_lengths=(config.segments + config.segments[-1:] * num_layers)[:num_layers],
        )

    def dense_like(self, config: TimeMoeConfig) -> TimeMoeConfig:
        """Only the width of the feed-forward layers differs."""

        def dense(width: int) -> TimeMoeConfig:
            return dataclasses.replace(
                config,
                use_dense=True,
                router_bias=False,
                shared_expert=True,
                segment_lengths=(),
                intermediate_size=width,
            )

        return with_parameters(dense, count_parameters(config)[1], 1)

    def token_routed(self, config: TimeMoeConfig, equal: str = "") -> TimeMoeConfig:
        """No parameter depends on the lengths, so that all are equal whatever is asked."""
        return dataclasses.replace(config, segment_lengths=())

    def choices(self, config: TimeMoeConfig, length: int, segmented: bool) -> list[str]:
        """Which attention and which experts "auto" chooses."""
        from timemoe_jax.nn.attention import causal
        from timemoe_jax.nn.experts import compute

        asked = config.attention_implementation
        chosen = causal.resolve(asked, config.dtype, config.head_dim, length, segmented=segmented)
        lines = [f"attention: {chosen} ({asked})"]
        if not config.use_dense:
            asked = config.expert_implementation
            lines.append(f"experts: {compute.resolve(asked)} ({asked})")
        return lines


FAMILY = TimeMoeFamily()
