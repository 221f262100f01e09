"""A training run: data, updates, log, checkpoints, and going on where it was stopped.

A run is determined by its config. Killed at any moment and started again with the same command, it
ends with the parameters that it would have had: the newest checkpoint carries the parameters, the
optimizer state and the position in the data, and nothing else influences an update.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax

from timemoe_jax.checkpoints.store import CHECKPOINTS, Checkpoints
from timemoe_jax.checkpoints.trees import json_copy
from timemoe_jax.data.pipeline.training_data import TrainingData, open_training_data
from timemoe_jax.models.base import count_parameters, family_of
from timemoe_jax.runtime import distributed, partitioning
from timemoe_jax.runtime.progress import say
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.loop import Loop, StopSignal, Trace, make_batches
from timemoe_jax.training.metrics_log import MetricsLog
from timemoe_jax.training.start import check_fits, start_or_resume
from timemoe_jax.training.step import TrainState, compile_train_step
from timemoe_jax.training.workdir import claimed_workdir, what_next, writing


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
    if asked to. SIGTERM saves a checkpoint and returns; Ctrl-C saves one and raises. Of several
    processes (`distributed`) each calls this with the same arguments; they share the workdir. The
    mesh is of the given devices, by default all of all processes.

    Raises:
      ConfigError, DataError, CheckpointError: what was given cannot be used.
      WorkdirError: another run writes to the workdir, or the disk takes nothing more.
      TrainingError: `max_nonfinite_in_row` updates in a row were not finite.
      KeyboardInterrupt: Ctrl-C. With a message, which says at what step, everything is saved.
    """
    mesh = partitioning.make_mesh(config.mesh, devices)
    check_fits(config, mesh)
    workdir = Path(workdir)
    stop = StopSignal()
    with claimed_workdir(workdir):
        step, state = _train(config, mesh, workdir, stop)
    stopped = step < config.train.num_steps
    if stopped:
        line = f"stopped by {stop.name or 'SIGTERM'} at step {step:,}; saved"
        if stop.interrupted:
            raise KeyboardInterrupt(f"{line}; run the same command again to resume")
        say(line)
    else:
        say(what_next(workdir))
    return RunResult(state, step, stopped, workdir / CHECKPOINTS)


def _train(
    config: RunConfig, mesh: jax.sharding.Mesh, workdir: Path, stop: StopSignal
) -> tuple[int, TrainState]:
    """Everything between the two ends of a run; returns the step that it has come to."""
    data = open_training_data(
        config.data,
        seed=config.seed,
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
    )
    say(_summary(config, data, mesh))
    as_json = json_copy(dataclasses.asdict(config))
    with Checkpoints(workdir / CHECKPOINTS, config.train.keep_checkpoints, as_json) as saved:
        batches = iter(make_batches(data.train, config, mesh, True, data.mixture))
        state = start_or_resume(config, mesh, saved, batches)
        update = compile_train_step(config, mesh)
        say(memory_plan(update))
        log = None
        if distributed.is_primary():
            with writing(workdir):
                text = json.dumps(as_json, indent=2) + "\n"
                (workdir / "config.json").write_text(text, encoding="utf-8")
            log = MetricsLog(workdir, int(state.step))
        trace = Trace(config.profile, workdir / "profile")
        with ExitStack() as ending:
            if log is not None:
                ending.push(log.close_after)
            ending.callback(trace.close)
            with stop, partitioning.use_mesh(mesh):
                loop = Loop(config, mesh, update, data, saved, log, trace)
                state = loop.run(state, batches, stop)
    return int(state.step), state


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
    family, segmented = family_of(config.model), config.data.segmented
    lines[1:1] = family.choices(config.model, config.data.length, segmented)
    if data.validation is not None:
        lines.append(f"validation: {len(data.validation):,} windows")
    lines.append(f"total updates: {config.train.num_steps:,}")
    return "\n".join(lines)


def memory_plan(update: jax.stages.Compiled) -> str:
    """How much memory an update takes on each device, as the compiler planned it."""
    plan = update.memory_analysis()
    if plan is None:  # a backend that does not tell
        return "memory per device: not known before it is used"
    held = plan.argument_size_in_bytes
    most = held + plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return (
        f"memory per device: {most / 2**20:,.0f} MiB while updating, of which {held / 2**20:,.0f} "
        f"MiB parameters, optimizer and batch, {plan.temp_size_in_bytes / 2**20:,.0f} MiB temporary"
    )
