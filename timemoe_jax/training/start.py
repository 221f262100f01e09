"""How a run starts: its newest checkpoint, another model, or new parameters."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from timemoe_jax.checkpoints.load import LoadedModel, load_model
from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.checkpoints.trees import json_copy
from timemoe_jax.errors import CheckpointError, ConfigError
from timemoe_jax.models.base import Family, abstract_model, create_params, family_of
from timemoe_jax.runtime.partitioning import BATCH
from timemoe_jax.runtime.progress import say
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.step import TrainState, abstract_state, create_state


def check_fits(config: RunConfig, mesh: Mesh) -> None:
    """Refuses a mesh that does not divide a model or its batch; the error has both numbers."""
    model, train, size = config.model, config.train, mesh.shape
    batch = train.batch_size // train.gradient_accumulation
    parts = math.prod(size[axis] for axis in BATCH)
    micro = " / train.gradient_accumulation" if train.gradient_accumulation > 1 else ""
    checks = [(f"train.batch_size{micro}", batch, "mesh.data x mesh.fsdp x mesh.expert", parts)]
    for name, n, axis in family_of(model).dimensions(model):
        if n == 1 < size[axis]:
            raise ConfigError(f"mesh.{axis} is {size[axis]}, but {name}")
        checks.append((name, n, f"mesh.{axis}", size[axis]))
    wrong = [f"{a} ({n}) is not a multiple of {b} ({m})" for a, n, b, m in checks if n % m]
    if wrong:
        raise ConfigError("; ".join(wrong))


def start_or_resume(
    config: RunConfig, mesh: jax.sharding.Mesh, saved: Checkpoints, batches: Any
) -> TrainState:
    """The newest checkpoint of the run, else `init_from`, else a fresh initialization."""
    if saved.steps():
        abstract = abstract_state(config, mesh)
        _check_same_model(config, saved)
        step, params, opt_state, extra = saved.restore(
            params=abstract.params, opt_state=abstract.opt_state, data_iterator=batches
        )
        say(f"resuming at step {step:,} from {saved.folder}")
        counts = (np.asarray(n, np.int32) for n in (step, extra["skipped"]))
        step_, skipped = (jax.device_put(n, abstract.step.sharding) for n in counts)
        return TrainState(step_, params, opt_state, skipped)
    if not config.train.init_from:
        return create_state(config, mesh=mesh)
    loaded = load_model(config.train.init_from)
    then, now = dataclasses.asdict(loaded.config), dataclasses.asdict(config.model)
    family = family_of(config.model)
    addable = family.addable_fields
    added = {name: now[name] for name in addable if now[name] and not then.get(name)}
    fitting = {name: now[name] for name in family.convertible_fields}
    differing = _differing({**then, **added, **fitting}, now, _free_fields(family))
    if differing:
        raise ConfigError(
            f"train.init_from: {loaded.source} is another model; it has {', '.join(differing)} "
            "in config.model"
        )
    fitted = family.converted(loaded.params, loaded.config, config.model)
    loaded = dataclasses.replace(loaded, params=fitted)
    params = _with_parts(loaded, config, tuple(added)) if added else loaded.params
    return create_state(config, params, mesh)


def _with_parts(loaded: LoadedModel, config: RunConfig, names: Sequence[str]) -> nnx.State:
    """Adds to loaded parameters those of the parts that they lack, as a new model has them."""
    old = dict(nnx.to_flat_state(loaded.params))
    paths = [path for path, _ in nnx.to_flat_state(abstract_model(config.model)[1])]
    lacking = [path for path in paths if path not in old]

    def create() -> list[Any]:
        # The compiler leaves out what is not returned, which is almost all of a large model.
        new = dict(nnx.to_flat_state(create_params(config.model, config.seed)))
        return [new[path] for path in lacking]

    fresh = dict(zip(lacking, jax.jit(create)(), strict=True))
    count = sum(value.size for value in jax.tree.leaves(fresh))
    which = " and ".join(f"model.{name}" for name in names)
    say(f"{loaded.source} has no parameters for {which}; these {count:,} start anew")
    return nnx.from_flat_state([*old.items(), *fresh.items()])


def _check_same_model(config: RunConfig, saved: Checkpoints) -> None:
    """Refuses to resume a run of another model; other changes are the user's, and are named."""
    then, now = saved.stored_config(), json_copy(dataclasses.asdict(config))
    # A field that was not there yet had its default.
    model = {**dataclasses.asdict(type(config.model)()), **then.get("model", {})}
    free = _free_fields(family_of(config.model))
    differing = _differing(json_copy(model), now["model"], free)
    if differing:
        raise CheckpointError(
            f"{saved.folder} is of another model; it has {', '.join(differing)} in this config: "
            "give another workdir"
        )
    for section in ("model", "loss", "data", "optimizer", "train", "mesh"):
        fields = dataclasses.fields(getattr(config, section))
        renamed = getattr(getattr(config, section), "RENAMED", {})
        held = {renamed.get(name, name): value for name, value in then.get(section, {}).items()}
        before = {field.name: field.default for field in fields} | held
        for change in _differing(json_copy(before), now[section]):
            say(f"resuming with a changed config: {section} had {change} now")
    if then.get("seed") != now["seed"]:
        say(f"resuming with a changed config: seed was {then.get('seed')}")


def _free_fields(family: Family) -> frozenset[str]:
    """Model fields under which parameters stay those of the same model."""
    return frozenset((*family.compute_fields, *family.free_fields))


def _differing(
    then: Mapping[str, Any], now: Mapping[str, Any], free: frozenset[str] = frozenset()
) -> list[str]:
    """The fields in which two sections differ, but for free ones, with both values."""
    names = sorted(set(now) - free)
    return [f"{n} {then.get(n)} but {now[n]}" for n in names if then.get(n) != now[n]]
