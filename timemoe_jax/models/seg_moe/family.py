"""What Seg-MoE gives to the rest of the library."""

import dataclasses
from typing import Any

from timemoe_jax.models.base import count_parameters, with_parameters
from timemoe_jax.models.encoder.family import EncoderFamily
from timemoe_jax.models.seg_moe.config import TRAINING_FIELDS, SegMoeConfig
from timemoe_jax.models.seg_moe.published import SegMoeFormat


class SegMoeFamily(EncoderFamily):
    """Seg-MoE: an encoder of patches whose experts see time in segments."""

    name = "seg_moe"
    config = SegMoeConfig
    published = SegMoeFormat()
    free_fields = (*TRAINING_FIELDS, *EncoderFamily.free_fields)
    grows = True

    def make(self, config: SegMoeConfig, rngs: Any) -> Any:
        """A model with the published initial parameters."""
        import jax.numpy as jnp

        from timemoe_jax.models.encoder.model import Encoder, expert_options
        from timemoe_jax.nn.experts.segments import SegmentMoe
        from timemoe_jax.nn.patches import Mlp, uniform

        dtype = jnp.dtype(config.dtype)

        def layer(i: int) -> SegmentMoe:
            s, size, width = config.segment_of(i), config.hidden_size, config.intermediate_size
            return SegmentMoe(
                size,
                width,
                Mlp(s * size, s * width, dtype=dtype, rngs=rngs),
                kinds=("gelu",) * config.num_experts,
                segment=s,
                whole=config.expert_scope == "segment",
                each_token=config.router_scope == "token",
                num_experts_per_tok=config.num_experts_per_tok,
                renormalize=config.renormalizes,
                temperature=config.router_temperature,
                dropout=config.dropout,
                router_dropout=config.router_dropout,
                init=uniform,
                dtype=dtype,
                options=expert_options(config),
                rngs=rngs,
            )

        return Encoder(config, layer, rngs=rngs)

    def router_loss_factor(self, config: SegMoeConfig) -> float:
        """The published share of an expert is one of choices, not of decisions: / K."""
        return config.router_aux_loss_factor / config.num_experts_per_tok

    def resized(
        self, config: SegMoeConfig, hidden_size: int, num_layers: int, num_heads: int
    ) -> SegMoeConfig:
        """The layers' segments are those of the first ones, and of the last for further layers."""
        lengths = config.segment_lengths
        if len(lengths) > 1:
            lengths = (*lengths, *(lengths[-1:] * num_layers))[:num_layers]
        width = round(hidden_size * config.intermediate_size / config.hidden_size)
        return dataclasses.replace(
            config,
            hidden_size=hidden_size,
            intermediate_size=max(1, width),
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads,
            segment_lengths=lengths,
        )

    def dense_like(self, config: SegMoeConfig) -> SegMoeConfig:
        """Without experts: only the width of the feed-forward layers differs."""

        def dense(width: int) -> SegMoeConfig:
            return dataclasses.replace(config, num_experts=0, intermediate_size=width)

        return with_parameters(dense, count_parameters(config)[1], 1)

    def token_routed(self, config: SegMoeConfig, equal: str = "") -> SegMoeConfig:
        """Segments of one token, and experts of another width where parameters are to be equal."""
        if not equal:
            return dataclasses.replace(config, router_scope="token")

        def routed(width: int) -> SegMoeConfig:
            return dataclasses.replace(config, segment_lengths=(1,), intermediate_size=width)

        which = ("total", "activated").index(equal)
        return with_parameters(routed, count_parameters(config)[which], which)


FAMILY = SegMoeFamily()
