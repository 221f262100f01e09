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

from timemoe_jax import checkpoint, distributed, partitioning
from timemoe_jax.config import COMPUTE_FIELDS, ModelConfig, RunConfig
from timemoe_jax.data import pipeline
from timemoe_jax.data.mixing import SourcePart, plan_mixture
from timemoe_jax.data.packing import PackedIndex, PackedSource
from timemoe_jax.data.sequence_source import SequenceSource
from timemoe_jax.data.sources import open_source
from timemoe_jax.data.synthetic import SyntheticSource
from timemoe_jax.data.windows import WindowIndex, Windows, WindowSource
from timemoe_jax.errors import CheckpointError, ConfigError
from timemoe_jax.logs import MetricsLog
from timemoe_jax.models.time_moe import abstract_model, count_parameters
from timemoe_jax.nn import attention, experts
from timemoe_jax.train_loop import Data, Loop, StopSignal, Trace, make_batches, say
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
    data = _open_data(config)
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


def _open_data(config: RunConfig) -> Data:
    data = config.data
    source: SequenceSource
    if data.path:
        source, parts = pipeline.open_parts(data.path)
    else:
        source = SyntheticSource(data.synthetic_sequences, data.synthetic_length, config.seed)
        parts = [SourcePart("synthetic", "generated", 0, len(source))]
    held_out: SequenceSource | None = None
    if data.validation_path:
        held_out = open_source(data.validation_path)
    elif data.validation_fraction:
        ids = pipeline.split_sequences(len(source), data.validation_fraction, config.seed)
        source, held_out = (pipeline.SubsetSource(source, part) for part in ids)
        parts = pipeline.subset_parts(parts, ids[0])
    # Never packed, so that losses can be compared between policies.
    validation = None if held_out is None else _windows(held_out, config)
    packing = data.policy == "packing"
    train = _packed(source, parts, config) if packing else _windows(source, config)
    draws = config.train.num_steps * config.train.batch_size
    return Data(train, validation, plan_mixture(parts, train.index, data, draws))


def _windows(source: SequenceSource, config: RunConfig) -> Windows:
    stride = config.data.stride or config.data.length
    return WindowSource(source, WindowIndex(source.lengths, config.data.length, stride))


def _packed(source: SequenceSource, parts: Sequence[SourcePart], config: RunConfig) -> Windows:
    seed = config.seed if config.data.shuffle else None
    groups = [part.stop - part.first for part in parts]
    index = PackedIndex(source.lengths, config.data.length, seed, groups)
    return PackedSource(source, index, config.data.packing_bleeds)


def _summary(config: RunConfig, data: Data, mesh: jax.sharding.Mesh) -> str:
    """What the run is about to do, for the console."""
    total, activated = count_parameters(config.model)
    train = pipeline.describe(data.train.source, data.train.index, config.train.batch_size)
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    device = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    lines = [
        f"model: {total:,} parameters, {activated:,} activated, {config.model.dtype}",
        f"devices: {device}" + (f", mesh {axes}" if axes else ""),
        f"training data: {train}",
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
    if config.model.router_bias and not loaded.config.router_bias:
        loaded = _with_router_bias(loaded)
    differing = _differing(dataclasses.asdict(loaded.config), dataclasses.asdict(config.model))
    if differing:
        raise ConfigError(
            f"train.init_from: {loaded.source} is another model; it has {', '.join(differing)} "
            "in config.model"
        )
    return create_state(config, loaded.params, mesh)


def _with_router_bias(loaded: checkpoint.LoadedModel) -> checkpoint.LoadedModel:
    """The same function: biases that have not moved yet."""
    model = dataclasses.replace(loaded.config, router_bias=True)
    old: Any = loaded.params
    new: Any = abstract_model(model)[1]
    bias = new["blocks"]["ffn"]["selection_bias"]
    old["blocks"]["ffn"]["selection_bias"] = bias.replace(np.zeros(bias.shape, np.float32))
    return dataclasses.replace(loaded, config=model)


# Model fields under which the same parameters still compute the same function, or start from
# another initialisation or objective.
_FREE_FIELDS = frozenset(
    (*COMPUTE_FIELDS, "apply_aux_loss", "router_aux_loss_factor", "initializer_range")
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
