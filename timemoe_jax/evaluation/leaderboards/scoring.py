"""Scoring methods on the tasks of a leaderboard: cells, rows of windows, tables and a manifest."""

import contextlib
import csv
import dataclasses
import io
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from timemoe_jax.checkpoints import bundled
from timemoe_jax.errors import ConfigError
from timemoe_jax.evaluation import records
from timemoe_jax.evaluation.leaderboards.config import NEVER_SEEN, UNKNOWN, MethodsConfig
from timemoe_jax.evaluation.methods.base import Method, MethodForecast
from timemoe_jax.evaluation.methods.model import ModelMethod
from timemoe_jax.evaluation.methods.registry import get_methods
from timemoe_jax.evaluation.methods.running import run_method, workers_of
from timemoe_jax.evaluation.methods.workers import Workers
from timemoe_jax.evaluation.scores import Scores, WindowScores, score_windows, summarize
from timemoe_jax.evaluation.tasks import Task
from timemoe_jax.files import write_text
from timemoe_jax.forecasting.forecaster import Forecaster

Cell = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """A task and how its windows are scored."""

    task: Task
    scales: Float64[np.ndarray, " W"]  # of scaled errors
    files: tuple[str, ...] = ()  # of ETT and Weather that it was made from; empty: of others
    groups: Int64[np.ndarray, " W"] | None = None  # see `scores.summarize`
    notes: tuple[str, ...] = ()  # what was left out


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A task that cannot be scored, and why."""

    task: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What one method did on one task."""

    method: str
    forecast: MethodForecast
    windows: WindowScores
    scores: Scores
    seconds: float
    extra: Mapping[str, float] = dataclasses.field(default_factory=dict)  # further scores


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """The methods of an evaluation; the first is the model's, if there is one."""

    methods: tuple[Method, ...]
    forecaster: Forecaster | None
    model: str | None  # its name
    reference: str | None  # the method that relative scores divide by


def compared_methods(config: MethodsConfig, reference: Method | None = None) -> Compared:
    """Loads the model and finds the baselines.

    Args:
      config: names them.
      reference: a method beside them that relative scores divide by.

    Raises:
      TimeMoeError: the checkpoint or a method cannot be used.
    """
    methods = [*([] if reference is None else [reference]), *get_methods(config.baselines)]
    divisor = None if reference is None else reference.name
    if not config.checkpoint:
        if not methods:
            raise ConfigError("there is nothing to score: give a checkpoint, or baselines")
        return Compared(tuple(methods), None, None, divisor)
    model = model_method(config)
    if model.name in {method.name for method in methods}:
        raise ConfigError(f"checkpoint: {config.checkpoint} has the name of a baseline; rename it")
    return Compared((model, *methods), model.forecaster, model.name, divisor)


def model_method(config: MethodsConfig) -> ModelMethod:
    """The model of a config, under the last part of its path."""
    forecaster = Forecaster.from_pretrained(config.checkpoint, config.dtype)
    return ModelMethod(
        forecaster,
        Path(config.checkpoint).name or config.checkpoint,
        context_length=config.context_length,
        normalize=config.normalize,
        batch_size=config.batch_size or "auto",
    )


def exposure_to(config: MethodsConfig, files: Sequence[str]) -> str:
    """What the model has seen of a task that was made from files of ETT and Weather, or not."""
    if config.exposure != "auto":
        return config.exposure
    known = bundled.NEVER_SEEN.get(config.checkpoint, ())
    return NEVER_SEEN if files and all(file in known for file in files) else UNKNOWN


def outcomes_of(
    scored: Scored, compared: Compared, limit_s: float, workers: Mapping[str, Workers]
) -> list[Outcome]:
    """Runs every method on a task, in the workers of its name, and scores it."""
    task, found = scored.task, []
    for method in compared.methods:
        run = run_method(
            method,
            task.contexts(),
            task.horizon,
            task.season,
            task.levels,
            task.freq,
            limit_s=limit_s,
            workers=workers[method.name],
        )
        windows = score_windows(task, run.forecast, scored.scales)
        scores = summarize(windows, scored.groups)
        found.append(Outcome(method.name, run.forecast, windows, scores, run.seconds))
    return found


