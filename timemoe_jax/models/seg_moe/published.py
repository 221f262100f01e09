"""Seg-MoE as it is published: its constructor's arguments and the names of its tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

from timemoe_jax.config import from_mapping, require
from timemoe_jax.models.base import PublishedFormat
from timemoe_jax.models.base import PublishedTensor as Tensor
from timemoe_jax.models.encoder.published import (
    FIXED,
    LAYER,
    common_tensors,
    mlp_tensors,
    read_common,
    write_common,
)
from timemoe_jax.models.seg_moe.config import SegMoeConfig

_FIXED = {**FIXED, "glu": False, "experts_type": "mlp", "ffn_type": "mlp"}
_OWN = frozenset({"exp_segment_size", "exp_route_dropout", "exp_route_temperature"})


class SegMoeFormat(PublishedFormat):
    """The published folders of Seg-MoE."""

    model_type = "seg_moe"

    def recognizes(self, published: Mapping[str, Any]) -> bool:
        """Whether a config.json has the argument that no other model has."""
        return "exp_segment_size" in published

    def read_config(self, published: Mapping[str, Any]) -> tuple[SegMoeConfig, list[str]]:
        """The typed config, and the names of the arguments that were not understood."""
        values, unknown = read_common(published, _OWN, _FIXED)
        segments = published["exp_segment_size"]
        layers = values["num_hidden_layers"]
        # One for each layer; the published code takes a longer list, too.
        values["segment_lengths"] = (
            [segments] if isinstance(segments, int) else list(segments)[:layers]
        )
        values["router_dropout"] = float(published.get("exp_route_dropout", 0.1))
        values["router_temperature"] = float(published.get("exp_route_temperature", 1.0))
        return from_mapping(SegMoeConfig, {**values, "family": "seg_moe"}, "config.json"), unknown

    def write_config(self, config: SegMoeConfig) -> dict[str, Any]:
        """The constructor's arguments; a ConfigError if the published code has no such model."""
        require(
            config.expert_scope == "token",
            f"expert_scope is {config.expert_scope!r}; the published code computes 'token' alone",
        )
        require(
            config.router_scope == "segment",
            f"router_scope is {config.router_scope!r}; the published code computes 'segment' alone",
        )
        require(
            config.top1_weight == "probability" or config.num_experts_per_tok > 1,
            f"top1_weight is {config.top1_weight!r}; the published code weights a single expert by "
            "the router's 'probability'",
        )
        lengths = config.segment_lengths
        return {
            **write_common(config, _FIXED),
            "exp_segment_size": lengths[0] if len(lengths) == 1 else list(lengths),
            "exp_route_dropout": config.router_dropout,
            "exp_route_temperature": config.router_temperature,
        }

    def tensors(self, config: SegMoeConfig) -> Iterator[Tensor]:
        """The published name of every parameter."""
        yield from common_tensors(config)
        for i in range(config.num_hidden_layers):
            ours, theirs = f"blocks.{i}.ffn", f"{LAYER.format(i=i)}moeff"
            yield from mlp_tensors(f"{ours}.shared", f"{theirs}.shared_expert")
            if not config.num_experts:
                continue
            yield Tensor(f"{ours}.router.kernel", f"{theirs}.gating.weight", True)
            yield Tensor(f"{ours}.shared_gate.kernel", f"{theirs}.shared_gating.weight", True)
            inner = ".1" if config.segment_of(i) > 1 else ""
            for part in ("up", "down"):
                name = f"{theirs}.experts.{{expert}}{inner}.{part}_proj.weight"
                yield Tensor(f"{ours}.experts.gelu.{part}", name, True)

    def axis_sizes(self, config: SegMoeConfig) -> dict[str, int]:
        """Experts are stacked."""
        return {"expert": config.num_experts}
