"""What Time Tracker gives to the rest of the library."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import Dimension, Family
from timemoe_jax.models.time_tracker.config import (
    COMPUTE_FIELDS,
    MIXING_FIELDS,
    TimeTrackerConfig,
)


class TimeTrackerFamily(Family):
    """Time Tracker: joint, of patches. JAX is imported where it is needed."""

    name = "time_tracker"
    config = TimeTrackerConfig
    joint = True
    scoring = "similarity"
    draws = True
    compute_fields = COMPUTE_FIELDS
    free_fields = ("initializer_range", *MIXING_FIELDS, *Family.free_fields)
    addable_fields = ("router_bias", "quantile_levels", "graph_alpha_learned")
    float32 = r"norm|router|selection_bias|attention\.(same|other)$|alpha_logit"
    vectors = Family.vectors | {"same", "other", "alpha_logit"}

    def make(self, config: TimeTrackerConfig, rngs: Any) -> Any:
        """Kernels from a normal distribution, biases 0, norm scales 1."""
        from timemoe_jax.models.time_tracker.model import TimeTracker

        return TimeTracker(config, rngs=rngs)

    def for_inference(self, config: TimeTrackerConfig, dtype: str) -> TimeTrackerConfig:
        """Nothing is computed again without a backward pass."""
        return dataclasses.replace(config, dtype=dtype, remat="none")

    def mixed(
        self, config: TimeTrackerConfig, mixing: str, beside: int = 0, known: int = 0
    ) -> TimeTrackerConfig:
        """Its `mixing` and `known_variates`, which no parameter depends on."""
        mixing = mixing or config.mixing
        if beside and mixing == "none":
            raise ConfigError(
                f"{beside} variates are covariates, but mixing is 'none': no variate would read "
                "them; give mixing 'all' or 'graph'"
            )
        return dataclasses.replace(config, mixing=mixing, known_variates=known)

    def rules(self) -> Any:
        """See `models.time_tracker.sharding`."""
        from timemoe_jax.models.time_tracker.sharding import RULES

        return RULES

    def stride(self, config: TimeTrackerConfig) -> int:
        """Points from one patch to the next."""
        return config.stride

    def least_context(self, config: TimeTrackerConfig) -> int:
        """The points that the links of a training window are found from."""
        return config.graph_points if config.mixing == "graph" else 0

    def scored_variates(self, config: TimeTrackerConfig, count: int) -> int:
        """All but those that are known ahead."""
        return count - config.known_variates

    def decode(self, model: Any, x: Any, mask: Any, horizon: int) -> Any:
        """With the links of the context."""
        from timemoe_jax.models.time_tracker.decoding import decode

        return decode(model, x, mask, horizon)

    def decode_known(self, model: Any, x: Any, mask: Any, horizon: int) -> Any:
        """Variates that are known read ahead by the longest head."""
        from timemoe_jax.models.time_tracker.decoding import decode

        return decode(model, x, mask, horizon, ahead=horizon)

    def link_probability(self, model: Any, x: Any, mask: Any) -> Any:
        """By the last points of the contexts."""
        return model.link_matrix(x, mask)

    def link_threshold(self, config: TimeTrackerConfig) -> float:
        """`graph_threshold`."""
        if config.mixing != "graph":
            raise ConfigError(f"mixing is {config.mixing!r}, so the model has no graph of variates")
        return config.graph_threshold

    def idle_parameters(self, config: TimeTrackerConfig, params: Any) -> int:
        """Those of the routed experts that a patch does not choose."""
        if config.use_dense:
            return 0
        import jax

        experts = sum(p.size for p in jax.tree.leaves(params["blocks"]["ffn"]["experts"]))
        return experts // config.num_experts * (config.num_experts - config.num_experts_per_tok)

    def selection_bias(self, params: Any) -> Any:
        """The variable of a model with `router_bias`."""
        return params["blocks"]["ffn"].get("selection_bias")

    def experts_per_token(self, config: TimeTrackerConfig) -> int:
        """K of every layer."""
        return 0 if config.use_dense else config.num_experts_per_tok

    def bytes_per_series(self, config: TimeTrackerConfig, context: int, horizon: int) -> int:
        """The patches' states in one layer, and their scores in a block."""
        import jax.numpy as jnp

        from timemoe_jax.nn.attention.any_variate import BLOCK_ROWS

        patches = -(-(context + horizon) // config.stride)
        routed = config.num_experts_per_tok * (config.expert_size + config.hidden_size)
        width = 10 * config.hidden_size + 3 * config.shared_size + 3 * routed
        mixed = 2 * BLOCK_ROWS * config.num_attention_heads if config.mixing != "none" else 0
        return jnp.dtype(config.dtype).itemsize * patches * width + 4 * patches * mixed

    def dimensions(self, config: TimeTrackerConfig) -> Sequence[Dimension]:
        """Widths, heads and experts."""
        dimensions = [
            Dimension("model.hidden_size", config.hidden_size, "fsdp"),
            Dimension("model.num_attention_heads", config.num_attention_heads, "tensor"),
            Dimension("model.expert_size", config.expert_size, "tensor"),
        ]
        if config.shared_size:
            dimensions.append(Dimension("model.shared_size", config.shared_size, "tensor"))
        if config.use_dense:
            return [*dimensions, Dimension("model.use_dense has no experts", 1, "expert")]
        return [*dimensions, Dimension("model.num_experts", config.num_experts, "expert")]

    def resized(
        self, config: TimeTrackerConfig, hidden_size: int, num_layers: int, num_heads: int
    ) -> TimeTrackerConfig:
        """Experts are as wide beside the hidden size as before, and as large a part is mixed."""
        return dataclasses.replace(
            config,
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_mixed_layers=round(config.num_mixed_layers / config.num_hidden_layers * num_layers),
            num_attention_heads=num_heads,
            expert_size=max(1, round(config.expert_size * hidden_size / config.hidden_size)),
            shared_size=round(config.shared_size * hidden_size / config.hidden_size),
        )

    def dense_like(self, config: TimeTrackerConfig) -> TimeTrackerConfig:
        """A layer as wide as all experts at work; it lacks the router alone."""
        return dataclasses.replace(config, use_dense=True, router_bias=False)

    def choices(self, config: TimeTrackerConfig, length: int, segmented: bool) -> list[str]:
        """Which attention and which experts "auto" chooses."""
        from timemoe_jax.nn.attention import causal
        from timemoe_jax.nn.experts import compute

        asked, patches = config.attention_implementation, length // config.stride
        chosen = causal.resolve(asked, config.dtype, config.head_dim, patches, segmented=segmented)
        lines = [f"attention: {chosen} ({asked}); mixed: {config.mixing}"]
        if not config.use_dense:
            asked = config.expert_implementation
            lines.append(f"experts: {compute.resolve(asked)} ({asked})")
        return lines


FAMILY = TimeTrackerFamily()
