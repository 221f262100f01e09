"""Scoring a checkpoint on long-horizon benchmarks, beside baselines on the same windows."""

import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax import baselines
from timemoe_jax.config import EvalConfig
from timemoe_jax.data.benchmarks import (
    Benchmark,
    BenchmarkWindows,
    benchmark_windows,
    default_context,
    find_dataset,
    load_benchmark,
    published_results,
)
from timemoe_jax.forecast import Forecaster
from timemoe_jax.logs import progress_bar
from timemoe_jax.metrics import ErrorSums

PUBLISHED_MODELS = ("base", "large", "ultra")
VERSIONS_OF = ("timemoe_jax", "jax", "jaxlib", "flax", "numpy")

Cell = dict[str, Any]


def run(config: EvalConfig) -> dict[str, Any]:
    """Scores every dataset at every horizon; prints a table and writes it with a manifest.

    `results.md` and `manifest.json` in the output folder are written anew after every cell, so
    that a long evaluation that is cut short keeps what it has.

    Returns:
      the manifest.

    Raises:
      DataError, CheckpointError, ConfigError: what was given cannot be used; nothing is scored.
    """
    # Everything that can be wrong is looked at before the first forecast.
    benchmarks = [load_benchmark(find_dataset(d, config.data_dir)) for d in config.datasets]
    plan = [(b, _windows(b, h, config)) for b in benchmarks for h in config.horizons]
    forecaster = _load(config)
    if forecaster:
        for _, windows in plan:
            forecaster.usable_context(windows.context_length, windows.horizon)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "checkpoint": config.checkpoint or None,
        "checkpoint_hash": forecaster.digest if forecaster else None,
        "protocol": config.protocol,
        "max_windows": config.max_windows,
        "cells": [],
    }
    for benchmark, windows in plan:
        cell = evaluate_cell(forecaster, benchmark, windows, config)
        manifest["cells"].append(cell)
        (output / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        (output / "results.md").write_text(results_table(manifest))
    print(results_table(manifest))
    print(f"wrote {output / 'results.md'} and {output / 'manifest.json'}")
    return manifest


def _windows(benchmark: Benchmark, horizon: int, config: EvalConfig) -> BenchmarkWindows:
    context = config.context_length or default_context(horizon)
    return benchmark_windows(benchmark, context, horizon, config.protocol, config.max_windows)


def _load(config: EvalConfig) -> Forecaster | None:
    if not config.checkpoint:
        return None
    return Forecaster.from_pretrained(config.checkpoint, config.dtype)


def evaluate_cell(
    forecaster: Forecaster | None,
    benchmark: Benchmark,
    windows: BenchmarkWindows,
    config: EvalConfig,
    progress: bool = True,
) -> Cell:
    """Scores one dataset at one horizon, on the scale of the train split, in float64.

    Args:
      forecaster: None scores the baselines alone.
      benchmark: the dataset.
      windows: of its test split.
      config: batch size, normalisation and protocol.
      progress: whether to show a progress bar.
    """
    methods = ("naive", "seasonal_naive", *(("model",) if forecaster else ()))
    sums = {method: ErrorSums() for method in methods}
    start = time.perf_counter()
    title = f"{benchmark.name} {windows.horizon}"
    with progress_bar(total=len(windows), desc=title, unit="window", disable=not progress) as bar:
        for context, target, *_ in windows.batches(config.batch_size):
            forecasts = _baselines(context, windows.horizon, benchmark.season)
            if forecaster:
                forecasts["model"] = forecaster.forecast(
                    context,
                    windows.horizon,
                    context_length=context.shape[1],
                    normalize=config.normalize,
                    batch_size=config.batch_size,
                ).point
            for method, forecast in forecasts.items():
                sums[method].update(forecast, target)
            bar.update(len(context))
    cell = _describe(forecaster, benchmark, windows, config)
    if forecaster:
        cell |= {"mse": sums["model"].mse, "mae": sums["model"].mae}
    for method in ("naive", "seasonal_naive"):
        cell |= {f"{method}_mse": sums[method].mse, f"{method}_mae": sums[method].mae}
    return {**cell, "wall_seconds": round(time.perf_counter() - start, 3)}


def _baselines(
    context: Float64[np.ndarray, "B T"], horizon: int, season: int
) -> dict[str, Float64[np.ndarray, "B H"]]:
    season = min(season, context.shape[1])
    return {
        "naive": baselines.naive(context, horizon),
        "seasonal_naive": baselines.seasonal_naive(context, horizon, season),
    }


def _describe(
    forecaster: Forecaster | None,
    benchmark: Benchmark,
    windows: BenchmarkWindows,
    config: EvalConfig,
) -> Cell:
    """How a cell was obtained, in enough detail to obtain it again."""
    scaler = {
        column: {"mean": float(mean), "std": float(std)}
        for column, mean, std in zip(benchmark.columns, benchmark.mean, benchmark.std, strict=True)
    }
    return {
        "dataset": benchmark.name,
        "horizon": windows.horizon,
        "context_length": windows.context_length,
        "protocol": config.protocol,
        "normalize": config.normalize,
        "windows": len(windows),
        "windows_in_protocol": windows.total,
        "first_target_time": windows.first_target_time,
        "last_target_time": windows.last_target_time,
        "season": min(benchmark.season, windows.context_length),
        "dataset_sha256": benchmark.sha256,
        "scaler": scaler,
        "checkpoint_hash": forecaster.digest if forecaster else None,
        "dtype": forecaster.config.dtype if forecaster else None,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def results_table(manifest: Mapping[str, Any]) -> str:
    """The cells as Markdown: MSE / MAE of ours, the baselines and the published models."""
    cells = manifest["cells"]
    published = [name for name in PUBLISHED_MODELS if any(_published(c, name)[0] for c in cells)]
    header = ["dataset", "horizon", "ours", "naive", "seasonal naive"]
    header += [f"published {name}" for name in published]
    header += ["windows"] if manifest["max_windows"] else []
    subset = bool(manifest["max_windows"])
    rows = [_row(cell, published, subset) for cell in cells]
    rows += [_average_row(cells, published, subset)] if len(cells) > 1 else []
    lines = [" | ".join(header), " | ".join("---" for _ in header), *map(" | ".join, rows)]
    notes = [
        f"MSE / MAE on the scale of the train split; protocol {manifest['protocol']}; "
        f"checkpoint {manifest['checkpoint'] or 'none'}."
    ]
    if manifest["max_windows"]:
        notes.append(
            f"A subset: at most {manifest['max_windows']} evenly spaced windows of each cell."
        )
    return "\n".join(f"| {line} |" for line in lines) + "\n\n" + "\n".join(notes) + "\n"


_Scores = tuple[float | None, float | None]  # MSE and MAE


def _published(cell: Cell, model: str) -> _Scores:
    """The published zero-shot scores of a cell, if there are any."""
    return published_results.get((cell["dataset"], cell["horizon"]), {}).get(model, (None, None))


def _scores(cell: Cell, method: str) -> _Scores:
    return cell.get(f"{method}mse"), cell.get(f"{method}mae")


def _all_scores(cell: Cell, published: Sequence[str]) -> list[_Scores]:
    """Ours, the baselines', and those of the published models named."""
    ours = [_scores(cell, method) for method in ("", "naive_", "seasonal_naive_")]
    return ours + [_published(cell, name) for name in published]


def _row(cell: Cell, published: Sequence[str], subset: bool) -> list[str]:
    row = [cell["dataset"], str(cell["horizon"])]
    row += [_pair(scores) for scores in _all_scores(cell, published)]
    return row + ([f"{cell['windows']:,} of {cell['windows_in_protocol']:,}"] if subset else [])


def _average_row(cells: Sequence[Cell], published: Sequence[str], subset: bool) -> list[str]:
    """Means over the cells, where each cell has a score."""

    def mean(values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return float(np.mean(numbers)) if len(numbers) == len(cells) else None

    columns = zip(*(_all_scores(cell, published) for cell in cells), strict=True)
    averages = [(mean([s[0] for s in column]), mean([s[1] for s in column])) for column in columns]
    return ["average", "", *map(_pair, averages), *([""] if subset else [])]


def _pair(scores: _Scores) -> str:
    mse, mae = scores
    return "" if mse is None or mae is None else f"{mse:.4f} / {mae:.4f}"
