"""One number that recipes are chosen by: forecasts of held-out sources of every frequency.

timemoe score --checkpoint=RUN --path=CORPUS --selection=configs/mini_selection.csv

A table names the sources, whole or by a range of their series, with a season and a horizon for
each. From every source windows of many context lengths are taken. A source's MASE and its weighted
quantile loss are divided by those of seasonal naive, and geometric means over sources are taken, so
that no source outweighs another by its length or by being hard to forecast.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from timemoe_jax.data.formats.open import SourcePart
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.scores import Scores, geometric_mean, score_windows, summarize
from timemoe_jax.evaluation.tables import markdown_table
from timemoe_jax.evaluation.tasks import DECILES, Task
from timemoe_jax.files import read_rows
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.forecasting.scoring.baselines import seasonal_naive, seasonal_naive_quantiles
from timemoe_jax.forecasting.scoring.metrics import without_nan

# Points of the contexts: one length after the other, as far as a source has series for them.
CONTEXTS = (24, 48, 96, 192, 384, 768, 1536, 2048)
SHORTEST = CONTEXTS[0] // 2  # points of a context, of a source that has no longer ones
COLUMNS = ("frequency", "source", "first", "stop", "season", "horizon")
# Windows of one source lie this share of the room that their series have apart: the golden ratio
# spreads any number of them evenly.
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class SelectionSource:
    """A row of the table."""

    frequency: str  # the class that it is counted in, such as "monthly"
    source: str  # domain/source
    first: int  # of its series
    stop: int | None  # the series after the last; None: all
    season: int  # points
    horizon: int  # points

    @property
    def name(self) -> str:
        """As results show it, with the range of a part of a source."""
        if self.stop is None and not self.first:
            return self.source
        return f"{self.source}[{self.first}:{'' if self.stop is None else self.stop}]"


def read_selection(path: str | Path) -> list[SelectionSource]:
    """Reads the table: a CSV file with the columns of `COLUMNS`; an empty range is all series.

    Raises:
      DataError: the file cannot be read, or a row says something else.
    """
    sources = []
    for number, row in enumerate(read_rows(path, COLUMNS), 2):
        try:
            numbers = [int(row[name]) for name in ("season", "horizon")]
            stop = int(row["stop"]) if row["stop"] else None
            entry = (row["frequency"], row["source"], int(row["first"] or 0), stop)
            sources.append(SelectionSource(*entry, *numbers))
        except (TypeError, ValueError):
            raise DataError(
                f"{path}, line {number}: season and horizon must be whole numbers, and first and "
                "stop too, or empty"
            ) from None
        if min(numbers) < 1:
            raise DataError(f"{path}, line {number}: season and horizon must be at least 1")
    return sources


def _series_of(
    entry: SelectionSource, source: SequenceSource, parts: Sequence[SourcePart]
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """The numbers and lengths of a source's series; a DataError where none is long enough."""
    found = [part for part in parts if part.label == entry.source]
    if not found:
        known = ", ".join(sorted({part.label for part in parts}))
        raise DataError(f"{entry.source} is none of the sources: {known}")
    ids = np.concatenate([np.arange(part.first, part.stop) for part in found])
    ids = ids[entry.first : entry.stop]
    lengths = source.lengths[ids] if len(ids) else np.zeros(0, np.int64)
    if lengths.max(initial=0) < SHORTEST + entry.horizon:
        raise DataError(
            f"{entry.name} has no series of {SHORTEST + entry.horizon} points, a context "
            "and the horizon"
        )
    return ids, lengths


