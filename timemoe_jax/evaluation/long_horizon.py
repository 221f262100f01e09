"""Scoring a checkpoint on long-horizon benchmarks, beside baselines on the same windows.

A cell is a dataset at a horizon. Cells whose forecasts are beginnings of one another form a group:
each context is forecast once, as far as the longest of them. Any other cell is a group of one.
"""

import dataclasses
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from timemoe_jax.data.calendar import calendar_marks
from timemoe_jax.evaluation.benchmarks import (
    PUBLISHED_MODELS,
    Benchmark,
    BenchmarkWindows,
    benchmark_windows,
    default_context,
    find_dataset,
    load_benchmark,
    published_results,
)
from timemoe_jax.evaluation.config import EvalConfig
from timemoe_jax.evaluation.records import (
    WindowWriter,
    result_cell,
    versions,
    window_writer,
    write_manifest,
)
from timemoe_jax.evaluation.tables import error_pair, markdown_table
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.forecasting.scoring import baselines
from timemoe_jax.forecasting.scoring.metrics import ErrorSums
from timemoe_jax.models.base import family_of
from timemoe_jax.models.decoding import horizon_plan
from timemoe_jax.runtime.progress import progress_bar

BASELINES = ("naive", "seasonal_naive", "parroting")
MODEL = "model"  # what the results call the model that is scored

