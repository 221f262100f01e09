"""A training run: data, updates, log, checkpoints, and going on where it was stopped.

A run is determined by its config. Killed at any moment and started again with the same command, it
ends with the parameters that it would have had: the newest checkpoint carries the parameters, the
optimiser state and the position in the data, and nothing else influences an update.
"""

import collections
import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from timemoe_jax import checkpoint
from timemoe_jax.config import COMPUTE_FIELDS, RunConfig
from timemoe_jax.data import pipeline
from timemoe_jax.data.sources import SequenceSource, open_source
from timemoe_jax.data.synthetic import SyntheticSource
from timemoe_jax.data.windows import WindowIndex, WindowSource
from timemoe_jax.errors import CheckpointError, ConfigError, TimeMoeError
from timemoe_jax.logs import Meter, MetricsLog, progress_bar
from timemoe_jax.models.time_moe import count_parameters
from timemoe_jax.train_step import (
    Metrics,
    TrainState,
    create_state,
    make_train_step,
    make_validation,
)


class TrainingError(TimeMoeError, ArithmeticError):
    """The run cannot go on: too many updates in a row were not finite."""


class RunResult(NamedTuple):
    """How a run ended."""

    state: TrainState
    step: int
    stopped: bool  # by a signal, before the last step
    checkpoints: Path


def run(config: RunConfig, workdir: str | os.PathLike[str]) -> RunResult:
    """Trains until `config.train.num_steps`, from the newest checkpoint in `workdir` if any.

    Writes `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `config.json` there. SIGTERM saves
    a checkpoint and returns.

    Raises:
      ConfigError, DataError, CheckpointError: what was given cannot be used.
      TrainingError: `max_nonfinite_in_row` updates in a row were not finite.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    data = _open_data(config)
    print(_summary(config, data), flush=True)
    as_json = json.loads(json.dumps(dataclasses.asdict(config)))
    folder = workdir / "checkpoints"
    with checkpoint.Checkpoints(folder, config.train.keep_checkpoints, as_json) as saved:
        batches = iter(_dataset(data.train, config, train=True))
        state = _start(config, saved, batches)
        (workdir / "config.json").write_text(json.dumps(as_json, indent=2) + "\n")
        log = MetricsLog(workdir, int(state.step))
        try:
            with _StopSignal() as stop:
                loop = _Loop(config, data, saved, log)
                state = loop.run(state, batches, stop)
        finally:
            log.close()
    step = int(state.step)
    return RunResult(state, step, step < config.train.num_steps, folder)


class _Data(NamedTuple):
    train: WindowSource
    validation: WindowSource | None


def _open_data(config: RunConfig) -> _Data:
    data = config.data
    if data.path:
        source = open_source(data.path)
    else:
        source = SyntheticSource(data.synthetic_sequences, data.synthetic_length, config.seed)
    held_out: SequenceSource | None = None
    if data.validation_path:
        held_out = open_source(data.validation_path)
    elif data.validation_fraction:
        ids = pipeline.split_sequences(len(source), data.validation_fraction, config.seed)
        source, held_out = (pipeline.SubsetSource(source, part) for part in ids)
    validation = None if held_out is None else _windows(held_out, config)
    return _Data(_windows(source, config), validation)


def _windows(source: SequenceSource, config: RunConfig) -> WindowSource:
    stride = config.data.stride or config.data.length
    return WindowSource(source, WindowIndex(source.lengths, config.data.length, stride))


def _dataset(windows: WindowSource, config: RunConfig, train: bool) -> Any:
    return pipeline.make_dataset(
        windows,
        batch_size=config.train.batch_size,
        seed=config.seed,
        shuffle=train and config.data.shuffle,
        repeat=train,
        num_threads=config.data.num_threads,
    )


def _summary(config: RunConfig, data: _Data) -> str:
    """What the run is about to do, for the console."""
    total, activated = count_parameters(config.model)
    train = pipeline.describe(data.train.source, data.train.index, config.train.batch_size)
    lines = [
        f"model: {total:,} parameters, {activated:,} activated",
        f"training data: {train}",
    ]
    if data.validation is not None:
        lines.append(f"validation: {len(data.validation):,} windows")
    lines.append(f"total updates: {config.train.num_steps:,}")
    return "\n".join(lines)


def _start(config: RunConfig, saved: checkpoint.Checkpoints, batches: Any) -> TrainState:
    """The newest checkpoint of the run, else `init_from`, else a fresh initialisation."""
    if saved.steps():
        abstract = jax.eval_shape(lambda: create_state(config))
        _check_same_model(config, saved)
        step, params, opt_state, extra = saved.restore(
            params=abstract.params, opt_state=abstract.opt_state, data_iterator=batches
        )
        print(f"resuming at step {step:,} from {saved.folder}", flush=True)
        counts = (jnp.asarray(n, jnp.int32) for n in (step, extra["skipped"]))
        return TrainState(next(counts), params, opt_state, next(counts))
    if not config.train.init_from:
        return create_state(config)
    loaded = checkpoint.load_model(config.train.init_from)
    differing = _differing(dataclasses.asdict(loaded.config), dataclasses.asdict(config.model))
    if differing:
        raise ConfigError(
            f"train.init_from: {loaded.source} is another model; it has {', '.join(differing)} "
            "in config.model"
        )
    return create_state(config, loaded.params)


# Model fields under which the same parameters still compute the same function, or start from
# another initialisation or objective.
_FREE_FIELDS = frozenset(
    (*COMPUTE_FIELDS, "apply_aux_loss", "router_aux_loss_factor", "initializer_range")
)


def _check_same_model(config: RunConfig, saved: checkpoint.Checkpoints) -> None:
    """Refuses to resume a run of another model; other changes are the user's, and are named."""
    then, now = saved.stored_config(), json.loads(json.dumps(dataclasses.asdict(config)))
    differing = _differing(then.get("model", {}), now["model"])
    if differing:
        raise CheckpointError(
            f"{saved.folder} is of another model; it has {', '.join(differing)} in this config: "
            "give another workdir"
        )
    for section in ("model", "loss", "data", "optimizer", "train", "mesh"):
        for change in _differing(then.get(section, {}), now[section], free=frozenset()):
            print(f"resuming with a changed config: {section} had {change} now", flush=True)
    if then.get("seed") != now["seed"]:
        print(f"resuming with a changed config: seed was {then.get('seed')}", flush=True)


