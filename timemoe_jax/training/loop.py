"""The loop of a run: updates, and what happens every so many of them."""

import collections
import itertools
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.data.pipeline.batches import make_dataset
from timemoe_jax.data.pipeline.mixing import Mixture, share_metrics
from timemoe_jax.data.pipeline.training_data import TrainingData
from timemoe_jax.data.pipeline.windows import Windows
from timemoe_jax.errors import TimeMoeError, listed
from timemoe_jax.runtime import distributed, partitioning
from timemoe_jax.runtime.progress import progress_bar, say
from timemoe_jax.training.config import ProfileConfig, RunConfig
from timemoe_jax.training.metrics_log import Meter, MetricsLog
from timemoe_jax.training.objective import Batch, Metrics, heads_read
from timemoe_jax.training.step import TrainState, batch_arrays, make_validation


class TrainingError(TimeMoeError, ArithmeticError):
    """The run cannot go on: too many updates in a row were not finite."""


def make_batches(
    windows: Windows,
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    train: bool,
    mixture: Mixture | None = None,
) -> Any:
    """The share that this process has of each batch of the run.

    Validation batches are shuffled too, always alike, so that the first of them cover all series.
    """
    index, count = partitioning.process_share(mesh)
    return make_dataset(
        windows,
        batch_size=config.train.batch_size // count,
        seed=config.seed,
        shuffle=config.data.shuffle,
        repeat=train,
        num_threads=config.data.num_threads,
        process_index=index,
        process_count=count,
        mixture=mixture,
    )


class StopSignal:
    """Notices SIGTERM and Ctrl-C (SIGINT), so that the loop can save and leave between two updates.

    With several processes JAX listens to SIGTERM, and each asks the others:
    `distributed.stop_requested`; a Ctrl-C in one of them is passed on as that. A second Ctrl-C
    does not wait for an update, but interrupts at once.
    """

    def __init__(self) -> None:
        self.name = ""  # of the first signal that came

    def __enter__(self) -> "StopSignal":
        self._previous: dict[int, Any] = {}
        # Only the main thread may set handlers; elsewhere whoever owns the process decides.
        if threading.current_thread() is threading.main_thread():
            own = [] if distributed.is_distributed() else [signal.SIGTERM]
            # A shell has its background jobs ignore Ctrl-C.
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                own.append(signal.SIGINT)
            self._previous = {number: signal.signal(number, self._handle) for number in own}
        return self

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        if signum == signal.SIGINT and self.interrupted:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(signum).name
        if signum == signal.SIGINT and distributed.is_distributed():
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        """Whether it was Ctrl-C that came first."""
        return self.name == signal.SIGINT.name

    def after(self, step: int) -> bool:
        """Whether to stop after this update; every process asks after every update."""
        if distributed.is_distributed():
            return distributed.stop_requested(step)  # at one step in all
        return bool(self.name)


class Trace:
    """Records the updates that the config asks for, for TensorBoard and Perfetto."""

    def __init__(self, config: ProfileConfig, folder: Path):
        self._first, self._last = config.start, config.start + config.num_steps
        self._folder = folder
        self._running = False

    def before(self, update: int) -> None:
        """Starts the trace before its first update; updates are numbered from 0."""
        if self._first <= update < self._last and not self._running:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def after(self, update: int, result: Any) -> None:
        """Ends the trace once the result of its last update is there."""
        if self._running and update + 1 == self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes what was recorded, if anything."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            say(f"trace of {self._last - self._first} updates in {self._folder}")


class _Step(NamedTuple):
    """An update that was dispatched, before its result is looked at."""

    step: int
    metrics: Metrics
    sequences: np.ndarray
    mixed: np.ndarray  # points of each label of the mixture


