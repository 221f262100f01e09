"""The optimizer: clipping, AdamW or Muon, and the learning rate over time."""

import functools
from typing import Any

import jax
import optax
from flax import nnx

from timemoe_jax.models.base import Family, family_of
from timemoe_jax.training.config import OptimizerConfig, RunConfig


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate: linear from 0 over the warm-up, then down to the floor at `num_steps`.

    It falls by a cosine or, with `schedule` "stable", linearly within the last `decay_steps` alone
    (arXiv 2405.18392).
    """
    if config.schedule == "stable":
        peak, decay = config.learning_rate, config.decay_steps
        parts = [
            optax.linear_schedule(0.0, peak, config.warmup_steps),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, config.end_learning_rate, decay),
        ]
        return optax.join_schedules(parts, [config.warmup_steps, num_steps - decay])
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=num_steps,
        end_value=config.end_learning_rate,
    )


def make_optimizer(config: RunConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW (arXiv 1711.05101) or Muon (arXiv 2502.16982)."""
    optimizer = config.optimizer
    clips = optimizer.clip_norm > 0
    clip = optax.clip_by_global_norm(optimizer.clip_norm) if clips else optax.identity()
    make = {"adamw": _adamw, "muon": _muon}[optimizer.algorithm]
    return optax.chain(clip, make(optimizer, config.train.num_steps, family_of(config.model)))


def _adamw(config: OptimizerConfig, num_steps: int, family: Family) -> optax.GradientTransformation:
    decays = functools.partial(_by_name, family.vectors, False, True)
    return optax.adamw(
        learning_rate_schedule(config, num_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=None if config.weight_decay_exclude == "none" else decays,
    )


def _muon(config: OptimizerConfig, num_steps: int, family: Family) -> optax.GradientTransformation:
    """Orthogonalized momentum for the matrices; for all else Adam, with Nesterov and no decay."""
    rate = learning_rate_schedule(config, num_steps)
    # The last two axes: those of layers and experts come first.
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    others = family.vectors | family.no_matrices
    return optax.contrib.muon(
        lambda step: config.matrix_rate_factor * rate(step),
        beta=config.muon_momentum,
        # An update has the root mean square of one of AdamW, whatever the shape of its matrix.
        consistent_rms=0.2,
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=functools.partial(_by_name, others, None, axes),
        adam_learning_rate=rate,
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
    )


def _by_name(names: frozenset[str], those: Any, others: Any, params: nnx.State) -> Any:
    """One value for the parameters with one of the names in their path, and another for the rest.

    By name, not by rank: a stacked vector has two axes.
    """

    def value(path: tuple[Any, ...], _: Any) -> Any:
        return those if {str(getattr(key, "key", key)) for key in path} & names else others

    return jax.tree_util.tree_map_with_path(value, params)
