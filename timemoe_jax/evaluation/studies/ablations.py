"""What each ablation changes of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from timemoe_jax.models.base import family_of
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


def _token_routed(equal: str) -> Any:
    def routed(run: RunConfig) -> RunConfig:
        model = family_of(run.model).token_routed(run.model, equal)
        return dataclasses.replace(run, model=model)

    return routed


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
    "dense": lambda run: dataclasses.replace(run, model=family_of(run.model).dense_like(run.model)),
    "token_routing": _token_routed(""),
    "token_activated": _token_routed("activated"),
    "token_total": _token_routed("total"),
}
