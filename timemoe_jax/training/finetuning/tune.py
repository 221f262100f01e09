"""Fine-tuning a model on series: plan, learning rate, updates, and what is kept.

Nothing is returned that forecasts what was held out worse than the start does.
"""

import dataclasses
import json
import math
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from timemoe_jax.checkpoints.adapters import ADAPTER_FILE, Adapter, merge, write_adapter
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.checkpoints.store import CHECKPOINTS, Checkpoints
from timemoe_jax.checkpoints.trees import json_copy
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.pipeline.gaps import FilledSource
from timemoe_jax.data.pipeline.training_data import TrainingData
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import ConfigError, DataError
from timemoe_jax.files import write_json
from timemoe_jax.models.base import ModelConfig, family_of
from timemoe_jax.runtime import distributed, partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.runtime.progress import say
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.finetuning.config import FinetuneConfig, FinetuneRunConfig
from timemoe_jax.training.finetuning.loop import DIVERGED, FinetuneLoop, History, read_history
from timemoe_jax.training.finetuning.report import Plan, TuningReport
from timemoe_jax.training.finetuning.search import lower_rate, search_rate
from timemoe_jax.training.finetuning.start import Start, context_of, optimizer_of
from timemoe_jax.training.finetuning.step import Update, compile_update, run_config
from timemoe_jax.training.finetuning.trainable import (
    Parts,
    as_adapter,
    assemble,
    split,
    towards,
)
from timemoe_jax.training.finetuning.validation import Errors, Validator
from timemoe_jax.training.finetuning.windows import Split, split_in_time, validation_windows
from timemoe_jax.training.loop import StopSignal, TrainingError, make_batches
from timemoe_jax.training.metrics_log import MetricsLog, read_metrics
from timemoe_jax.training.run import memory_plan
from timemoe_jax.training.start import check_fits
from timemoe_jax.training.step import TrainState
from timemoe_jax.training.workdir import claimed_workdir, what_next, writing

STATE = "state"  # of a run that may go on, in its folder
LOWER = "lower_rate"  # the folder of a second run, below that of the first
CONFIG_FILE, SEARCH_FILE, REPORT_FILE = "config.json", "search.json", "report.json"


class Tuned(NamedTuple):
    """The result: plain parameters, and for "lora" the adapter that they come from."""

    config: ModelConfig  # how they are read
    params: nnx.State  # float32, or those of the start themselves where nothing was better
    adapter: Adapter | None
    report: TuningReport


def fine_tune(
    start: Start,
    source: SequenceSource,
    config: FinetuneConfig,
    workdir: str | Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
    quiet: bool = False,
) -> Tuned:
    """Fine-tunes a model on series; the start is left as it is.

    Args:
      start: the model.
      source: series of any lengths, NaN where a value is missing.
      config: what is trained, how long, and on which forecasts.
      workdir: a folder for the log, the report, the result and what a later call goes on from;
        None writes nothing.
      mesh: devices; by default the first one.
      quiet: whether to print nothing.

    Raises:
      DataError: the series are too few or too short to learn from; the message says what would do.
      ConfigError: the config does not fit the model, the mesh, or the run in the workdir.
      KeyboardInterrupt: Ctrl-C. With a workdir, the state is saved before.
    """
    began = time.perf_counter()
    if distributed.is_distributed():
        raise ConfigError("fine-tuning runs in one process; start it without --distributed")
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    session = _Session.prepare(start, source, config, mesh, quiet)
    if workdir is None:
        return session.finish(began, None)
    workdir = Path(workdir)
    with claimed_workdir(workdir):
        session.check_workdir(workdir)
        tuned = session.finish(began, workdir)
    if not quiet:
        say(what_next(workdir))
    return tuned


def run_files(config: FinetuneRunConfig, workdir: str | Path) -> Tuned:
    """Fine-tunes a checkpoint on files, as a config says; absent times are missing points.

    Raises:
      CheckpointError: `config.checkpoint` cannot be loaded.
      DataError, ConfigError: as `fine_tune`.
    """
    source = FilledSource(open_source(config.data.path))
    mesh = partitioning.make_mesh(config.mesh)
    start = Start.of(load_model(config.checkpoint), config.checkpoint)
    return fine_tune(start, source, config.finetune, workdir, mesh)


class _Kept(NamedTuple):
    """What may be kept."""

    trained: nnx.State  # the trained part
    errors: Errors
    share: float  # of the way from the start to the best update; 0: the start itself


