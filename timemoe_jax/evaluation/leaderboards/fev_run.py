"""Evaluates methods on fev-bench, through the package fev where it is installed."""

import dataclasses
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.leaderboards import scoring, tables
from timemoe_jax.evaluation.leaderboards.config import TEST_SPLIT, TRAIN_SPLIT, FevConfig
from timemoe_jax.evaluation.leaderboards.derived import FEV_BENCH, Item
from timemoe_jax.evaluation.leaderboards.fev_tasks import (
    DERIVED,
    METRICS,
    SOURCE,
    FevTask,
    find_fev,
    load_fev,
    read_definitions,
)
from timemoe_jax.evaluation.leaderboards.reference import NormalSeasonalNaive
from timemoe_jax.evaluation.leaderboards.scoring import Outcome, Scored
from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.scores import WindowScores, seasonal_scales
from timemoe_jax.files import write_text

MOST_POINTS = 1000  # that fev's seasonal naive reads
# Of fev's summaries, in their order.
SUMMARY_COLUMNS = (
    *("model_name", "dataset_path", "dataset_config", "horizon", "num_windows", "initial_cutoff"),
    *("window_step_size", "min_context_length", "max_context_length", "seasonality"),
    *("eval_metric", "extra_metrics", "quantile_levels", "id_column", "timestamp_column"),
    *("target", "generate_univariate_targets_from", "known_dynamic_columns"),
    *("past_dynamic_columns", "static_columns", "task_name", "test_error", "training_time_s"),
    *("inference_time_s", "num_forecasts", "dataset_fingerprint", "trained_on_this_dataset"),
    *("fev_version", "SQL", "MASE", "WAPE", "WQL"),
)
EPSILON = 1.0  # the least mean of absolute targets that WAPE and WQL divide by


def run(config: FevConfig) -> dict[str, Any]:
    """Scores methods on tasks of fev-bench; returns the manifest, which is written too.

    Where fev is installed, its own summaries say the scores; without it the same numbers are
    computed here. The output folder takes `results.md`, `manifest.json` and, for each method,
    `results/METHOD.csv` with the columns of fev's summaries.

    Raises:
      TimeMoeError: a task, the checkpoint or a method cannot be used.
    """
    known = read_definitions(config.tasks) if config.tasks else DERIVED
    unknown = [name for name in config.datasets if name not in known]
    if unknown:
        raise DataError(
            f"datasets: there is no task {', '.join(unknown)}; known are {', '.join(known)}"
        )
    for name in config.datasets:
        find_fev(known[name], config.data_dir)
    compared = scoring.compared_methods(config, NormalSeasonalNaive(MOST_POINTS))
    rows: dict[str, list[dict[str, Any]]] = {method.name: [] for method in compared.methods}
    loaded: dict[str, FevTask] = {}

    def tasks() -> Iterator[Scored]:
        for name in config.datasets:
            loaded.clear()
            loaded[name] = fev_task = load_fev(known[name], config.data_dir)
            files = FEV_BENCH[known[name].dataset_config].files if fev_task.derived else ()
            scales = seasonal_scales(fev_task.task, one_where_short=False)
            yield Scored(fev_task.task, scales, files, fev_task.groups, _notes(fev_task))

    def keep(scored: Scored, outcomes: list[Outcome]) -> list[Outcome]:
        fev_task, found = loaded[scored.task.name], []
        exposure = scoring.exposure_to(config, scored.files)
        for outcome in outcomes:
            seen = outcome.method == compared.model and exposure in (TRAIN_SPLIT, TEST_SPLIT)
            summary = summary_of(fev_task, outcome, seen)
            rows[outcome.method].append(summary)
            path = Path(config.output_dir) / "results" / f"{outcome.method}.csv"
            write_text(path, scoring.as_csv(rows[outcome.method]))
            scores = {"sql": summary["SQL"], "mase": summary["MASE"], "crps": summary["WQL"]}
            own = dataclasses.replace(outcome.scores, **scores)
            found.append(dataclasses.replace(outcome, scores=own))
        return found

    return scoring.evaluate_tasks(config, compared, tasks(), keep, tables.report)


def _notes(fev_task: FevTask) -> tuple[str, ...]:
    covariates, left_out = fev_task.definition.covariates, fev_task.left_out
    notes = [f"{len(covariates)} covariates are not used"] if covariates else []
    notes += [f"{left_out} windows of series that are too short are left out"] if left_out else []
    return tuple(notes)


def summary_of(fev_task: FevTask, outcome: Outcome, trained_on: bool) -> dict[str, Any]:
    """What `fev.Task.evaluation_summary` says of a forecast: by fev if it is installed, else here.

    The data set is named as it is published. Without fev there is no fingerprint of the data.
    """
    definition = fev_task.definition
    if has_fev():
        summary = summary_by_fev(fev_task, outcome, trained_on)
    else:
        summary = own_summary(fev_task, outcome, trained_on)
    named = {"dataset_path": SOURCE, "dataset_config": definition.dataset_config}
    return {**summary, **named, "task_name": definition.name}