Cell = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells of one dataset and context length that are scored from one forecast of each context."""

    benchmark: Benchmark
    windows: tuple[BenchmarkWindows, ...]  # of each cell
    indices: tuple[int, ...]  # of each cell in the manifest

    @property
    def horizons(self) -> tuple[int, ...]:
        """The horizon of each cell."""
        return tuple(windows.horizon for windows in self.windows)


def run(config: EvalConfig) -> dict[str, Any]:
    """Scores every dataset at every horizon; prints a table, and writes it with a manifest.

    `results.md` and `manifest.json` in the output folder are written anew after every group of
    cells, so that a long evaluation that is cut short keeps what it has. The manifest is returned.
    A mistake in the config is an error before anything is scored.
    """
    # Everything that can be wrong is looked at before the first forecast.
    benchmarks = [load_benchmark(find_dataset(d, config.data_dir)) for d in config.datasets]
    forecaster = None
    if config.checkpoint:
        forecaster = Forecaster.from_pretrained(config.checkpoint, config.dtype)
    plan = [
        (b, _windows(b, h, config, reads_calendar(forecaster, b)))
        for b in benchmarks
        for h in config.horizons
    ]
    if forecaster:
        for _, windows in plan:
            forecaster.usable_context(windows.context_length, windows.horizon)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "benchmark": "long_horizon",
        "model": MODEL if forecaster else None,
        "checkpoint": config.checkpoint or None,
        "checkpoint_hash": forecaster.digest if forecaster else None,
        "protocol": config.protocol,
        "max_windows": config.max_windows,
        "cells": [],
        "results": [],
    }
    cells: dict[int, Cell] = {}
    with window_writer(output, config.per_window) as rows:
        for group in group_cells(plan, forecaster, config.max_windows):
            scored = evaluate_group(forecaster, group, config, rows=rows)
            cells |= zip(group.indices, scored, strict=True)
            manifest["cells"] = [cells[index] for index in sorted(cells)]
            manifest["results"] = [each for cell in manifest["cells"] for each in _results(cell)]
            write_manifest(output, manifest)
            (output / "results.md").write_text(results_table(manifest), encoding="utf-8")
    print(results_table(manifest))
    print(f"wrote {output / 'results.md'} and {output / 'manifest.json'}")
    return manifest


def reads_calendar(forecaster: Forecaster | None, benchmark: Benchmark) -> bool:
    """Whether a model with covariates reads the columns of a dataset together with their dates.

    It does where there are dates and as many columns as it was trained on; any other dataset it
    forecasts column by column, without covariates.
    """
    if forecaster is None or benchmark.timestamps is None:
        return False
    variates = family_of(forecaster.config).covariate_variates(forecaster.config)
    return variates == len(benchmark.columns)


def _windows(
    benchmark: Benchmark, horizon: int, config: EvalConfig, together: bool
) -> BenchmarkWindows:
    context = config.context_length or default_context(horizon)
    return benchmark_windows(
        benchmark, context, horizon, config.protocol, config.max_windows, together
    )


def group_cells(
    plan: Sequence[tuple[Benchmark, BenchmarkWindows]],
    forecaster: Forecaster | None,
    max_windows: int | None,
) -> list[Group]:
    """Finds the cells that can be scored from one forecast of each context.

    They share the dataset and the context length, and the model reads the same heads for all of
    them, so that the forecast of a horizon is the beginning of that of a longer one; a baseline's
    always is. With `max_windows` each horizon has other windows, so that nothing is shared. The
    plan is in the order of the manifest, and groups are in the order of their first cells.
    """

    def key(benchmark: Benchmark, windows: BenchmarkWindows) -> Hashable:
        heads = None
        if forecaster:
            model = forecaster.config
            heads = horizon_plan(windows.horizon, model.horizon_lengths, model.forecast_plan)
        subset = None if max_windows is None else windows.horizon
        return id(benchmark), windows.context_length, heads, subset

    groups: dict[Hashable, list[int]] = {}
    for index, cell in enumerate(plan):
        groups.setdefault(key(*cell), []).append(index)
    return [
        Group(plan[indices[0]][0], tuple(plan[i][1] for i in indices), tuple(indices))
        for indices in groups.values()
    ]


def evaluate_group(
    forecaster: Forecaster | None,
    group: Group,
    config: EvalConfig,
    progress: bool = True,
    rows: WindowWriter | None = None,
) -> list[Cell]:
    """Scores the cells of a group in order, on the scale of the train split, in float64.

    Every cell is scored on its own windows alone, of which shorter horizons have more. Without a
    forecaster the baselines alone are scored. Scores of each window go to `rows`, if given.
    """
    sums: list[dict[str, ErrorSums]] = [{} for _ in group.windows]
    start = time.perf_counter()
    # The windows of the shortest horizon hold the contexts of all.
    all_contexts = min(group.windows, key=lambda windows: windows.horizon)
    calendar = reads_calendar(forecaster, group.benchmark)
    size = len(group.benchmark.columns) if calendar else 1  # of what is forecast at once
    rows_at_once = -(-config.batch_size // size) * size
    title = f"{group.benchmark.name} {','.join(map(str, group.horizons))}"
    bar = progress_bar(total=len(all_contexts), desc=title, unit="window", disable=not progress)
    with bar:
        for context, _, channel, first_row in all_contexts.batches(rows_at_once):
            forecasts = _forecasts(forecaster, group, context, config, first_row[::size])
            target_row = first_row + context.shape[1]
            for windows, cell_sums in zip(group.windows, sums, strict=True):
                scored, target = _targets(group.benchmark, windows, channel, target_row)
                for method, forecast in forecasts.items():
                    errors = cell_sums.setdefault(method, ErrorSums())
                    errors.update(forecast[scored, : windows.horizon], target)
                    if rows is not None and config.per_window:
                        off = forecast[scored, : windows.horizon] - target
                        at = channel[scored], target_row[scored]
                        rows.add(_rows(group.benchmark, windows, method, at, off))
            bar.update(len(context))
    seconds = round(time.perf_counter() - start, 3)
    return [
        {
            **_describe(forecaster, group.benchmark, windows, config),
            **_score_fields(cell_sums),
            "wall_seconds": seconds,
            "wall_seconds_of_horizons": list(group.horizons),
        }
        for windows, cell_sums in zip(group.windows, sums, strict=True)
    ]


def _forecasts(
    forecaster: Forecaster | None,
    group: Group,
    context: Float64[np.ndarray, "B T"],
    config: EvalConfig,
    first_rows: Int64[np.ndarray, " W"],
) -> dict[str, Float64[np.ndarray, "B H"]]:
    """The forecasts of each method, as far as the longest horizon of the group.

    `first_rows` are those at which the contexts start, or of a model that reads the calendar each
    context of all columns.
    """
    horizon, length = max(group.horizons), context.shape[1]
    forecasts = _baselines(context, horizon, group.benchmark.season)
    if forecaster:
        given, marks = context, None
        if reads_calendar(forecaster, group.benchmark):
            given = context.reshape(len(first_rows), -1, length)
            marks = _marks(group.benchmark, first_rows, length + horizon)
        point = forecaster.forecast(
            given,
            horizon,
            context_length=length,
            normalize=config.normalize,
            batch_size=config.batch_size,
            marks=marks,
        ).point
        forecasts[MODEL] = point.reshape(len(context), horizon)
    return forecasts


def _marks(
    benchmark: Benchmark, first_rows: Int64[np.ndarray, " W"], size: int
) -> Float32[np.ndarray, "W M S"]:
    """The calendar of windows of so many rows; past the end of a dataset its last date stands.

    Those rows are beyond the horizons that the windows are scored at.
    """
    assert benchmark.timestamps is not None
    marks = calendar_marks(benchmark.timestamps)
    rows = first_rows[:, None] + np.arange(size)
    return np.moveaxis(marks[:, np.minimum(rows, marks.shape[1] - 1)], 0, 1)


def _targets(
    benchmark: Benchmark,
    windows: BenchmarkWindows,
    channel: Int64[np.ndarray, " B"],
    target_row: Int64[np.ndarray, " B"],
) -> tuple[Int64[np.ndarray, " S"], Float64[np.ndarray, "S H"]]:
    """Which contexts of a batch are followed by a window's target, and these targets."""
    # Window k of a channel has its first target in row k of the test split.
    scored = np.flatnonzero(target_row - benchmark.borders[1] < windows.num_per_channel)
    rows = target_row[scored, None] + np.arange(windows.horizon)
    return scored, benchmark.scaled[rows, channel[scored, None]]