class Loop:
    """Runs updates, and what happens every so many of them; only one process has a log."""

    def __init__(
        self,
        config: RunConfig,
        mesh: jax.sharding.Mesh,
        update: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
        data: TrainingData,
        saved: Checkpoints | None,
        log: MetricsLog | None,
        trace: Trace,
        quiet: bool = False,
    ):
        self._quiet = quiet  # nothing is printed
        self._ended = False  # before the last step, by what a validation says
        self._config = config
        self._mesh = mesh
        self._update = update
        self._data = data
        self._saved = saved
        self._log = log
        self._trace = trace
        self._validation: Callable[..., Metrics] | None = None
        self._interval: list[dict[str, np.ndarray]] = []
        self._mixed = np.zeros(len(data.mixture.labels))  # points since the last record
        self._in_row = 0  # updates skipped since the last one that was not
        self._skipped = 0
        self._meter = Meter()

    def run(self, state: TrainState, batches: Iterator[Any], stop: StopSignal) -> TrainState:
        """Runs updates until the last step or a stop, and saves at the end."""
        train = self._config.train
        start = step = int(state.step)
        self._skipped = int(state.skipped)
        pending: _Step | None = None
        stopping = False
        silent = self._quiet or not distributed.is_primary()
        if start == 0 and train.init_from:
            self._validate(0, state)  # what fine-tuning has to better
        with progress_bar(total=train.num_steps, initial=step, unit="step", disable=silent) as bar:
            while step < train.num_steps and not (stopping or self._ended):
                batch = next(batches)
                self._trace.before(step - start)
                state, metrics = self._run_update(step, state, batch)
                self._trace.after(step - start, state)
                step += 1
                stopping = stop.after(step)
                # One update behind, so that the device never waits for the host.
                self._observe(pending, bar)
                mixed = self._data.mixture.count(batch["sequence"], batch["mask"])
                pending = _Step(step, metrics, batch["sequence"], mixed)
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
        if self._interval:
            self._write_interval(step)
        self._trace.close()
        validated = train.eval_every > 0 and step % train.eval_every == 0
        if start < step == train.num_steps and not validated:
            self._validate(step, state)
        self._save(step, state, batches)
        return state

    def _run_update(self, step: int, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        arrays = self._place({name: batch[name] for name in batch_arrays(self._config)})
        # All that an update reads is on the device by now: anything else would be a mistake that
        # costs a wait at every step.
        named = jax.profiler.StepTraceAnnotation("update", step_num=step)
        with jax.transfer_guard("disallow"), named:
            return self._update(state, arrays)

    def _place(self, batch: Any) -> dict[str, jax.Array]:
        """A batch on the devices, each process giving its share."""
        sharding = partitioning.batch_sharding(self._mesh)
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }

    def _save(self, step: int, state: TrainState, batches: Iterator[Any]) -> None:
        if self._saved is not None:
            extra = {"skipped": int(state.skipped)}
            self._saved.save(step, state.params, state.opt_state, batches, extra)

    def _say(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def _observe(self, done: _Step | None, bar: tqdm) -> None:
        """Looks at the result of an update: counts it, checks it, logs it."""
        if done is None:
            return
        metrics = {name: np.asarray(v) for name, v in jax.device_get(done.metrics).items()}
        bar.update(1)
        if metrics.pop("finite"):
            self._in_row = 0
        else:
            self._report_skipped(done, metrics)
        self._interval.append(metrics)
        self._mixed += done.mixed
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
        names = listed([self._data.train.source.name(int(i)) for i in ids])
        tqdm.write(
            f"step {done.step}: update skipped (loss {metrics['loss']}, gradient norm "
            f"{metrics['gradient_norm']}); the batch holds {names}",
            file=sys.stderr,
        )
        limit = self._config.train.max_nonfinite_in_row
        if self._in_row >= limit:
            raise TrainingError(
                f"{limit} updates in a row were not finite, the last at step {done.step} with "
                f"{names}; lower optimizer.learning_rate or look at those sequences"
            )

    def _write_interval(self, step: int) -> None:
        """Logs the means over the updates since the last record."""
        names = [name for name in self._interval[0] if name != "points"]
        values = {name: _finite_mean([m[name] for m in self._interval]) for name in names}
        values["learning_rate"] = self._interval[-1]["learning_rate"]
        values["points_per_second"] = np.asarray(self._meter.rate())
        values["skipped_updates"] = np.asarray(self._skipped)
        points = _over_processes(self._mixed)
        values |= share_metrics(self._data.mixture.labels, points)
        self._write(step, values)
        terms = ", ".join(
            f"{name} {float(values[name]):.4f}" for name in ("loss", "balancing_loss")
        )
        self._say(
            f"step {step:,}/{self._config.train.num_steps:,}: {terms}, gradient norm "
            f"{float(values['gradient_norm']):.3f}, lr {float(values['learning_rate']):.2e}, "
            f"{float(values['points_per_second']):,.0f} points/s"
        )
        self._interval.clear()
        self._mixed[:] = 0
        self._meter.restart()

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(step, values)

    def _validate(self, step: int, state: TrainState) -> None:
        """Logs the mean loss of each head over the held-out windows."""
        if self._data.validation is None:
            return
        if self._validation is None:
            self._validation = make_validation(self._config)
        sums: dict[str, float] = collections.defaultdict(float)
        dataset = make_batches(self._data.validation, self._config, self._mesh, train=False)
        for batch in itertools.islice(dataset, self._config.train.eval_batches):
            names = [name for name in batch_arrays(self._config) if name != "segments"]
            arrays = self._place({name: batch[name] for name in names})
            for name, value in self._validation(state.params, arrays).items():
                sums[name] += float(value)
        values: dict[str, float] = {}
        for kind in ("", "quantile_") if any(n.startswith("quantile") for n in sums) else ("",):
            each = {
                p: sums[f"{kind}sum_{p}"] / max(sums[f"count_{p}"], 1.0)
                for p in heads_read(self._config)
            }
            values[f"validation_{kind}loss"] = sum(each.values()) / len(each)
            values |= {f"validation_{kind}loss_{p}": loss for p, loss in each.items()}
        self._write(step, values)
        self._say(f"step {step:,}: validation loss {values['validation_loss']:.4f}")
        self._meter.restart()


def _finite_mean(values: list[np.ndarray]) -> np.ndarray:
    """The mean over those that are finite throughout; not a number when none is."""
    finite = [value for value in values if np.isfinite(value).all()]
    return np.mean(finite, axis=0) if finite else np.full(values[0].shape, np.nan)


def _over_processes(values: np.ndarray) -> np.ndarray:
    """The sum over all processes; each must call this."""
    if not distributed.is_distributed():
        return values
    from jax.experimental import multihost_utils

    return np.sum(multihost_utils.process_allgather(values), axis=0)
