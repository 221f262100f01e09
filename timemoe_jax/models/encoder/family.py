"""What an encoder gives to the rest of the library."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from timemoe_jax.models.base import Dimension, Family
from timemoe_jax.models.encoder.config import COMPUTE_FIELDS, TRAINING_FIELDS, EncoderConfig


class EncoderFamily(Family):
    """What the families of encoders share. JAX is imported where it is needed."""

    encoder = True
    compute_fields = COMPUTE_FIELDS
    free_fields = (*TRAINING_FIELDS, *Family.free_fields)
    addable_fields = ()
    float32 = r"norm|router|experts\.fourier"
    no_matrices = frozenset({"embed", "router", "covariates"})
    grows: ClassVar[bool]  # whether a context shorter than the window grows while it is forecast

    def for_inference(self, config: EncoderConfig, dtype: str) -> EncoderConfig:
        """Dropout is drawn by a key alone, which a forecast has none of."""
        return dataclasses.replace(config, dtype=dtype)

    def rules(self) -> Any:
        """See `models.encoder.sharding`."""
        from timemoe_jax.models.encoder.sharding import RULES

        return RULES

    def decode(self, model: Any, x: Any, mask: Any, horizon: int, marks: Any = None) -> Any:
        """A window that slides over its own forecast."""
        from timemoe_jax.models.encoder.decoding import decode

        return decode(model, x, mask, horizon, grows=self.grows, marks=marks)

    def idle_parameters(self, config: EncoderConfig, params: Any) -> int:
        """Those of the routed experts that a token does not choose."""
        if not config.num_experts:
            return 0
        import jax

        blocks = params["blocks"]
        layers = [blocks[i] for i in range(config.num_hidden_layers)]
        held = sum(p.size for each in layers for p in jax.tree.leaves(each["ffn"]["experts"]))
        # Experts of several kinds differ in size: this counts an average one.
        return held * (config.num_experts - config.num_experts_per_tok) // config.num_experts

    def experts_per_token(self, config: EncoderConfig) -> int:
        """K of every layer."""
        return config.num_experts_per_tok if config.num_experts else 0

    def router_loss_factor(self, config: Any) -> float:
        """`router_aux_loss_factor`."""
        return config.router_aux_loss_factor

    def bytes_per_series(self, config: EncoderConfig, context: int, horizon: int) -> int:
        """The points of the head, which are of the width of a token, and the scores of a layer."""
        import jax.numpy as jnp

        size = min(context + horizon, config.max_position_embeddings)
        tokens = size // config.patch_size + 1
        head = 3 * size * config.hidden_size
        block = tokens * (6 * config.hidden_size + 3 * config.intermediate_size)
        scores = config.num_attention_heads * tokens**2
        return jnp.dtype(config.dtype).itemsize * (head + block) + 4 * scores

    def shortest_context(self, config: EncoderConfig) -> int:
        """A patch and a step, in whole patches."""
        return config.shortest

    def dimensions(self, config: EncoderConfig) -> Sequence[Dimension]:
        """Widths, heads and experts."""
        dimensions = [
            Dimension("model.hidden_size", config.hidden_size, "fsdp"),
            Dimension("model.hidden_size", config.hidden_size, "tensor"),
            Dimension("model.num_attention_heads", config.num_attention_heads, "tensor"),
            Dimension("model.num_key_value_heads", config.num_key_value_heads, "tensor"),
            Dimension("model.intermediate_size", config.intermediate_size, "tensor"),
        ]
        if not config.num_experts:
            return [*dimensions, Dimension("model.num_experts is 0", 1, "expert")]
        return [*dimensions, Dimension("model.num_experts", config.num_experts, "expert")]

    def choices(self, config: EncoderConfig, length: int, segmented: bool) -> list[str]:
        """Which experts "auto" chooses."""
        from timemoe_jax.nn.experts import compute

        if not config.num_experts:
            return []
        asked = config.expert_implementation
        return [f"experts: {compute.resolve(asked)} ({asked})"]
