"""Two runs of an evaluation compared window by window: `timemoe compare RUN_A RUN_B`."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from timemoe_jax.errors import DataError, listed
from timemoe_jax.evaluation.comparisons.paired import (
    Interval,
    Paired,
    compare_paired,
    interval,
    resampled_means,
    sums_by_series,
    win_rate,
)
from timemoe_jax.evaluation.comparisons.pictures import plot_ratios
from timemoe_jax.evaluation.records import MANIFEST, Rows, read_windows
from timemoe_jax.evaluation.tables import markdown_table

# Columns of windows whose mean is an error.
METRICS = ("mase", "sql", "mae", "mse", "quantile_loss")
_KEY = ("benchmark", "task", "series", "origin", "horizon")


@dataclasses.dataclass(frozen=True)
class RunComparison:
    """The result of `compare_runs`: errors of A beside those of B on the windows of both."""

    a: str  # run and method
    b: str
    metric: str
    tasks: dict[str, Paired]  # of each task, by name
    ratio: Interval  # the geometric mean over tasks of the ratio of mean errors, A / B
    wins: float  # the share of windows in which A is better; ties count half
    series_wins: float  # the same of the mean errors of series
    windows: int  # that are compared
    only_a: int  # windows that only A has
    only_b: int
    unscored: int  # windows of both without a score in one of them
    no_ratio: int  # tasks without a ratio, since an error is 0: not in the geometric mean

    def summary(self) -> str:
        """A sentence: which run is better, by how much, and whether that could be chance."""
        low, high = self.ratio.low, self.ratio.high
        better = "better" if self.ratio.value < 1 else "worse"
        text = (
            f"{self.a} is {better} than {self.b}: its {self.metric} is "
            f"{self.ratio.value:.3f} times as large [{low:.3f}, {high:.3f}]"
        )
        if not low <= high:
            return f"{self.a} and {self.b}: no ratio of {self.metric}"
        certain = high < 1 or low > 1
        return text if certain else f"{text}, which may be chance"

    def to_markdown(self) -> str:
        """A table with a row for each task and one for all, and what was left out."""
        header = ["task", "series", "windows", "A", "B", "A - B [95%]", "A / B [95%]"]
        header += ["wins by window", "wins by series"]
        rows = [
            [
                *(task, f"{each.series:,}", f"{each.windows:,}", f"{each.a:.4g}", f"{each.b:.4g}"),
                *(str(each.difference), str(each.ratio)),
                *(f"{each.wins:.0%}", f"{each.series_wins:.0%}"),
            ]
            for task, each in self.tasks.items()
        ]
        if len(rows) > 1:
            series = f"{sum(each.series for each in self.tasks.values()):,}"
            wins = [f"{self.wins:.0%}", f"{self.series_wins:.0%}"]
            count = f"{self.windows:,}"
            rows.append(
                [f"all {len(rows)} tasks", series, count, "", "", "", str(self.ratio), *wins]
            )
        return f"{self.summary()}.\n\n{markdown_table(header, rows)}\n{self._notes()}\n"

    def _notes(self) -> str:
        notes = [
            f"A is {self.a}, B is {self.b}; mean {self.metric} of the windows that both have. "
            "Wins are of A; ties count half. Intervals are of 95%, bootstrapped over the series of "
            "each task; the last row of several tasks is their geometric mean."
        ]
        single = sum(each.series == 1 for each in self.tasks.values())
        if single:
            notes.append(
                "A task of one series has no interval, and counts as certain in that of all: "
                f"{single:,} of {len(self.tasks):,} tasks."
            )
        counts = (
            (self.only_a, "window", "that only A has"),
            (self.only_b, "window", "that only B has"),
            (self.unscored, "window", f"without a {self.metric} in one of them"),
            (self.no_ratio, "task", "in no ratio, since an error is 0"),
        )
        notes += [
            f"Not compared: {count:,} {noun}{'s' * (count > 1)} {what}."
            for count, noun, what in counts
            if count
        ]
        return "\n".join(notes)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it but for NaN."""
        return dataclasses.asdict(self)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draws the ratio of each task with its interval, and that of all."""
        names, ratios = [*self.tasks], [each.ratio for each in self.tasks.values()]
        if len(names) > 1:
            names, ratios = [f"all {len(names)} tasks", *names], [self.ratio, *ratios]
        title = f"{self.metric} of {self.a} over that of {self.b}"
        return plot_ratios(path, names, ratios, title, "A is better", "A is worse")


def compare_runs(
    run_a: str | os.PathLike[str],
    run_b: str | os.PathLike[str],
    metric: str = "mase",
    method_a: str | None = None,
    method_b: str | None = None,
    seed: int = 0,
) -> RunComparison:
    """Compares two evaluations on the windows that both have, of whatever benchmark.

    Args:
      run_a, run_b: output folders of evaluations with `per_window`, or their files of windows. They
        may be the same, to compare two methods of one evaluation.
      metric: one of `METRICS`; "quantile_loss" compares weighted quantile losses.
      method_a, method_b: the method of each; by default the model, or the only method there is.
      seed: of the bootstrap.

    Raises:
      DataError: there are no windows, no such method or metric, or no window of both runs.
    """
    if metric not in METRICS:
        raise DataError(f"metric must be one of {', '.join(METRICS)}, but is {metric!r}")
    label_a, rows_a = _of_method(Path(run_a), method_a, "method_a")
    label_b, rows_b = _of_method(Path(run_b), method_b, "method_b")
    keys_a, keys_b = _keys(rows_a, label_a), _keys(rows_b, label_b)
    both = [key for key in keys_a if key in keys_b]
    if not both:
        tasks_a, tasks_b = ({f"{k[0]} {k[1]}" for k in keys} for keys in (keys_a, keys_b))
        raise DataError(
            f"no window is in both: {label_a} has windows of {listed(sorted(tasks_a), 3)}, "
            f"{label_b} of {listed(sorted(tasks_b), 3)}; the same window has the same benchmark, "
            "task, series, origin and horizon"
        )
    a = rows_a.columns[metric][[keys_a[key] for key in both]]
    b = rows_b.columns[metric][[keys_b[key] for key in both]]
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        raise DataError(f"none of the {len(both):,} windows of both has a {metric} in both")
    return _compare(
        *(label_a, label_b, metric, both, a, b, known, seed),
        only=(len(keys_a) - len(both), len(keys_b) - len(both)),
    )


def _compare(
    label_a: str,
    label_b: str,
    metric: str,
    keys: list[tuple[Any, ...]],
    a: Float64[np.ndarray, " W"],
    b: Float64[np.ndarray, " W"],
    known: Bool[np.ndarray, " W"],
    seed: int,
    only: tuple[int, int],
) -> RunComparison:
    several = len({key[0] for key in keys}) > 1
    names = np.array([f"{key[0]} {key[1]}" if several else key[1] for key in keys], object)
    series = np.array([key[2] for key in keys], object)
    names, series, a, b = names[known], series[known], a[known], b[known]
    tasks, logs, resampled, wins = {}, [], [], []
    for number, name in enumerate(dict.fromkeys(names.tolist())):
        of_task = names == name
        _, cluster = np.unique(series[of_task], return_inverse=True)
        # Of its own seed, so that tasks are resampled independently.
        tasks[name] = compare_paired(a[of_task], b[of_task], cluster, seed + number)
        log, boot, better = _logs(a[of_task], b[of_task], cluster, seed + number)
        wins.append(better)
        if np.isfinite(log):
            logs.append(log)
            resampled.append(boot)
    ratio = Interval(*(float("nan"),) * 3)
    if logs:
        clusters = sum(each.series for each in tasks.values())
        resampled_ratio = np.exp(np.mean(resampled, axis=0))
        ratio = interval(float(np.exp(np.mean(logs))), resampled_ratio, clusters)
    return RunComparison(
        a=label_a,
        b=label_b,
        metric=metric,
        tasks=tasks,
        ratio=ratio,
        wins=win_rate(a, b),
        series_wins=float(np.concatenate(wins).mean()),
        windows=len(a),
        only_a=only[0],
        only_b=only[1],
        unscored=int((~known).sum()),
        no_ratio=len(tasks) - len(logs),
    )


def _logs(
    a: Float64[np.ndarray, " W"],
    b: Float64[np.ndarray, " W"],
    cluster: Int64[np.ndarray, " W"],
    seed: int,
) -> tuple[float, Float64[np.ndarray, " R"], Float64[np.ndarray, " S"]]:
    """The log ratio of a task's mean errors, that of bootstrap samples, and its series' wins."""
    sums = sums_by_series(a, b, cluster)
    better = (sums[:, 0] < sums[:, 1]) + 0.5 * (sums[:, 0] == sums[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        boot_a, boot_b = resampled_means(sums, seed)
        log = np.log(a.mean() / b.mean())
        return float(log), np.log(boot_a / boot_b), better


def _of_method(run: Path, method: str | None, argument: str) -> tuple[str, Rows]:
    """The rows of one method of a run, and what to call it."""
    rows = read_windows(run)
    methods = [*dict.fromkeys(rows.columns["method"].tolist())]
    chosen = method or _model_of(run) or (methods[0] if len(methods) == 1 else None)
    if chosen not in methods:
        wrong = f"has no method {chosen!r}" if chosen else "has several methods and no model"
        raise DataError(f"{run} {wrong}; give {argument} as one of {listed(methods, 20)}")
    part = rows.columns["method"] == chosen
    columns = {name: values[part] for name, values in rows.columns.items()}
    folder = run if run.is_dir() else run.parent
    return f"{folder.name}/{chosen}", Rows(columns)


def _model_of(run: Path) -> str | None:
    """The name of the model, where a manifest beside the windows says it."""
    path = (run if run.is_dir() else run.parent) / MANIFEST
    try:
        model = json.loads(path.read_text("utf-8")).get("model")
    except (OSError, ValueError, AttributeError):
        return None
    return model if isinstance(model, str) else None


def _keys(rows: Rows, label: str) -> dict[tuple[Any, ...], int]:
    """The row of each window, by what tells windows apart."""
    columns = [rows.columns[name].tolist() for name in _KEY]
    keys: dict[tuple[Any, ...], int] = {}
    for i, key in enumerate(zip(*columns, strict=True)):
        if keys.setdefault(key, i) != i:
            named = ", ".join(f"{n} {v}" for n, v in zip(_KEY, key, strict=True))
            raise DataError(f"{label} has the window {named} twice, so that it cannot be paired")
    return keys
