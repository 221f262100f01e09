"""The model that fine-tuning begins with, and what follows from it."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import nnx

from timemoe_jax.checkpoints.load import LoadedModel
from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import ModelConfig, family_of
from timemoe_jax.training.config import OptimizerConfig
from timemoe_jax.training.finetuning.config import FinetuneConfig


class Start(NamedTuple):
    """The model that fine-tuning begins with."""

    config: ModelConfig
    params: nnx.State  # in the dtype they are stored in
    digest: str  # of these: `checksums.weights_digest`
    source: str  # its path or name
    optimizer: Mapping[str, Any] | None = None  # what trained it, where that is known

    @classmethod
    def of(cls, loaded: LoadedModel, name: str) -> "Start":
        """A model that was loaded by a path or a name, which an adapter will look for it by."""
        config = dataclasses.replace(loaded.config, dtype="float32")
        found = os.path.abspath(name) if os.path.exists(name) else name
        return cls(config, loaded.params, loaded.digest, found, loaded.optimizer)


def context_of(model: ModelConfig, config: FinetuneConfig) -> int:
    """How many points a forecast reads: those asked for, or as many as `forecast` reads.

    Raises:
      ConfigError: the model has no positions for them beside the horizon.
    """
    room = model.max_position_embeddings - config.horizon
    context = config.context_length or min(room, model.default_context or room)
    if not 1 <= context <= room:
        raise ConfigError(
            f"context_length {config.context_length} and horizon {config.horizon} exceed "
            f"max_position_embeddings {model.max_position_embeddings}"
        )
    return context


def optimizer_of(start: Start, config: FinetuneConfig) -> OptimizerConfig:
    """The algorithm: that which the model was trained with, if it is not said and known.

    Factors of "lora" are always trained by AdamW, since Muon's matrices are those of layers.
    """
    known = {k: v for k, v in (start.optimizer or {}).items() if k in _KEPT}
    if config.mode == "lora" or config.algorithm == "adamw" or not known:
        known = {k: v for k, v in known.items() if k in ("b1", "b2")}
    if config.algorithm == "muon" and config.mode != "lora":
        known["algorithm"] = "muon"
    return OptimizerConfig(**known)


def loss_of(model: ModelConfig, config: FinetuneConfig) -> str:
    """The loss that "auto" stands for, or the one that is said.

    Raises:
      ConfigError: heads that say quantiles alone are to be trained by the error of a point.
    """
    if family_of(model).has_point_heads(model):
        return "huber" if config.loss == "auto" else config.loss
    if config.loss not in ("auto", "pinball"):
        raise ConfigError(
            f"loss is {config.loss!r}, but the heads of this model say quantiles alone, of which "
            "the median is the point; leave it at 'auto', which is 'pinball' here"
        )
    return "pinball"


_KEPT = ("algorithm", "matrix_rate_factor", "b1", "b2")