def _of_the_better(better: Sequence[_Kept]) -> _Kept:
    """What of all that is better than the start is kept.

    Of what gains beyond doubt and as much as the best but for the doubt of that, it is the nearest
    to the start, as the simplest model is by the rule of Breiman et al. (Classification and
    Regression Trees, 1984): the best is so by chance in part. Where nothing gains beyond doubt, it
    is what gains most, for then all of it is too near to the start to do harm.
    """
    sure = [one for one in better if one.errors.surely_better]
    best = min(sure or better, key=lambda one: one.errors.change)
    bound = best.errors.change + best.errors.doubt
    as_good = [one for one in sure if one.errors.change <= bound]
    return min(as_good, key=lambda one: one.share, default=best)


class _Attempt(NamedTuple):
    """What became of a run at one rate."""

    history: History
    kept: _Kept
    ended: str
    updates: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Session:
    """Everything that is fixed before the first update."""

    start: Start
    config: FinetuneConfig
    model: ModelConfig  # the start's, but for `config.mixing` and what is known ahead
    run: RunConfig
    mesh: jax.sharding.Mesh
    data: Split
    parts: Parts
    update: Update
    validator: Validator
    plan: Plan
    quiet: bool

    @classmethod
    def prepare(
        cls,
        start: Start,
        source: SequenceSource,
        config: FinetuneConfig,
        mesh: jax.sharding.Mesh,
        quiet: bool,
    ) -> "_Session":
        """Looks at everything that can be wrong, compiles the update, and says what it will do."""
        family = family_of(start.config)
        model = family.mixed(start.config, config.mixing, config.covariates, config.known_variates)
        data = split_in_time(source, config, context_of(start.config, config), family.joint)
        held_out = validation_windows(data, config, family.joint)
        algorithm = optimizer_of(start, config)
        run = run_config(
            model,
            config,
            context=data.windows.index.length,
            variates=getattr(data.windows.index, "variates", 0),
            algorithm=algorithm,
            source=start.source or "the start",
            parts=partitioning.batch_parts(mesh),
        )
        check_fits(run, mesh)
        parts = split(start.params, start.config, config)
        update = compile_update(run, config, parts, mesh)
        plan = Plan(
            series=len(data.source),
            points=int(data.heads.sum()),
            windows=data.num_windows,
            held_out=len(held_out),
            updates=config.num_steps,
            batch_size=run.train.batch_size,
            context=data.windows.index.length,
            horizon=config.horizon,
            normalization=config.normalize,
            mode=config.mode,
            trained=parts.num_trained,
            parameters=sum(p.size for p in jax.tree.leaves(start.params)),
            optimizer=algorithm.algorithm,
            memory=memory_plan(update.program),
            skipped=data.skipped,
            past_variates=config.past_variates,
            known_variates=config.known_variates,
        )
        if not quiet:
            say(str(plan))
        validator = Validator(model, config, held_out, mesh, start.config)
        return cls(start, config, model, run, mesh, data, parts, update, validator, plan, quiet)

    def _batches(self, seed: int) -> Any:
        run = dataclasses.replace(self.run, seed=seed)
        return iter(make_batches(self.data.windows, run, self.mesh, True, self.data.mixture))

    def check_workdir(self, workdir: Path) -> None:
        """Refuses a folder that holds another run; writes the config of this one."""
        now = json_copy(
            {
                "finetune": dataclasses.asdict(self.config),
                "base_digest": self.start.digest,
                "data": {"series": self.plan.series, "checksum": _checksum(self.data.source)},
            }
        )
        path = workdir / CONFIG_FILE
        if path.exists():
            then = json.loads(path.read_text(encoding="utf-8"))
            differing = [
                f"{section}.{name}" if isinstance(now[section], dict) else section
                for section in now
                for name in (now[section] if isinstance(now[section], dict) else [""])
                if _field(then, section, name) != _field(now, section, name)
            ]
            if differing:
                raise ConfigError(
                    f"{workdir} holds another run, of which {', '.join(differing)} differ: give "
                    "another workdir"
                )
        elif any((workdir / name).exists() for name in (CHECKPOINTS, ADAPTER_FILE)):
            raise ConfigError(f"{workdir} already holds a model; give another workdir")
        with writing(path):
            write_json(path, now)

    def finish(self, began: float, workdir: Path | None) -> Tuned:
        """Searches, trains, and returns what is kept; writes it where there is a workdir.

        Where no update gained beyond doubt at a rate that was searched for, one that is a fifth of
        it or less has a run, too, in a folder below the workdir; the better of both is kept.
        """
        stop = StopSignal()
        with stop, partitioning.use_mesh(self.mesh):
            rate, search, attempt = self._attempt(workdir, stop, None)
            lower = None if self.config.learning_rate else lower_rate(self.config, rate)
            gained = attempt.history.gaining and attempt.kept.errors.surely_better
            if not gained and lower is not None and not stop.name:
                if not self.quiet:
                    said = "no update gained beyond doubt at a learning rate of"
                    say(f"{said} {rate:g}; trying {lower:g}")
                below = None if workdir is None else workdir / LOWER
                if below is not None:
                    with writing(below):
                        below.mkdir(exist_ok=True)
                _, _, second = self._attempt(below, stop, lower)
                if second.kept.errors.preferred_to(attempt.kept.errors):
                    rate, attempt = lower, second
        history, kept = attempt.history, attempt.kept
        report = TuningReport(
            plan=self.plan,
            learning_rate=rate,
            search=search,
            zero_shot=history.zero_shot,
            tuned=kept.errors,
            kept=history.best if kept.share else 0,
            share=kept.share,
            updates=attempt.updates,
            history=tuple(history.every),
            ended=attempt.ended,
            seconds=round(time.perf_counter() - began, 1),
        )
        tuned = self._tuned(kept.trained, report)
        if not self.quiet:
            say(str(report))
        if workdir is not None:
            self._write(workdir, tuned)
        if stop.interrupted:
            again = "; run the same command again to resume" if workdir is not None else ""
            raise KeyboardInterrupt(f"stopped by SIGINT at update {attempt.updates:,}{again}")
        return tuned

    def _attempt(
        self, folder: Path | None, stop: StopSignal, rate: float | None
    ) -> tuple[float, dict[float, float], "_Attempt"]:
        """A run at a rate, or at one that is searched for, and what may be kept of it."""
        search: dict[float, float] = {}
        with ExitStack() as ending:
            saved = None
            if folder is not None:
                saved = ending.enter_context(Checkpoints(folder / STATE, 1, {}))
            batches = self._batches(self.config.seed)
            state, best, history = self._begin(saved, batches, folder)
            if rate is None:
                rate, search = self._rate(folder, history.zero_shot, stop)
            log = None
            if folder is not None:
                log = MetricsLog(folder, int(state.step))
                ending.push(log.close_after)
            loop = FinetuneLoop(
                self.run,
                self.config,
                self.mesh,
                self.update,
                TrainingData(self.data.windows, None, self.data.mixture, ""),
                self.validator,
                history,
                rate,
                best,
                saved,
                log,
                self.quiet,
            )
            ended, updates = _run(loop, state, batches, stop)
            kept = self._kept(loop, bool(stop.name))
        return rate, search, _Attempt(history, kept, ended, updates)

    def _begin(
        self, saved: Checkpoints | None, batches: Any, workdir: Path | None
    ) -> tuple[TrainState, nnx.State, History]:
        """The state, the best so far and the validations: of the newest save, else of the start."""
        state, patience = self.update.initial(), self.config.patience
        if saved is None or workdir is None or not saved.steps():
            errors = self.validator(self.update.trained, self.update.frozen)
            if not errors.finite:
                raise DataError(
                    "the model's own forecasts of what is held out are not finite; look at values "
                    "far larger than the others of their series"
                )
            return state, self.update.trained, History([(0, errors)], patience)
        tree = {"optimizer": state.opt_state, "best": state.params}
        step, params, held, extra = saved.restore(
            params=state.params, opt_state=tree, data_iterator=batches
        )
        if not self.quiet:
            say(f"resuming at update {step:,} from {workdir}")
        place = self.update.shardings.step
        counts = (jax.device_put(np.asarray(n, np.int32), place) for n in (step, extra["skipped"]))
        step_, skipped = counts
        self.validator(self.update.trained, self.update.frozen)  # what others are compared with
        records = read_metrics(workdir / "metrics.jsonl")
        history = History(read_history(records, step), patience)
        return TrainState(step_, params, held["optimizer"], skipped), held["best"], history

    def _kept(self, loop: FinetuneLoop, stopped: bool) -> "_Kept":
        """The best update or what lies on the way to it, if that is better than the start.

        What is trained on may differ from what is held out; a part of the way then often gains
        where the whole of it does not, and a part of it has a part of the doubt.
        """
        history, start = loop.history, self.update.trained
        zero_shot, found = history.zero_shot, _Kept(start, history.zero_shot, 0.0)
        if history.best == 0:
            return found
        tried = [_Kept(loop.best, history.best_errors, 1.0)]
        for share in () if stopped else self.config.shares:
            trained = towards(start, loop.best, share, self.config)
            errors = self.validator(trained, self.update.frozen)
            tried.append(_Kept(trained, errors, share))
            if not self.quiet:
                say(f"{share:.0%} of the way to update {history.best:,}: {errors.beside_zero_shot}")
        better = [one for one in tried if one.errors.safely_better_than(zero_shot)]
        return _of_the_better(better) if better else found

    def _rate(
        self, workdir: Path | None, zero_shot: Errors, stop: StopSignal
    ) -> tuple[float, dict[float, float]]:
        """The learning rate, and what the search for it has found; it is searched for once."""
        if self.config.learning_rate:
            return self.config.learning_rate, {}
        path = None if workdir is None else workdir / SEARCH_FILE
        if path is not None and path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            scores = {float(k): math.inf if v is None else v for k, v in held["scores"].items()}
            return held["learning_rate"], scores

        def score(state: TrainState) -> float:
            # Half of the way: a short run has hardly averaged its noise, which would else hide that
            # a large rate goes in the right direction.
            half = towards(self.update.trained, state.params, 0.5, self.config)
            errors = self.validator(half, self.update.frozen)
            diverged = not errors.relative_to(zero_shot) <= DIVERGED
            return math.inf if diverged else errors.change

        def batches() -> Any:
            # Others than those of the run, which is not to see the same windows twice.
            place = partitioning.batch_sharding(self.mesh)
            for batch in self._batches(self.config.seed + 1):
                yield {name: jax.device_put(batch[name], place) for name in ("values", "mask")}

        def tried(rate: float, found: float) -> None:
            if not self.quiet:
                steps = self.config.search_steps
                say(f"learning rate {rate:g}: half of {steps} updates, a forecast {found:+.1%}")

        if not self.quiet:
            say("looking for the largest learning rate that does no harm, by held-out errors")
        rate, scores = search_rate(
            self.config, self.update, batches, score, tried, lambda: bool(stop.name)
        )
        if path is not None and not stop.name:
            known = {f"{r!r}": s if math.isfinite(s) else None for r, s in scores.items()}
            with writing(path):
                write_json(path, {"learning_rate": rate, "scores": known})
        return rate, scores

    def _tuned(self, best: nnx.State, report: TuningReport) -> Tuned:
        """The parameters of what was kept."""
        start = self.start
        if self.config.mode == "lora":
            adapter = as_adapter(best, self.config, start.source, start.digest)
            params = start.params if report.kept == 0 else merge(start.params, adapter)
            return Tuned(start.config, params, adapter, report)
        if report.kept == 0:
            return Tuned(start.config, start.params, None, report)
        params = jax.device_get(assemble(best, self.update.frozen, self.config))
        return Tuned(self.model, params, None, report)

    def _write(self, workdir: Path, tuned: Tuned) -> None:
        """The report, and what `load_model` reads."""
        with writing(workdir):
            write_json(workdir / REPORT_FILE, tuned.report.as_dict())
        if tuned.adapter is not None:
            write_adapter(workdir, tuned.adapter)
            return
        config = {"model": dataclasses.asdict(tuned.config), "optimizer": {}}
        config["optimizer"] = dict(self.start.optimizer or {})
        with Checkpoints(workdir / CHECKPOINTS, 1, config) as checkpoints:
            checkpoints.save(tuned.report.kept, tuned.params)