def has_fev() -> bool:
    """Whether the package fev is installed."""
    return importlib.util.find_spec("fev") is not None


def own_summary(fev_task: FevTask, outcome: Outcome, trained_on: bool) -> dict[str, Any]:
    """The fields of fev's summary, computed without it."""
    definition, scores = fev_task.definition, outcome.scores
    fields = definition.fields()
    if definition.initial_cutoff is None:
        fields["initial_cutoff"] = (
            -definition.horizon - (definition.num_windows - 1) * definition.step
        )
    elif isinstance(definition.initial_cutoff, str):
        fields["initial_cutoff"] = str(np.datetime64(definition.initial_cutoff, "s"))
    target = fields["target"]
    fields["target"] = sorted(target) if isinstance(target, list) else target
    wape, wql = _weighted(outcome.windows, fev_task.groups)
    found = {
        "model_name": outcome.method,
        "dataset_path": SOURCE,
        "dataset_config": definition.dataset_config,
        **fields,
        "window_step_size": definition.step,
        **METRICS,
        "test_error": scores.sql,
        "training_time_s": 0.0,
        "inference_time_s": outcome.seconds,
        "num_forecasts": len(fev_task.task),
        "trained_on_this_dataset": trained_on,
        **{"SQL": scores.sql, "MASE": scores.mase, "WAPE": wape, "WQL": wql},
    }
    # No covariates are read, and without fev there is no fingerprint of the data.
    empty: dict[str, Any] = {name: [] for name in SUMMARY_COLUMNS if name.endswith("_columns")}
    return {name: (empty | found).get(name) for name in SUMMARY_COLUMNS}


def _weighted(windows: WindowScores, groups: np.ndarray) -> tuple[float, float]:
    """WAPE and WQL: means over groups, of which none is divided by less than `EPSILON`."""
    used, at = np.unique(groups, return_inverse=True)

    def means(sums: np.ndarray) -> np.ndarray:
        points = np.bincount(at, windows.points, len(used))
        return np.bincount(at, sums, len(used)) / np.where(points > 0, points, np.nan)

    size = np.maximum(means(windows.target), EPSILON)
    losses = [means(loss) / size for loss in windows.quantile_loss.T]
    return float(np.mean(means(windows.absolute) / size)), float(np.mean(losses))


def summary_by_fev(fev_task: FevTask, outcome: Outcome, trained_on: bool) -> dict[str, Any]:
    """What fev says of a forecast, from a Parquet file of the items; it needs no network."""
    import fev

    definition = fev_task.definition
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.parquet"
        _write_items(fev_task, path)
        task = fev.Task(dataset_path=str(path), **definition.fields(), **METRICS)
        numbers = range(definition.num_windows)
        windows = [_predictions(fev_task, outcome.forecast, number) for number in numbers]
        summary = task.evaluation_summary(
            windows,
            model_name=outcome.method,
            training_time_s=0.0,
            inference_time_s=outcome.seconds,
            trained_on_this_dataset=trained_on,
        )
    return dict(summary)


def _predictions(
    fev_task: FevTask, forecast: MethodForecast, number: int
) -> Mapping[str, list[dict[str, list[float]]]]:
    """The forecasts of a window in fev's layout: for each target column, those of the items."""
    found: dict[str, list[dict[str, list[float]]]] = {}
    for c, column in enumerate(fev_task.definition.target):
        # Windows are in the order of the items.
        chosen = np.flatnonzero((fev_task.numbers == number) & (fev_task.columns == c))
        found[column] = [
            {
                "predictions": forecast.point[i].tolist(),
                **{
                    str(level): forecast.quantiles[i, :, q].tolist()
                    for q, level in enumerate(fev_task.task.levels)
                },
            }
            for i in chosen
        ]
    return found


def _write_items(fev_task: FevTask, path: Path) -> None:
    import pandas as pd

    definition = fev_task.definition
    rows = []
    for item in fev_task.items:
        columns = zip(definition.target, item.values, strict=True)
        times = _times(item, fev_task.task.freq)
        rows.append(
            {definition.id_column: item.name, definition.timestamp_column: times, **dict(columns)}
        )
    pd.DataFrame(rows).to_parquet(path)


def _times(item: Item, freq: str | None) -> np.ndarray:
    """The times of an item; where they do not matter, regular ones."""
    import pandas as pd

    if item.times is not None:
        return item.times
    return pd.date_range("2000-01-01", periods=item.values.shape[1], freq=freq).to_numpy()
