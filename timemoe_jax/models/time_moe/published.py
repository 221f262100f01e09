"""Time-MoE as it is published: its `config.json` and the names of its tensors, both directions."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from timemoe_jax.config import from_mapping, require
from timemoe_jax.models.base import PublishedFormat
from timemoe_jax.models.base import PublishedTensor as Tensor
from timemoe_jax.models.time_moe.config import COMPUTE_FIELDS, INITIALIZATION_FIELDS, TimeMoeConfig

# Fields of a published config.json that say nothing about the computation.
_IGNORED_PUBLISHED = frozenset(
    ("architectures", "auto_map", "model_type", "torch_dtype", "transformers_version")
    + ("use_cache", "_name_or_path", "tie_word_embeddings", "hidden_act", "attention_dropout")
    + ("input_size",)
)
# Those of them that would change the computation if they held anything else.
_FIXED_PUBLISHED: dict[str, Any] = {
    "model_type": "time_moe",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "input_size": 1,
}
_UNPUBLISHED = (
    *COMPUTE_FIELDS,
    "family",
    *("router_bias", "shared_expert", "quantile_levels", "forecast_plan", "default_context"),
    "mirrored",
    *("patch_size", "point_heads", "asinh", "copy_lags", "anchored", "weighed", "slower"),
    *("smoothed", "segment_lengths"),
    *INITIALIZATION_FIELDS,
)
# What a model must have to be published, and why.
_ONLY_PUBLISHED: dict[str, tuple[Any, str]] = {
    "router_bias": (False, "the published format has no such bias"),
    "shared_expert": (True, "the published format has no model without a shared expert"),
    "segments": ((), "in the published implementation every point makes its own choice"),
    "quantile_levels": ((), "the published format has no heads for them"),
    "forecast_plan": ("fitting", "the published implementation has 'fitting'"),
    "mirrored": (False, "the published implementation reads a series once"),
    "smoothed": (False, "the published implementation forecasts by the network alone"),
    "patch_size": (1, "the published format has no patches"),
    "point_heads": (True, "the published format has heads of points"),
}

_LAYER = "model.layers.{layer}."
_SHARED = (
    Tensor("embed.gate", "model.embed_layer.gate_layer.weight", True),
    Tensor("embed.value", "model.embed_layer.emb_layer.weight", True),
    Tensor("blocks.attention_norm.scale", _LAYER + "input_layernorm.weight"),
    *(
        rule
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
        for rule in (
            Tensor(f"blocks.attention.{ours}.kernel", f"{_LAYER}self_attn.{theirs}.weight", True),
            Tensor(f"blocks.attention.{ours}.bias", f"{_LAYER}self_attn.{theirs}.bias"),
        )
    ),
    Tensor("blocks.attention.out.kernel", _LAYER + "self_attn.o_proj.weight", True),
    Tensor("blocks.ffn_norm.scale", _LAYER + "post_attention_layernorm.weight"),
    Tensor("norm.scale", "model.norm.weight"),
)
_FFN = _LAYER + "ffn_layer."
_SPARSE = (
    Tensor("blocks.ffn.router.kernel", _FFN + "gate.weight", True),
    *(
        Tensor(f"blocks.ffn.experts.{part}", f"{_FFN}experts.{{expert}}.{part}_proj.weight", True)
        for part in ("gate", "up", "down")
    ),
    *(
        Tensor(f"blocks.ffn.shared.{part}.kernel", f"{_FFN}shared_expert.{part}_proj.weight", True)
        for part in ("gate", "up", "down")
    ),
    Tensor("blocks.ffn.shared_gate.kernel", _FFN + "shared_expert_gate.weight", True),
)
_DENSE = tuple(
    Tensor(f"blocks.ffn.{part}.kernel", f"{_FFN}{part}_proj.weight", True)
    for part in ("gate", "up", "down")
)


class TimeMoeFormat(PublishedFormat):
    """The published folders of Time-MoE."""

    model_type = "time_moe"

    def read_config(self, published: Mapping[str, Any]) -> tuple[TimeMoeConfig, list[str]]:
        """The typed config, and the names of the fields that were not understood.

        A field that holds what this library cannot compute, or that is missing, is a `ConfigError`.
        """
        for name, value in _FIXED_PUBLISHED.items():
            require(
                published.get(name, value) == value,
                f"config.json: {name} is {published.get(name)!r}; only {value!r} can be computed",
            )
        known = {f.name for f in dataclasses.fields(TimeMoeConfig)} - {*_UNPUBLISHED}
        needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        missing = [name for name in needed if name not in published]
        require(not missing, f"config.json lacks {', '.join(missing)}: is it a Time-MoE model?")
        values = {name: value for name, value in published.items() if name in known}
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
        unknown = sorted(set(published) - known - _IGNORED_PUBLISHED)
        return from_mapping(TimeMoeConfig, values, "config.json"), unknown

    def write_config(self, config: TimeMoeConfig) -> dict[str, Any]:
        """The `config.json` of a model; a ConfigError if the published code has no such model."""
        for name, (value, reason) in _ONLY_PUBLISHED.items():
            held = getattr(config, name)
            field = "segment_lengths" if name == "segments" else name
            require(held == value, f"{field} is {held!r}; {reason}")
        values = dataclasses.asdict(config)
        for name in _UNPUBLISHED:
            del values[name]
        return {
            "architectures": ["TimeMoeForPrediction"],
            **_FIXED_PUBLISHED,
            **values,
            "horizon_lengths": list(config.horizon_lengths),
            "use_cache": True,
        }

    def tensors(self, config: TimeMoeConfig) -> Iterator[Tensor]:
        """The published name of every parameter."""
        yield from (*_SHARED, *(_DENSE if config.use_dense else _SPARSE))
        for i, p in enumerate(config.horizon_lengths):
            yield Tensor(f"heads.{p}.kernel", f"lm_heads.{i}.out_layer.weight", True)

    def axis_sizes(self, config: TimeMoeConfig) -> dict[str, int]:
        """Blocks are stacked by layer, experts by layer and expert."""
        return {"layer": config.num_hidden_layers, "expert": config.num_experts}