def _score_fields(sums: Mapping[str, ErrorSums]) -> dict[str, float]:
    """MSE and MAE of the model, under bare names, and of the baselines."""
    fields: dict[str, float] = {}
    for method, prefix in ((MODEL, ""), *((name, f"{name}_") for name in BASELINES)):
        if method in sums:
            fields |= {f"{prefix}mse": sums[method].mse, f"{prefix}mae": sums[method].mae}
    return fields


def _results(cell: Cell) -> list[dict[str, Any]]:
    """A cell of the manifest as the results of its methods, in the format of all benchmarks."""
    methods = {"": MODEL, **{f"{name}_": name for name in BASELINES}}
    return [
        result_cell(
            "long_horizon",
            f"{cell['dataset']}/{cell['horizon']}",
            method,
            cell["wall_seconds"],
            {},
            {"mse": cell[f"{prefix}mse"], "mae": cell[f"{prefix}mae"], "windows": cell["windows"]},
        )
        for prefix, method in methods.items()
        if f"{prefix}mse" in cell
    ]


def _rows(
    benchmark: Benchmark,
    windows: BenchmarkWindows,
    method: str,
    at: tuple[Int64[np.ndarray, " S"], Int64[np.ndarray, " S"]],
    off: Float64[np.ndarray, "S H"],
) -> dict[str, Any]:
    """The rows of some windows, of the channels and first target rows `at`, with errors `off`."""
    channels, target_rows = at
    count = len(off)
    return {
        **{"benchmark": ["long_horizon"] * count, "method": [method] * count},
        "task": [f"{benchmark.name}/{windows.horizon}"] * count,
        "series": [benchmark.columns[channel] for channel in channels],
        "origin": target_rows,
        **{"horizon": [windows.horizon] * count, "points": [windows.horizon] * count},
        "mae": np.abs(off).mean(axis=1),
        "mse": np.square(off).mean(axis=1),
    }


def _baselines(
    context: Float64[np.ndarray, "B T"], horizon: int, season: int
) -> dict[str, Float64[np.ndarray, "B H"]]:
    length = context.shape[1]
    forecasts = {
        "naive": baselines.naive(context, horizon),
        "seasonal_naive": baselines.seasonal_naive(context, horizon, min(season, length)),
    }
    stretch = baselines.parroting_stretch(season, length)
    if stretch:
        forecasts["parroting"] = baselines.context_parroting(context, horizon, stretch)
    return forecasts