def _differing(
    then: Mapping[str, Any], now: Mapping[str, Any], free: frozenset[str] = _FREE_FIELDS
) -> list[str]:
    """The fields in which two sections differ, but for free ones, with both values."""
    names = sorted(set(now) - free)
    return [f"{n} {then.get(n)} but {now[n]}" for n in names if then.get(n) != now[n]]


class _StopSignal:
    """Notices SIGTERM, so that the loop can save and leave between two updates."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "_StopSignal":
        self._previous = None
        # Only the main thread may set handlers; elsewhere whoever owns the process decides.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


class _Step(NamedTuple):
    """An update that was dispatched, before its result is looked at."""

    step: int
    metrics: Metrics
    sequences: np.ndarray


class _Loop:
    """Updates, and what happens every so many of them."""

    def __init__(
        self,
        config: RunConfig,
        data: _Data,
        saved: checkpoint.Checkpoints,
        log: MetricsLog,
    ):
        self._config = config
        self._data = data
        self._saved = saved
        self._log = log
        self._step = make_train_step(config)
        self._validation = make_validation(config)
        self._interval: list[dict[str, np.ndarray]] = []
        self._in_row = 0  # updates skipped since the last one that was not
        self._skipped = 0
        self._meter = Meter()

    def run(self, state: TrainState, batches: Iterator[Any], stop: _StopSignal) -> TrainState:
        """Updates until the last step or a stop, and saves at the end."""
        train = self._config.train
        start = step = int(state.step)
        self._skipped = int(state.skipped)
        pending: _Step | None = None
        with progress_bar(total=train.num_steps, initial=step, unit="step") as bar:
            while step < train.num_steps and not stop.requested:
                batch = next(batches)
                arrays = {name: batch[name] for name in ("values", "mask")}
                state, metrics = self._step(state, arrays)
                step += 1
                # One update behind, so that the device never waits for the host.
                self._observe(pending, bar)
                pending = _Step(step, metrics, batch["sequence"])
                saving = step % train.checkpoint_every == 0
                validating = train.eval_every > 0 and step % train.eval_every == 0
                if saving or validating:
                    self._observe(pending, bar)
                    pending = None
                if validating:
                    self._validate(step, state)
                if saving:
                    self._save(step, state, batches)
            self._observe(pending, bar)
        validated = train.eval_every > 0 and step % train.eval_every == 0
        if start < step == train.num_steps and not validated:
            self._validate(step, state)
        self._save(step, state, batches)
        if stop.requested:
            print(f"stopped by SIGTERM at step {step:,}; saved", flush=True)
        return state

    def _save(self, step: int, state: TrainState, batches: Iterator[Any]) -> None:
        extra = {"skipped": int(state.skipped)}
        self._saved.save(step, state.params, state.opt_state, batches, extra)

    def _observe(self, done: _Step | None, bar: tqdm) -> None:
        """Looks at the result of an update: counts it, checks it, logs it."""
        if done is None:
            return
        metrics = {name: np.asarray(value) for name, value in done.metrics.items()}
        bar.update(1)
        if metrics.pop("finite"):
            self._in_row = 0
        else:
            self._report_skipped(done, metrics)
        self._interval.append(metrics)
        self._meter.add(float(metrics["points"]))
        if self._meter.rate() == 0:
            self._meter.restart()
        loss, rate = float(metrics["loss"]), float(metrics["learning_rate"])
        bar.set_postfix_str(f"loss {loss:.4f}, lr {rate:.2e}, {self._meter.rate():,.0f} points/s")
        if done.step % self._config.train.log_every == 0:
            self._write_interval(done.step)

    def _report_skipped(self, done: _Step, metrics: dict[str, np.ndarray]) -> None:
        """Names the sequences of a batch whose loss or gradient was not finite."""
        self._skipped += 1
        self._in_row += 1
        ids = [i for i in np.unique(done.sequences) if i >= 0]
        names = ", ".join(self._data.train.source.name(int(i)) for i in ids[:8])
        more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
        tqdm.write(
            f"step {done.step}: update skipped (loss {metrics['loss']}, gradient norm "
            f"{metrics['gradient_norm']}); the batch holds {names}{more}",
            file=sys.stderr,
        )
        limit = self._config.train.max_nonfinite_in_row
        if self._in_row >= limit:
            raise TrainingError(
                f"{limit} updates in a row were not finite, the last at step {done.step} with "
                f"{names}{more}; lower optimizer.learning_rate or look at those sequences"
            )

    def _write_interval(self, step: int) -> None:
        """Logs the means over the updates since the last record."""
        names = [name for name in self._interval[0] if name != "points"]
        values = {name: _finite_mean([m[name] for m in self._interval]) for name in names}
        values["learning_rate"] = self._interval[-1]["learning_rate"]
        values["points_per_second"] = np.asarray(self._meter.rate())
        values["skipped_updates"] = np.asarray(self._skipped)
        self._log.write(step, values)
        terms = ", ".join(
            f"{name} {float(values[name]):.4f}" for name in ("loss", "balancing_loss")
        )
        tqdm.write(
            f"step {step:,}/{self._config.train.num_steps:,}: {terms}, gradient norm "
            f"{float(values['gradient_norm']):.3f}, lr {float(values['learning_rate']):.2e}, "
            f"{float(values['points_per_second']):,.0f} points/s",
            file=sys.stdout,
        )
        self._interval.clear()
        self._meter.restart()

    def _validate(self, step: int, state: TrainState) -> None:
        """Logs the mean loss of each head over the held-out windows."""
        if self._data.validation is None:
            return
        sums: dict[str, float] = collections.defaultdict(float)
        dataset = _dataset(self._data.validation, self._config, train=False)
        for batch in itertools.islice(dataset, self._config.train.eval_batches):
            arrays = {name: batch[name] for name in ("values", "mask")}
            for name, value in self._validation(state.params, arrays).items():
                sums[name] += float(value)
        horizons = self._config.model.horizon_lengths
        each = {p: sums[f"sum_{p}"] / max(sums[f"count_{p}"], 1.0) for p in horizons}
        mean = sum(each.values()) / len(each)
        values = {"validation_loss": mean, **{f"validation_loss_{p}": v for p, v in each.items()}}
        self._log.write(step, values)
        tqdm.write(f"step {step:,}: validation loss {mean:.4f}", file=sys.stdout)
        self._meter.restart()


def _finite_mean(values: list[np.ndarray]) -> np.ndarray:
    """The mean over those that are finite throughout; not a number when none is."""
    finite = [value for value in values if np.isfinite(value).all()]
    return np.mean(finite, axis=0) if finite else np.full(values[0].shape, np.nan)
