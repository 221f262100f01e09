"""MoHETS as it is published: its constructor's arguments and the names of its tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from timemoe_jax.config import from_mapping, require
from timemoe_jax.models.base import PublishedFormat
from timemoe_jax.models.base import PublishedTensor as Tensor
from timemoe_jax.models.encoder.published import (
    FIXED,
    LAYER,
    attention_tensors,
    common_tensors,
    mlp_tensors,
    norm_tensors,
    read_common,
    write_common,
)
from timemoe_jax.models.mohets.config import SHARED, MohetsConfig

_FIXED = {**FIXED, "cls_token": False, "mask_type": "mae"}
_OWN = frozenset({"experts_type", "ffn_type", "glu", "multi_modal"})


class MohetsFormat(PublishedFormat):
    """The published folders of MoHETS."""

    model_type = "mohets"

    def recognizes(self, published: Mapping[str, Any]) -> bool:
        """Whether a config.json has the argument that no other model has."""
        return "multi_modal" in published

    def read_config(self, published: Mapping[str, Any]) -> tuple[MohetsConfig, list[str]]:
        """The typed config, and the names of the arguments that were not understood."""
        values, unknown = read_common(published, _OWN, _FIXED)
        held = published["multi_modal"]
        require(
            isinstance(held, bool),
            f"config.json: multi_modal is {held!r}; only true and false can be computed",
        )
        # As in the published code, what is no other type is "fan".
        asked = published.get("experts_type", "fan")
        each = [asked] if isinstance(asked, str) else list(asked)
        each = ["mlp" if str(name).lower() == "mlp" else "fan" for name in each]
        shared = str(published.get("ffn_type", "dwconv")).lower()
        if held:
            require("channels" in published, "config.json lacks channels, which multi_modal needs")
        values |= {
            "experts_type": each[: max(1, values["num_experts"])] if len(each) > 1 else each,
            "shared_type": shared if shared in SHARED else "fan",
            "gated": bool(published.get("glu", False)),
            "covariate_variates": published["channels"] if held else 0,
        }
        return from_mapping(MohetsConfig, {**values, "family": "mohets"}, "config.json"), unknown

    def write_config(self, config: MohetsConfig) -> dict[str, Any]:
        """The constructor's arguments."""
        kinds = config.experts_type
        return {
            **write_common(config, _FIXED),
            "experts_type": kinds[0] if len(kinds) == 1 else list(kinds),
            "ffn_type": config.shared_type,
            "glu": config.gated,
            "multi_modal": config.covariate_variates > 0,
            "channels": config.covariate_variates or 1,
        }

    def tensors(self, config: MohetsConfig) -> Iterator[Tensor]:
        """The published name of every parameter."""
        yield from common_tensors(config)
        if config.covariate_variates:
            names = {"series": "proj_data", "calendar": "proj_time", "fuse": "fuse"}
            for ours, theirs in names.items():
                name = f"c_embedding.covariates.{theirs}.weight"
                yield Tensor(f"covariates.{ours}.kernel", name, True)
            yield Tensor("covariates.patches.kernel", "c_embedding.patchfy.embed.weight", True)
            yield from norm_tensors(config, "covariates.patches.norm", "c_embedding.patchfy.norm")
        for i in range(config.num_hidden_layers):
            ours, theirs = f"blocks.{i}", LAYER.format(i=i)
            if config.covariate_variates:
                yield Tensor(f"{ours}.cross_norm.scale", f"{theirs}norm2.weight")
                yield from attention_tensors(f"{ours}.cross", f"{theirs}c_att")
            yield from _shared(config, f"{ours}.ffn.shared", f"{theirs}ffn.shared_expert")
            if config.num_experts:
                yield Tensor(f"{ours}.ffn.router.kernel", f"{theirs}ffn.gating.weight", True)
                gate = f"{theirs}ffn.shared_gating.weight"
                yield Tensor(f"{ours}.ffn.shared_gate.kernel", gate, True)
                yield from _routed(config, f"{ours}.ffn.experts", f"{theirs}ffn.experts")

    def axis_sizes(self, config: MohetsConfig) -> dict[str, int]:
        """Experts are stacked."""
        return {"expert": config.num_experts}

    def constants(self, config: MohetsConfig) -> dict[str, Any]:
        """The rotary frequencies, which every attention saves."""
        width = config.hidden_size // config.num_attention_heads
        powers = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        frequencies = np.float32(1) / np.float32(config.rope_theta) ** powers
        attentions = ("s_att", "c_att") if config.covariate_variates else ("s_att",)
        return {
            f"{LAYER.format(i=i)}{name}.ropenc.inv_freq": frequencies
            for i in range(config.num_hidden_layers)
            for name in attentions
        }


def _fan(ours: str, theirs: str, first_size: int, experts: tuple[int, ...] = ()) -> Tensor:
    """The two matrices of a Fourier map, side by side."""
    return Tensor(
        ours,
        f"{theirs}.Wp.weight",
        True,
        second=f"{theirs}.Wp_bar.weight",
        first_size=first_size,
        experts=experts,
    )


def _shared(config: MohetsConfig, ours: str, theirs: str) -> Iterator[Tensor]:
    """The shared expert."""
    if config.shared_type == "mlp":
        yield from mlp_tensors(ours, theirs, config.gated)
    elif config.shared_type == "fan":
        quarter = config.intermediate_size // 4
        yield _fan(f"{ours}.up", f"{theirs}.up_fan", quarter)
        yield _fan(f"{ours}.down", f"{theirs}.down_fan", config.hidden_size // 4)
        if config.gated:
            yield _fan(f"{ours}.gate", f"{theirs}.gate_proj", quarter)
    else:
        depthwise = config.shared_type == "dwconv"
        if depthwise:
            yield Tensor(f"{ours}.depthwise", f"{theirs}.dw_conv.weight", True)
        up = "pw_conv" if depthwise else "up_conv"
        yield Tensor(f"{ours}.up", f"{theirs}.{up}.weight", True)
        yield Tensor(f"{ours}.down", f"{theirs}.down_conv.weight", True)
        if config.gated:
            yield Tensor(f"{ours}.gate", f"{theirs}.gate_conv.weight", True)


def _routed(config: MohetsConfig, ours: str, theirs: str) -> Iterator[Tensor]:
    """The routed experts, those of each kind stacked."""
    one = f"{theirs}.{{expert}}"
    for kind in dict.fromkeys(config.kinds):
        own = tuple(i for i, each in enumerate(config.kinds) if each == kind)
        if kind.startswith("fourier"):
            quarter = config.intermediate_size // 4
            yield _fan(f"{ours}.{kind}.up", f"{one}.up_fan", quarter, own)
            yield _fan(f"{ours}.{kind}.down", f"{one}.down_fan", config.hidden_size // 4, own)
            if config.gated:
                yield _fan(f"{ours}.{kind}.gate", f"{one}.gate_proj", quarter, own)
            continue
        # Of a gated one silu is of what is published as "up".
        parts = {"up": "up", "down": "down"}
        parts = {"gate": "up", "up": "gate", "down": "down"} if config.gated else parts
        for part, name in parts.items():
            path = f"{ours}.{kind}.{part}"
            yield Tensor(path, f"{one}.{name}_proj.weight", True, experts=own)