def _describe(
    forecaster: Forecaster | None,
    benchmark: Benchmark,
    windows: BenchmarkWindows,
    config: EvalConfig,
) -> Cell:
    """How the scores of a cell were obtained, in enough detail to obtain them again."""
    columns = zip(benchmark.columns, benchmark.mean.tolist(), benchmark.std.tolist(), strict=True)
    scaler = {name: {"mean": mean, "std": std} for name, mean, std in columns}
    return {
        "dataset": benchmark.name,
        "horizon": windows.horizon,
        "context_length": windows.context_length,
        "protocol": config.protocol,
        "normalize": config.normalize,
        "calendar": reads_calendar(forecaster, benchmark),
        "windows": len(windows),
        "windows_in_protocol": windows.total,
        "first_target_time": windows.first_target_time,
        "last_target_time": windows.last_target_time,
        "season": min(benchmark.season, windows.context_length),
        "parroting_stretch": baselines.parroting_stretch(benchmark.season, windows.context_length),
        "dataset_sha256": benchmark.sha256,
        "scaler": scaler,
        "checkpoint_hash": forecaster.digest if forecaster else None,
        "dtype": forecaster.config.dtype if forecaster else None,
        "versions": versions(),
    }


def results_table(manifest: Mapping[str, Any]) -> str:
    """The cells as Markdown: MSE / MAE of ours, the baselines and the published models."""
    cells, subset = manifest["cells"], bool(manifest["max_windows"])
    published = [name for name in PUBLISHED_MODELS if any(_published(c, name)[0] for c in cells)]
    header = ["dataset", "horizon", "ours", "naive", "seasonal naive", "context parroting"]
    header += [f"published {name}" for name in published] + ["windows"] * subset
    rows = [_row(cell, published, subset) for cell in cells]
    rows += [_average_row(cells, published, subset)] if len(cells) > 1 else []
    notes = [
        f"MSE / MAE on the scale of the train split; protocol {manifest['protocol']}; "
        f"checkpoint {manifest['checkpoint'] or 'none'}."
    ]
    if any(cell.get("calendar") for cell in cells):
        names = dict.fromkeys(cell["dataset"] for cell in cells if cell["calendar"])
        notes.append(f"The columns of {', '.join(names)} were read together, with their calendar.")
    if subset:
        notes.append(
            f"A subset: at most {manifest['max_windows']} evenly spaced windows of each cell."
        )
    return "\n".join([markdown_table(header, rows), *notes]) + "\n"


_Scores = tuple[float | None, float | None]  # MSE and MAE


def _published(cell: Cell, model: str) -> _Scores:
    """The published zero-shot scores of a cell, if there are any."""
    scores: Mapping[str, Any] = published_results.get((cell["dataset"], cell["horizon"]), {})
    return scores.get(model, (None, None))


def _all_scores(cell: Cell, published: Sequence[str]) -> list[_Scores]:
    """Ours, the baselines', and those of the published models named."""
    prefixes = ("", *(f"{name}_" for name in BASELINES))
    ours = [(cell.get(f"{prefix}mse"), cell.get(f"{prefix}mae")) for prefix in prefixes]
    return ours + [_published(cell, name) for name in published]


def _row(cell: Cell, published: Sequence[str], subset: bool) -> list[str]:
    row = [cell["dataset"], str(cell["horizon"])]
    row += [error_pair(*scores) for scores in _all_scores(cell, published)]
    return row + ([f"{cell['windows']:,} of {cell['windows_in_protocol']:,}"] if subset else [])


def _average_row(cells: Sequence[Cell], published: Sequence[str], subset: bool) -> list[str]:
    """Means over the cells, where each cell has a score."""

    def mean(values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return float(np.mean(numbers)) if len(numbers) == len(cells) else None

    columns = zip(*(_all_scores(cell, published) for cell in cells), strict=True)
    averages = [(mean([s[0] for s in column]), mean([s[1] for s in column])) for column in columns]
    return ["average", "", *(error_pair(*pair) for pair in averages), *([""] if subset else [])]
