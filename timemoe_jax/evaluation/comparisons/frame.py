"""A comparison of methods on one's own series: scores by series, a leaderboard, a report."""

import dataclasses
import datetime
import hashlib
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.evaluation.comparisons.config import FrameConfig
from timemoe_jax.evaluation.comparisons.frame_tasks import FrameTasks, frame_tasks
from timemoe_jax.evaluation.comparisons.leaderboard import Leaderboard, make_leaderboard
from timemoe_jax.evaluation.comparisons.report import write_report
from timemoe_jax.evaluation.methods.base import Method, MethodForecast
from timemoe_jax.evaluation.methods.registry import get_methods
from timemoe_jax.evaluation.methods.running import MethodRun, run_method, workers_of
from timemoe_jax.evaluation.methods.workers import Workers
from timemoe_jax.evaluation.records import (
    WindowWriter,
    result_cell,
    rows_of_task,
    versions,
    window_writer,
    write_manifest,
)
from timemoe_jax.evaluation.scores import WindowScores, score_windows, seasonal_scales, summarize
from timemoe_jax.evaluation.tasks import Task
from timemoe_jax.files import write_text

FAILURES_NAMED = 5


@dataclasses.dataclass(eq=False)
class MethodResult:
    """What a method did on all tasks."""

    name: str
    seconds: float = 0.0
    scores: dict[str, WindowScores] = dataclasses.field(default_factory=dict)  # of each task
    # Of each task, what was forecast of the last window of each series: point and quantiles.
    last: dict[str, MethodForecast] = dataclasses.field(default_factory=dict)
    failures: Counter[str] = dataclasses.field(default_factory=Counter)  # windows, by reason
    failed: list[str] = dataclasses.field(default_factory=list)  # the first series of them


def run(config: FrameConfig) -> dict[str, Any]:
    """Compares the methods of a config; writes tables, a report and a manifest, and returns that.

    `report.html`, `results.md`, `manifest.json` and the scores of windows go to the output folder.
    What can be wrong with the config, the files and the methods is an error before anything is
    forecast.
    """
    methods = get_methods(config.baselines)
    data = frame_tasks(config)
    model = _model(config, data.tasks, [method.name for method in methods])
    methods = (*model, *methods)
    output = Path(config.output_dir)
    print(_plan(data, methods))
    cells: list[dict[str, Any]] = []
    results = []
    scales = {task.name: seasonal_scales(task) for task in data.tasks}
    with window_writer(output, config.per_window) as writer:
        for method in methods:
            result = MethodResult(method.name)
            with workers_of(method, config.processes) as workers:
                for task in data.tasks:
                    done = _forecast(method, task, config, workers)
                    cells.append(_score(method, task, done, scales[task.name], result, writer))
            results.append(result)
    board = make_leaderboard(data.tasks, results)
    manifest = _manifest(config, data, cells, board) | _describe(model)
    write_manifest(output, manifest)
    text = _markdown(board, data)
    write_text(output / "results.md", text)
    write_report(output / "report.html", board, data, results, manifest)
    print(text)
    written = [output / name for name in ("report.html", "results.md", "manifest.json")]
    print(f"wrote {', '.join(map(str, written))}")
    return manifest


def _model(config: FrameConfig, tasks: Sequence[Task], taken: Sequence[str]) -> tuple[Any, ...]:
    """The model as a method, if there is one; JAX is imported here."""
    if not config.checkpoint:
        return ()
    from timemoe_jax.evaluation.methods.model import ModelMethod
    from timemoe_jax.forecasting.forecaster import Forecaster

    forecaster = Forecaster.from_pretrained(config.checkpoint, config.dtype)
    for task in tasks:
        forecaster.usable_context(config.context_length, task.horizon)
    name = Path(config.checkpoint).name
    options = {n: getattr(config, n) for n in ("context_length", "intervals", "batch_size")}
    return (ModelMethod(forecaster, f"model {name}" if name in taken else name, **options),)


def _describe(model: Sequence[Any]) -> dict[str, Any]:
    """The name of the model and its checkpoint's hash; None without one."""
    name, digest = (model[0].name, model[0].forecaster.digest) if model else (None, None)
    return {"model": name, "checkpoint_hash": digest}


def _plan(data: FrameTasks, methods: Sequence[Method]) -> str:
    """What is about to be done, in a few lines."""
    lines = [
        f"{task.name}: {len(task.series):,} series, {len(task):,} windows of {task.horizon} "
        f"steps, season {task.season} ({data.seasons[task.name].origin})"
        for task in data.tasks
    ]
    return "\n".join([*lines, *data.notes(), f"methods: {', '.join(m.name for m in methods)}"])


def _forecast(method: Method, task: Task, config: FrameConfig, workers: Workers) -> MethodRun:
    return run_method(
        method,
        task.contexts(),
        task.horizon,
        task.season,
        task.levels,
        task.freq,
        limit_s=config.limit_s,
        workers=workers,
        progress=True,
    )


def _score(
    method: Method,
    task: Task,
    done: MethodRun,
    scales: Float64[np.ndarray, " W"],
    result: MethodResult,
    writer: WindowWriter,
) -> dict[str, Any]:
    """Scores forecasts of a task, adds to the method's result, and returns the manifest's cell."""
    scores = score_windows(task, done.forecast, scales)
    writer.add(rows_of_task("frame", task, method.name, scores))
    result.seconds += done.seconds
    result.scores[task.name] = scores
    result.last[task.name] = _last_windows(task, done.forecast)
    result.failures.update(done.forecast.failures.values())
    windows = task.windows()
    names = dict.fromkeys(task.names[windows[i][0]] for i in done.forecast.failures)
    result.failed += list(names)[: FAILURES_NAMED - len(result.failed)]
    summary = dataclasses.asdict(summarize(scores))
    return result_cell(
        "frame", task.name, method.name, done.seconds, done.forecast.failures, summary
    )


def _last_windows(task: Task, forecast: MethodForecast) -> MethodForecast:
    """Only the last window of each series, which pictures show."""
    last = np.cumsum([len(origins) for origins in task.origins]) - 1
    return MethodForecast(forecast.point[last], forecast.quantiles[last])


def _manifest(
    config: FrameConfig, data: FrameTasks, cells: list[dict[str, Any]], board: Leaderboard
) -> dict[str, Any]:
    """How the scores were obtained, in enough detail to obtain them again."""
    return {
        "benchmark": "frame",
        "command": shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": dataclasses.asdict(config),
        "files": {str(path): _digest(path) for path in data.files},
        "tasks": {
            task.name: {
                "series": len(task.series),
                "windows": len(task),
                "horizon": task.horizon,
                "season": task.season,
                "season_origin": data.seasons[task.name].origin,
                "freq": task.freq,
                "levels": list(task.levels),
            }
            for task in data.tasks
        },
        "left_out": data.notes(),
        "versions": versions(("statsforecast", "gluonts", "fev", "scipy", "pandas")),
        "results": cells,
        "leaderboard": board.as_dict(),
    }


def _digest(path: Path) -> str:
    """The SHA-256 of a file, or of the names and digests of the files in a folder."""
    total = hashlib.sha256()
    if path.is_file():
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    for inner in sorted(each for each in path.rglob("*") if each.is_file()):
        total.update(f"{inner.relative_to(path)} {_digest(inner)}\n".encode())
    return total.hexdigest()


def _markdown(board: Leaderboard, data: FrameTasks) -> str:
    parts = [board.summary(), board.to_markdown(), board.significance_to_markdown()]
    failures = board.failure_lines()
    return "\n\n".join(filter(None, [*parts, *failures, *data.notes()])) + "\n"