def last_horizon_task(
    entry: SelectionSource, source: SequenceSource, parts: Sequence[SourcePart], most: int
) -> Task:
    """The last horizon of at most so many series of a source, evenly spaced; all before it is read.

    Series without `SHORTEST` points before their last horizon are left out.

    Raises:
      DataError: the source is not there, or has no series that is long enough.
    """
    ids, lengths = _series_of(entry, source, parts)
    fitting = ids[lengths >= SHORTEST + entry.horizon]
    chosen = fitting[np.unique((2 * np.arange(most) + 1) * len(fitting) // (2 * most))]
    return _task(entry, [source[int(i)].astype(np.float64) for i in chosen], "series")


def selection_task(
    entry: SelectionSource, source: SequenceSource, parts: Sequence[SourcePart], windows: int
) -> Task:
    """The windows of one source, evenly over context lengths, series and times.

    A series of a task is one window: a context and what follows it. Windows with a missing value
    where they begin to be forecast, or a flat context, are left to the scores, which count them.

    Raises:
      DataError: the source is not there, or too short for a context of half of the shortest.
    """
    ids, lengths = _series_of(entry, source, parts)
    longest = int(lengths.max()) - entry.horizon
    contexts = [c for c in CONTEXTS if c <= longest] or [longest]
    series = []
    for number in range(windows):
        context = contexts[number % len(contexts)]
        fitting = ids[lengths >= context + entry.horizon]
        chosen = int(fitting[(2 * number + 1) * len(fitting) // (2 * windows)])
        room = int(source.lengths[chosen]) - context - entry.horizon
        start = int(room * (number * _GOLDEN % 1))
        values = source.read(chosen, start, start + context + entry.horizon)
        series.append(values.astype(np.float64))
    return _task(entry, series, "window")


def _task(entry: SelectionSource, series: Sequence[Float64[np.ndarray, " _"]], each: str) -> Task:
    """A task of which the last horizon of every series is forecast."""
    return Task(
        name=entry.name,
        series=tuple(series),
        names=tuple(f"{each} {i}" for i in range(len(series))),
        origins=tuple(np.array([len(s) - entry.horizon]) for s in series),
        horizon=entry.horizon,
        season=entry.season,
    )


def seasonal_naive_forecast(task: Task) -> MethodForecast:
    """The last season again; the last value where a context has not a season and a point more."""
    points, quantiles = [], []
    for context in task.contexts():
        season = task.season if len(context) > task.season else 1
        row = context[None]
        points.append(seasonal_naive(row, task.horizon, season)[0])
        spread = seasonal_naive_quantiles(row, task.horizon, season, task.levels)
        quantiles.append(spread[0])
    return MethodForecast(np.stack(points), np.stack(quantiles))


def model_forecasts(forecaster: Forecaster, tasks: Sequence[Task]) -> list[MethodForecast]:
    """Forecasts of a model; one without quantile heads says its point at every level."""
    by_horizon: dict[int, list[int]] = defaultdict(list)
    for i, task in enumerate(tasks):
        by_horizon[task.horizon].append(i)
    has_heads = bool(forecaster.config.quantile_levels)
    found: dict[int, MethodForecast] = {}
    for horizon, chosen in by_horizon.items():
        contexts = [context for i in chosen for context in tasks[i].contexts()]
        levels = list(DECILES) if has_heads else None
        result = forecaster.forecast(contexts, horizon, quantile_levels=levels)
        spread: Float64[np.ndarray, "W H Q"] = (
            result.quantiles
            if result.quantiles is not None
            else np.repeat(result.point[..., None], len(DECILES), axis=-1)
        )
        ends = np.cumsum([0, *(len(tasks[i]) for i in chosen)])
        for i, first, stop in zip(chosen, ends, ends[1:], strict=False):
            found[i] = MethodForecast(result.point[first:stop], spread[first:stop])
    return [found[i] for i in range(len(tasks))]


@dataclasses.dataclass(frozen=True)
class SelectionResult:
    """The scores of a model, and of seasonal naive on the same windows."""

    entries: tuple[SelectionSource, ...]
    scores: tuple[Scores, ...]
    naive: tuple[Scores, ...]

    def relative(self, score: str, frequency: str | None = None) -> float:
        """The geometric mean over the sources of a frequency, or all, of a ratio to naive's."""
        rows = zip(self.entries, self.scores, self.naive, strict=True)
        return geometric_mean(
            [
                getattr(of_model, score) / getattr(of_naive, score)
                for entry, of_model, of_naive in rows
                if frequency in (None, entry.frequency)
            ]
        )

    @property
    def score(self) -> float:
        """What selects: the geometric mean of relative MASE and relative weighted quantile loss."""
        return math.sqrt(self.relative("mase") * self.relative("crps"))

    def coverage(self, frequency: str | None = None) -> float:
        """The mean share of what came within the intervals of 80%, over the sources."""
        chosen = [
            scores.coverage
            for entry, scores in zip(self.entries, self.scores, strict=True)
            if frequency in (None, entry.frequency)
        ]
        return float(np.mean(chosen))

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        sources = [
            {
                **dataclasses.asdict(e),
                "model": dataclasses.asdict(m),
                "naive": dataclasses.asdict(n),
            }
            for e, m, n in zip(self.entries, self.scores, self.naive, strict=True)
        ]
        ratios = {f: self._ratios(f) for f in self._frequencies()}
        total = {"score": self.score, **self._ratios(None)}
        return without_nan({"total": total, "frequencies": ratios, "sources": sources})

    def _frequencies(self) -> list[str]:
        return list(dict.fromkeys(entry.frequency for entry in self.entries))

    def _ratios(self, frequency: str | None) -> dict[str, float]:
        return {
            "mase": self.relative("mase", frequency),
            "crps": self.relative("crps", frequency),
            "coverage": self.coverage(frequency),
        }

    def to_markdown(self) -> str:
        """A table of the sources, and one of the frequencies, over seasonal naive."""
        rows = [
            [
                *(e.name, e.frequency, f"{m.windows}", f"{m.mase / n.mase:.3f}"),
                *(f"{m.crps / n.crps:.3f}", f"{m.coverage:.0%}"),
            ]
            for e, m, n in zip(self.entries, self.scores, self.naive, strict=True)
        ]
        header = ["source", "frequency", "windows", "MASE", "WQL", "within 80%"]
        sources = markdown_table(header, rows)
        totals = []
        for frequency in (*self._frequencies(), None):
            ratios = self._ratios(frequency)
            shown = [f"{ratios['mase']:.3f}", f"{ratios['crps']:.3f}", f"{ratios['coverage']:.0%}"]
            totals.append([frequency or "all", *shown])
        table = markdown_table(["frequency", "MASE", "WQL", "within 80%"], totals)
        unscaled = sum(m.without_scale for m in self.scores)
        return (
            f"{sources}\n{table}\nRelative to seasonal naive, geometric means over sources; "
            f"{unscaled} windows repeat themselves exactly and have no MASE.\n\n"
            f"selection score {self.score:.4f}\n"
        )


def select(
    entries: Sequence[SelectionSource],
    source: SequenceSource,
    parts: Sequence[SourcePart],
    forecast: Callable[[Sequence[Task]], Sequence[MethodForecast]],
    windows: int = 48,
) -> SelectionResult:
    """Scores forecasts of all tasks of a table, `windows` of each source."""
    tasks = [selection_task(entry, source, parts, windows) for entry in entries]
    return rate(entries, tasks, forecast(tasks))


def rate(
    entries: Sequence[SelectionSource], tasks: Sequence[Task], made: Sequence[MethodForecast]
) -> SelectionResult:
    """Scores forecasts of the tasks of some sources, and seasonal naive's of the same."""
    pairs = zip(tasks, made, strict=True)
    scores = [summarize(score_windows(task, forecast)) for task, forecast in pairs]
    naive = [summarize(score_windows(task, seasonal_naive_forecast(task))) for task in tasks]
    return SelectionResult(tuple(entries), tuple(scores), tuple(naive))