def evaluate_tasks(
    config: Any,
    compared: Compared,
    tasks: Iterable[Scored | Skipped],
    keep: Callable[[Scored, list[Outcome]], list[Outcome]],
    report: Callable[[Mapping[str, Any]], str],
) -> dict[str, Any]:
    """Scores all methods on all tasks, and writes tables, manifest and rows of windows.

    Tables and manifest are written anew after every task, so that a long evaluation that is cut
    short keeps what it has.

    Args:
      config: of the evaluation, with its `benchmark`.
      compared: the methods.
      tasks: read one by one.
      keep: writes what each method did on a task to the leaderboard's own result files; returns it
        with the scores that count.
      report: the tables of a manifest, as Markdown.
    """
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    manifest = _header(config, compared)
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(records.window_writer(output, config.per_window))
        workers = {
            method.name: stack.enter_context(workers_of(method)) for method in compared.methods
        }
        for scored in tasks:
            if isinstance(scored, Skipped):
                manifest["skipped"][scored.task] = scored.reason
                continue
            outcomes = outcomes_of(scored, compared, config.limit_s, workers)
            outcomes = keep(scored, outcomes)
            exposure = exposure_to(config, scored.files)
            for outcome in outcomes:
                cell = _cell(config.benchmark, scored, outcome)
                if outcome.method == compared.model:
                    cell["exposure"] = exposure
                manifest["results"].append(cell)
                name = outcome.method
                rows.add(records.rows_of_task(config.benchmark, scored.task, name, outcome.windows))
            print(_line(scored, outcomes), flush=True)
            _write(output, manifest, report)
    _write(output, manifest, report)
    print(report(manifest))
    print(f"wrote {output / 'results.md'} and {output / records.MANIFEST}")
    return manifest


def _write(
    output: Path, manifest: Mapping[str, Any], report: Callable[[Mapping[str, Any]], str]
) -> None:
    records.write_manifest(output, manifest)
    write_text(output / "results.md", report(manifest))


def _header(config: Any, compared: Compared) -> dict[str, Any]:
    forecaster = compared.forecaster
    heads = bool(forecaster and forecaster.config.quantile_levels)
    return {
        "benchmark": config.benchmark,
        "config": dataclasses.asdict(config),
        "model": compared.model,
        "checkpoint": config.checkpoint or None,
        "checkpoint_hash": forecaster.digest if forecaster else None,
        "dtype": forecaster.config.dtype if forecaster else None,
        "reference": compared.reference,
        "quantiles": None if forecaster is None else "heads" if heads else "earlier errors",
        "point_forecast": None if forecaster is None else "median" if heads else "point",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": records.versions(),
        "skipped": {},  # tasks, and why
        "results": [],
    }


def _cell(benchmark: str, scored: Scored, outcome: Outcome) -> Cell:
    task = scored.task
    scores = dataclasses.asdict(outcome.scores)
    of_task = {"horizon": task.horizon, "season": task.season, "windows_in_task": len(task)}
    notes = {"notes": list(scored.notes)} if scored.notes else {}
    failures = outcome.forecast.failures
    return records.result_cell(
        benchmark,
        task.name,
        outcome.method,
        outcome.seconds,
        failures,
        {**of_task, **scores, **outcome.extra, **notes},
    )


def _line(scored: Scored, outcomes: Sequence[Outcome]) -> str:
    errors = ", ".join(f"{o.method} {o.scores.mase:.3f}" for o in outcomes)
    return f"{scored.task.name}: {len(scored.task)} windows, MASE: {errors}"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as a CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
