"""The runs of a study: its base config with something changed."""

import dataclasses
from typing import Any, NamedTuple

from timemoe_jax.errors import ConfigError
from timemoe_jax.evaluation.studies.ablations import ABLATIONS, changed
from timemoe_jax.evaluation.studies.config import KINDS, StudyConfig
from timemoe_jax.models.base import family_of
from timemoe_jax.training.config import RunConfig

_AT_THE_END = {"eval_every": 0, "keep_checkpoints": 1}  # a variant is validated and kept once


class Variant(NamedTuple):
    """One run of a study."""

    name: str  # of its folder
    config: RunConfig
    labels: dict[str, Any]  # what tells it from the others


def scaling_variants(config: StudyConfig) -> list[Variant]:
    """Every size with every number of points, sparse and dense, in the order of their cost.

    Feed-forward layers are as wide, relative to the hidden size, as in the base. Warm-up and decay
    are the same share of each run. Numbers of points are rounded to whole updates.
    """
    base, scaling = config.base, config.scaling
    family = family_of(base.model)
    rates = scaling.learning_rates or (base.optimizer.learning_rate,) * len(scaling.hidden_sizes)
    sizes = zip(scaling.hidden_sizes, scaling.num_layers, scaling.num_heads, rates, strict=True)
    variants = []
    for hidden, layers, heads, rate in sizes:
        sparse = family.resized(base.model, hidden, layers, heads)
        models = {"sparse": sparse, "dense": family.dense_like(sparse)}
        for points in scaling.points:
            for kind in KINDS:
                run = _for_points(dataclasses.replace(base, model=models[kind]), points, rate)
                labels = {"kind": kind, "hidden_size": hidden, "layers": layers, "asked": points}
                variants.append(Variant(f"{kind}_{hidden}x{layers}_{points}", run, labels))
    return variants


def _for_points(run: RunConfig, points: int, rate: float) -> RunConfig:
    steps = max(1, round(points / (run.train.batch_size * run.data.length)))
    optimizer, share = run.optimizer, steps / run.train.num_steps
    floor = optimizer.end_learning_rate * rate / optimizer.learning_rate
    schedule = {
        "learning_rate": rate,
        "end_learning_rate": floor,
        "warmup_steps": int(optimizer.warmup_steps * share),
        "decay_steps": int(optimizer.decay_steps * share),
    }
    return changed(run, optimizer=schedule, train={"num_steps": steps, **_AT_THE_END})


def ablation_variants(config: StudyConfig) -> list[Variant]:
    """Every ablation with every seed, seed by seed, so that a first table comes early.

    If the config names no ablation, those that change nothing of the base are left out. One that
    cannot be applied to the base is a ConfigError.
    """
    ablations, base = config.ablations, config.base
    if ablations.points:
        base = _for_points(base, ablations.points, base.optimizer.learning_rate)
    base = changed(base, train=_AT_THE_END)
    variants = []
    for seed in ablations.seeds:
        full = dataclasses.replace(base, seed=seed)
        for name in ablations.variants or tuple(ABLATIONS):
            try:
                run = ABLATIONS[name](full)
            except ConfigError as error:
                raise ConfigError(f"ablation {name!r} does not fit the base: {error}") from None
            if ablations.variants or name == "full" or run != full:
                variants.append(Variant(f"{name}_seed{seed}", run, {"variant": name, "seed": seed}))
    return variants
