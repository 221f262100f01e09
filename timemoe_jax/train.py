"""A training run: data, updates, log, checkpoints, and going on where it was stopped.

A run is determined by its config. Killed at any moment and started again with the same command, it
ends with the parameters that it would have had: the newest checkpoint carries the parameters, the
optimiser state and the position in the data, and nothing else influences an update.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from timemoe_jax import checkpoint, distributed, partitioning
from timemoe_jax.config import COMPUTE_FIELDS, INITIALISATION_FIELDS, ModelConfig, RunConfig
from timemoe_jax.data.training_data import TrainingData, open_training_data
from timemoe_jax.errors import CheckpointError, ConfigError
from timemoe_jax.logs import MetricsLog
from timemoe_jax.models.time_moe import abstract_model, count_parameters, create_params
from timemoe_jax.nn import attention, experts
from timemoe_jax.train_loop import Loop, StopSignal, Trace, make_batches, say
from timemoe_jax.train_step import (
    TrainState,
    abstract_state,
    compile_train_step,
    create_state,
)


class RunResult(NamedTuple):
    """How a run ended."""

    state: TrainState
    step: int
    stopped: bool  # by a signal, before the last step
    checkpoints: Path


def run(
    config: RunConfig,
    workdir: str | os.PathLike[str],
    devices: Sequence[jax.Device] | None = None,
) -> RunResult:
    """Trains until `config.train.num_steps`, from the newest checkpoint in `workdir` if any.

    Writes `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `config.json` there, and `profile/`
    if asked to. SIGTERM saves a checkpoint and returns. Of several processes (`distributed`) each
    calls this with the same arguments.

    Args:
      config: of the run.
      workdir: where it writes; shared by all processes.
      devices: for the mesh; by default all of all processes.

    Raises:
      ConfigError, DataError, CheckpointError: what was given cannot be used.
      TrainingError: `max_nonfinite_in_row` updates in a row were not finite.
    """
    mesh = partitioning.make_mesh(config.mesh, devices)
    partitioning.check_fits(config, mesh)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    data = open_training_data(
        config.data,
        seed=config.seed,
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
    )
    say(_summary(config, data, mesh))
    as_json = json.loads(json.dumps(dataclasses.asdict(config)))
    folder = workdir / "checkpoints"
    with checkpoint.Checkpoints(folder, config.train.keep_checkpoints, as_json) as saved:
        batches = iter(make_batches(data.train, config, mesh, True, data.mixture))
        state = _start(config, mesh, saved, batches)
        update = compile_train_step(config, mesh)
        say(_memory(update))
        log = None
        if distributed.is_primary():
            (workdir / "config.json").write_text(json.dumps(as_json, indent=2) + "\n")
            log = MetricsLog(workdir, int(state.step))
        trace = Trace(config.profile, workdir / "profile")
        try:
            with StopSignal() as stop, partitioning.using(mesh):
                loop = Loop(config, mesh, update, data, saved, log, trace)
                state = loop.run(state, batches, stop)
        finally:
            trace.close()
            if log is not None:
                log.close()
    step = int(state.step)
    return RunResult(state, step, step < config.train.num_steps, folder)


def _summary(config: RunConfig, data: TrainingData, mesh: jax.sharding.Mesh) -> str:
    """What the run is about to do, for the console."""
    total, activated = count_parameters(config.model)
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    device = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    lines = [
        f"model: {total:,} parameters, {activated:,} activated, {config.model.dtype}",
        f"devices: {device}" + (f", mesh {axes}" if axes else ""),
        f"training data: {data.summary}",
        f"mixture: {data.mixture}",
    ]
    lines[1:1] = _implementations(config)
    if data.validation is not None:
        lines.append(f"validation: {len(data.validation):,} windows")
    lines.append(f"total updates: {config.train.num_steps:,}")
    return "\n".join(lines)


def _implementations(config: RunConfig) -> list[str]:
    """What "auto" stands for here."""
    model, asked = config.model, config.model.attention_implementation
    segmented = config.data.segmented
    chosen = attention.resolve(
        asked, model.dtype, model.head_dim, config.data.length, segmented=segmented
    )
    lines = [f"attention: {chosen} ({asked})"]
    if not model.use_dense:
        asked = model.expert_implementation
        lines.append(f"experts: {experts.resolve(asked)} ({asked})")
    return lines


def _memory(update: jax.stages.Compiled) -> str:
    """What an update takes on each device, as the compiler planned it."""
    plan = update.memory_analysis()
    if plan is None:  # a backend that does not tell
        return "memory per device: not known before it is used"
    held = plan.argument_size_in_bytes
    most = held + plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return (
        f"memory per device: {most / 2**20:,.0f} MiB while updating, of which {held / 2**20:,.0f} "
        f"MiB parameters, optimiser and batch, {plan.temp_size_in_bytes / 2**20:,.0f} MiB temporary"
    )


def _start(
    config: RunConfig, mesh: jax.sharding.Mesh, saved: checkpoint.Checkpoints, batches: Any
) -> TrainState:
    """The newest checkpoint of the run, else `init_from`, else a fresh initialisation."""
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
    loaded = checkpoint.load_model(config.train.init_from)
    then, now = dataclasses.asdict(loaded.config), dataclasses.asdict(config.model)
    added = {name: now[name] for name in _ADDABLE if now[name] and not then[name]}
    differing = _differing({**then, **added}, now)
    if differing:
        raise ConfigError(
            f"train.init_from: {loaded.source} is another model; it has {', '.join(differing)} "
            "in config.model"
        )
    params = _with_parts(loaded, config, tuple(added)) if added else loaded.params
    return create_state(config, params, mesh)


def _with_parts(
    loaded: checkpoint.LoadedModel, config: RunConfig, names: Sequence[str]
) -> nnx.State:
    """The loaded parameters, and those of parts it lacks as a new model has them."""
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


# Parts that a trained model may be given: it computes the same point forecasts with them.
_ADDABLE = ("router_bias", "quantile_levels")
# Model fields under which the same parameters still compute the same function, start from another
# initialisation or objective, or forecast by other heads of the same.
_FREE_FIELDS = frozenset(
    (*COMPUTE_FIELDS, *INITIALISATION_FIELDS, "initializer_range")
    + ("apply_aux_loss", "router_aux_loss_factor", "forecast_plan", "default_context")
)


def _check_same_model(config: RunConfig, saved: checkpoint.Checkpoints) -> None:
    """Refuses to resume a run of another model; other changes are the user's, and are named."""
    then, now = saved.stored_config(), json.loads(json.dumps(dataclasses.asdict(config)))
    # A field that was not there yet had its default.
    model = {**dataclasses.asdict(ModelConfig()), **then.get("model", {})}
    differing = _differing(json.loads(json.dumps(model)), now["model"])
    if differing:
        raise CheckpointError(
            f"{saved.folder} is of another model; it has {', '.join(differing)} in this config: "
            "give another workdir"
        )
    for section in ("model", "loss", "data", "optimizer", "train", "mesh"):
        fields = dataclasses.fields(getattr(config, section))
        before = {field.name: field.default for field in fields} | then.get(section, {})
        before = json.loads(json.dumps(before))
        for change in _differing(before, now[section], free=frozenset()):
            say(f"resuming with a changed config: {section} had {change} now")
    if then.get("seed") != now["seed"]:
        say(f"resuming with a changed config: seed was {then.get('seed')}")


def _differing(
    then: Mapping[str, Any], now: Mapping[str, Any], free: frozenset[str] = _FREE_FIELDS
) -> list[str]:
    """The fields in which two sections differ, but for free ones, with both values."""
    names = sorted(set(now) - free)
    return [f"{n} {then.get(n)} but {now[n]}" for n in names if then.get(n) != now[n]]
