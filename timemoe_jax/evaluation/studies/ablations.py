"""What each ablation changes of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from timemoe_jax.models.time_moe.config import ModelConfig
from timemoe_jax.models.time_moe.model import count_parameters
from timemoe_jax.training.config import RunConfig

# Larger than any error of a standardized value, so that Huber is half the square everywhere.
QUADRATIC = 1e6


def changed(run: RunConfig, **sections: Mapping[str, Any]) -> RunConfig:
    """A run with other fields in some of its sections: `changed(run, train={"num_steps": 3})`."""
    parts: dict[str, Any] = {
        name: dataclasses.replace(getattr(run, name), **fields) for name, fields in sections.items()
    }
    return dataclasses.replace(run, **parts)


def _model(**fields: Any) -> Any:
    return lambda run: changed(run, model=fields)


ABLATIONS: Mapping[str, Any] = {
    "full": lambda run: run,
    "mse_loss": lambda run: changed(run, loss={"huber_delta": QUADRATIC}),
    "no_balancing_loss": _model(apply_aux_loss=False),
    "router_bias": _model(router_bias=True),
    "heads_1": _model(horizon_lengths=(1,)),
    "heads_1_8": _model(horizon_lengths=(1, 8)),
    "heads_1_8_32": _model(horizon_lengths=(1, 8, 32)),
    "heads_1_8_32_64": _model(horizon_lengths=(1, 8, 32, 64)),
    "head_32": _model(horizon_lengths=(32,)),
    "top_1": _model(num_experts_per_tok=1),
    "top_2": _model(num_experts_per_tok=2),
    "top_4": _model(num_experts_per_tok=4),
    "no_shared_expert": _model(shared_expert=False),
    "dense": lambda run: dataclasses.replace(run, model=equally_activated_dense(run.model)),
}


def equally_activated_dense(model: ModelConfig) -> ModelConfig:
    """The dense model that is nearest to the parameters that a sparse one activates.

    Only the width of its feed-forward layers differs; `count_parameters` says how near it is.
    """

    def dense(width: int) -> ModelConfig:
        return dataclasses.replace(
            model, use_dense=True, router_bias=False, shared_expert=True, intermediate_size=width
        )

    # Parameters are linear in the width, so two counts give all of them.
    one, two = (count_parameters(dense(width))[1] for width in (1, 2))
    wanted = count_parameters(model)[1]
    return dense(max(1, round(1 + (wanted - one) / (two - one))))
