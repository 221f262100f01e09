"""Time-MoE as it is published: its `config.json` and the names of its tensors."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from timemoe_jax.config import from_mapping, require
from timemoe_jax.models.time_moe.config import COMPUTE_FIELDS, INITIALISATION_FIELDS, ModelConfig

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
    *("router_bias", "shared_expert", "quantile_levels", "forecast_plan", "default_context"),
    *INITIALISATION_FIELDS,
)


def model_config_from_published(published: Mapping[str, Any]) -> tuple[ModelConfig, list[str]]:
    """Reads a published `config.json`.

    Args:
      published: the parsed JSON object.

    Returns:
      the typed configuration, and the names of the fields that were not understood.

    Raises:
      ConfigError: a field holds what this library cannot compute, or a needed one is missing.
    """
    for name, value in _FIXED_PUBLISHED.items():
        require(
            published.get(name, value) == value,
            f"config.json: {name} is {published.get(name)!r}; only {value!r} can be computed",
        )
    known = {f.name for f in dataclasses.fields(ModelConfig)} - {*_UNPUBLISHED}
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    missing = [name for name in needed if name not in published]
    require(not missing, f"config.json lacks {', '.join(missing)}: is it a Time-MoE model?")
    values = {name: value for name, value in published.items() if name in known}
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    unknown = sorted(set(published) - known - _IGNORED_PUBLISHED)
    return from_mapping(ModelConfig, values, "config.json"), unknown


def model_config_to_published(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` under which the published implementation loads these weights.

    Raises:
      ConfigError: the published implementation does not have such a model.
    """
    require(not config.router_bias, "router_bias is True; the published format has no such bias")
    require(
        config.shared_expert,
        "shared_expert is False; the published format has no model without a shared expert",
    )
    require(
        not config.quantile_levels,
        f"quantile_levels is {config.quantile_levels}; the published format has no heads for them",
    )
    require(
        config.forecast_plan == "fitting",
        f"forecast_plan is {config.forecast_plan!r}; the published implementation has 'fitting'",
    )
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


class Rule(NamedTuple):
    """How one parameter is named in a published file, and which axes of it are turned."""

    path: str  # of the parameter, dotted
    name: str  # of the tensors; {layer} and {expert} run over the leading axes
    transpose: bool = False


_LAYER = "model.layers.{layer}."
_RULES = (
    Rule("embed.gate", "model.embed_layer.gate_layer.weight", True),
    Rule("embed.value", "model.embed_layer.emb_layer.weight", True),
    Rule("blocks.attention_norm.scale", _LAYER + "input_layernorm.weight"),
    *(
        rule
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
        for rule in (
            Rule(f"blocks.attention.{ours}.kernel", f"{_LAYER}self_attn.{theirs}.weight", True),
            Rule(f"blocks.attention.{ours}.bias", f"{_LAYER}self_attn.{theirs}.bias"),
        )
    ),
    Rule("blocks.attention.out.kernel", _LAYER + "self_attn.o_proj.weight", True),
    Rule("blocks.ffn_norm.scale", _LAYER + "post_attention_layernorm.weight"),
    Rule("norm.scale", "model.norm.weight"),
)
_FFN = _LAYER + "ffn_layer."
_MOE_RULES = (
    Rule("blocks.ffn.router.kernel", _FFN + "gate.weight", True),
    *(
        Rule(f"blocks.ffn.experts.{part}", f"{_FFN}experts.{{expert}}.{part}_proj.weight", True)
        for part in ("gate", "up", "down")
    ),
    *(
        Rule(f"blocks.ffn.shared.{part}.kernel", f"{_FFN}shared_expert.{part}_proj.weight", True)
        for part in ("gate", "up", "down")
    ),
    Rule("blocks.ffn.shared_gate.kernel", _FFN + "shared_expert_gate.weight", True),
)
_DENSE_RULES = tuple(
    Rule(f"blocks.ffn.{part}.kernel", f"{_FFN}{part}_proj.weight", True)
    for part in ("gate", "up", "down")
)


def rules_of(config: ModelConfig) -> Iterator[Rule]:
    """Every rule that applies to a model."""
    yield from (*_RULES, *(_DENSE_RULES if config.use_dense else _MOE_RULES))
    for i, p in enumerate(config.horizon_lengths):
        yield Rule(f"heads.{p}.kernel", f"lm_heads.{i}.out_layer.weight", True)
