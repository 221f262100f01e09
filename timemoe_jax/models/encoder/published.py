"""The published names of what the families of encoders have in common, and their configs."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from timemoe_jax.config import require
from timemoe_jax.models.base import PublishedTensor as Tensor
from timemoe_jax.models.encoder.config import EncoderConfig

# Constructor arguments of the published code that the config has under another name.
RENAMED = {
    "block_size": "max_position_embeddings",
    "patch_width": "patch_size",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "n_experts": "num_experts",
    "top_k_experts": "num_experts_per_tok",
    "rope_theta": "rope_theta",
    "dropout": "dropout",
    "drop_path": "drop_path",
}
# Those that would change the computation if they held anything else.
FIXED: dict[str, Any] = {
    "bias": False,
    "diff_attn": False,
    "fine_tune": True,
    "forecasting": True,
    "headwise_attn_gate": False,
    "is_causal": False,
    "mask_ratio": 0.0,
    "norm_type": "rms",
    "output_head_dropout": 0.0,
    "output_head_type": "mlp",
    "unpatch": "conv",
    "use_input_norm": True,
    "use_qk_norm": False,
}
# Those that say nothing about the parameters or what they compute here.
IGNORED = frozenset({"channels", "n_outputs", "flash_attn", "width_factor", "emb_norm_type"})
_NORMS = {"layer": "group", "rms": "rms"}

LAYER = "backbone.transformer.{i}."


def read_common(
    published: Mapping[str, Any], own: frozenset[str], fixed: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The fields of an `EncoderConfig`, and the names of the arguments that were not understood.

    `own` are the arguments of the family alone, `fixed` those of which one value can be computed.
    """
    for name, value in fixed.items():
        held = published.get(name, value)
        require(held == value, f"config.json: {name} is {held!r}; only {value!r} can be computed")
    needed = ("block_size", "patch_width", "width_factor", "d_model", "d_ff", "n_layer", "n_heads")
    missing = [name for name in needed if name not in published]
    require(not missing, f"config.json lacks {', '.join(missing)}")
    values = {ours: published[theirs] for theirs, ours in RENAMED.items() if theirs in published}
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    for name in ("dropout", "drop_path", "rope_theta"):
        values[name] = float(values.get(name, getattr(EncoderConfig, name)))
    values["num_experts"] = values.get("num_experts") or 0
    values["horizon_lengths"] = (int(published["patch_width"] * published["width_factor"]),)
    norm = published.get("emb_norm_type", "layer")
    require(
        norm in _NORMS, f"config.json: emb_norm_type is {norm!r}; {' or '.join(_NORMS)} is known"
    )
    values["embedding_norm"] = _NORMS[norm]
    unknown = sorted({*published} - {*RENAMED, *fixed, *IGNORED, *own})
    return values, unknown


def write_common(config: EncoderConfig, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments of the published code that all families of encoders have."""
    factor: float = config.step / config.patch_size
    while int(config.patch_size * factor) < config.step:
        factor = math.nextafter(factor, math.inf)
    named = {theirs: getattr(config, ours) for theirs, ours in RENAMED.items()}
    norm = {ours: theirs for theirs, ours in _NORMS.items()}[config.embedding_norm]
    width = int(factor) if factor == int(factor) else factor
    return {**fixed, **named, "emb_norm_type": norm, "width_factor": width}


def attention_tensors(ours: str, theirs: str) -> Iterator[Tensor]:
    """Those of one attention."""
    for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        yield Tensor(f"{ours}.{part}.kernel", f"{theirs}.{name}.weight", True)
        yield Tensor(f"{ours}.{part}.bias", f"{theirs}.{name}.bias")
    yield Tensor(f"{ours}.out.kernel", f"{theirs}.o_proj.weight", True)


def norm_tensors(config: EncoderConfig, ours: str, theirs: str) -> Iterator[Tensor]:
    """Those of a norm after patches."""
    yield Tensor(f"{ours}.scale", f"{theirs}.weight")
    if config.embedding_norm == "group":
        yield Tensor(f"{ours}.bias", f"{theirs}.bias")


def mlp_tensors(ours: str, theirs: str, gated: bool = False) -> Iterator[Tensor]:
    """Those of a feed-forward layer."""
    for part in ("up", "down", *(("gate",) if gated else ())):
        yield Tensor(f"{ours}.{part}.kernel", f"{theirs}.{part}_proj.weight", True)


def common_tensors(config: EncoderConfig) -> Iterator[Tensor]:
    """The tensors around the layers' experts and covariates."""
    yield Tensor("embed.kernel", "t_embedding.embed.weight", True)
    yield from norm_tensors(config, "embed.norm", "t_embedding.norm")
    for i in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{i}", LAYER.format(i=i)
        yield Tensor(f"{ours}.attention_norm.scale", f"{theirs}norm1.weight")
        yield from attention_tensors(f"{ours}.attention", f"{theirs}s_att")
        yield Tensor(f"{ours}.ffn_norm.scale", f"{theirs}norm3.weight")
    yield Tensor("norm.scale", "backbone.final_norm.weight")
    yield Tensor("head.out.kernel", "head.e_head.out_proj.weight", True)
    yield Tensor("head.unpatch", "head.unpatch.unpatch.0.weight")
    yield Tensor("head.smooth", "head.unpatch.unpatch.2.weight", True)
    yield Tensor("head.norm.scale", "head.unpatch.unpatch.3.weight")
    yield Tensor("head.norm.bias", "head.unpatch.unpatch.3.bias")
    yield Tensor("head.narrow", "head.unpatch.unpatch.4.weight", True)
    yield Tensor("head.last", "head.unpatch.unpatch.6.weight", True)