def _run(loop: FinetuneLoop, state: TrainState, batches: Any, stop: StopSignal) -> tuple[str, int]:
    """Runs the updates; returns why they ended, and how many there were."""
    history = loop.history
    try:
        updates = int(loop.run(state, batches, stop).step)
        ended = history.ended or (stop.name if stop.name else "complete")
    except TrainingError:
        ended, updates = "diverged", history.every[-1][0]
    if ended == "diverged":
        what = f"update {history.gaining:,}" if history.gaining else "the start"
        step, errors = history.every[-1]
        warnings.warn(
            f"fine-tuning has diverged: after update {step:,} the errors of held-out forecasts are "
            f"{errors.relative_to(history.zero_shot):.3g} times zero-shot's (more than {DIVERGED:g}"
            f", or updates were not finite); {what} is kept: give a lower learning_rate",
            stacklevel=5,
        )
    return ended, updates


def _field(held: Mapping[str, Any], section: str, name: str) -> Any:
    value = held.get(section)
    return value.get(name) if name and isinstance(value, dict) else value


def _checksum(source: SequenceSource) -> int:
    """CRC-32 of all values, so that a run is only resumed on the same data."""
    found = 0
    for i, length in enumerate(source.lengths.tolist()):
        values = source.read_stored(i, 0, length)
        found = zlib.crc32(values.tobytes(), found)
    return found
