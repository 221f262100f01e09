"""Data frames in and out of a forecast: series on regular times, and the times that follow."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from timemoe_jax.data.formats.frames import codes_of, numbers_of
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.frequencies import parse_frequency
from timemoe_jax.forecasting.frames.grids import Grid, grids_of, next_instants
from timemoe_jax.forecasting.frames.rows import SortedRows, timed_layout
from timemoe_jax.forecasting.frames.times import TimeType, read_times


@dataclasses.dataclass(frozen=True, eq=False)
class TimedSeries:
    """One series of a data frame, with a value or NaN at every time of its grid.

    `values` may share memory with the frame, and must not be written to. `rows` holds the row of
    the frame at each time, -1 where there is none; it is None if the frame has no covariates.
    """

    id: Any  # what the id column says; None without one
    target_name: str  # the column that the values are from
    values: Float64[np.ndarray, " T"]
    grid: Grid
    times: TimeType
    missing: int  # rows without a value
    reordered: int  # rows that were not in their place in time
    rows: Int64[np.ndarray, " T"] | None

    @property
    def freq(self) -> str:
        """The pandas alias of the step between the times, or a step number as text."""
        return self.grid.frequency.alias

    @property
    def filled(self) -> int:
        """How many times had no row."""
        positions = self.grid.positions
        return 0 if positions is None else len(self.grid.instants) - len(positions)

    @functools.cached_property
    def timestamps(self) -> Any:
        """The times as a pandas Index [T]."""
        return self.times.index(self.grid.instants)

    @property
    def name(self) -> str:
        """What to call the series in a message."""
        if self.id is None:
            return self.target_name
        return f"{self.id} {self.target_name}"


@dataclasses.dataclass(frozen=True, eq=False)
class TimedFrame:
    """The series of a data frame, by id in the order of the rows, then by target.

    Without an id column `ids` is None, and `codes` holds 0.
    """

    series: tuple[TimedSeries, ...]
    ids: Any  # a pandas Index, in the dtype of the id column
    codes: Int64[np.ndarray, " N"]  # the position of each series' id in `ids`
    id_column: str | None
    timestamp_column: str
    targets: tuple[str, ...]
    covariates: tuple[str, ...]
    ignored: tuple[str, ...]  # all other columns
    times: TimeType

    @property
    def filled(self) -> int:
        """How many times of all series had no row."""
        return sum(series.filled for series in self.series)

    @property
    def missing(self) -> int:
        """How many rows of all series had no value."""
        return sum(series.missing for series in self.series)

    @property
    def reordered(self) -> int:
        """How many rows were not in their place in time."""
        return sum(series.reordered for series in self.series)


def series_of(
    frame: Any,
    names: ColumnNames,
    freq: Any,
    covariates: tuple[str, ...],
    where: str,
    date_format: str | None = None,
) -> TimedFrame:
    """Takes the series out of a frame that `columns_of` has made, each on regular times.

    A long frame has an id column (unique_id, item_id or id), one of times (ds or timestamp) and a
    target (y or target); in one without an id column every numeric column is a series. Rows may be
    in any order. Times without a row get the value NaN, on the calendar of the frequency: a
    weekend is no gap in business days. NaN, None and NA are missing values.

    `freq` is the step between the times of all series: a pandas alias or offset, or an integer for
    step numbers. By default it is found for each series: see `grids_of`. `date_format` is the
    layout of dates that are text or numbers, as `strptime` takes it.

    Raises:
      DataError: the columns can be understood in more than one way or in none; a value is no
        number (booleans and text are none) or infinite; a time is missing, comes twice in a
        series, or is not on the grid of the frequency; no frequency can be found.
    """
    layout = timed_layout(frame, names, covariates, where)
    codes, ids = None, None
    if layout.id is not None:
        codes, ids = codes_of(frame, layout.id, where)
        _check_ids(ids, layout.id, where)
    steps = isinstance(freq, int | np.integer)
    stamps = str(layout.timestamp)
    instants, times = read_times(
        frame, stamps, where, layout=date_format, series=codes, steps=steps
    )
    rows = SortedRows(codes, ids, instants, times, where, where)
    grids = grids_of(rows, None if freq is None else parse_frequency(freq, times))
    columns = {}
    for name in layout.targets:
        values = numbers_of(frame, name, where).astype(np.float64, copy=False)
        columns[name] = values = values if rows.order is None else values[rows.order]
        _check_finite(values, name, rows)
    series: list[TimedSeries] = []
    for i, grid in enumerate(grids):
        part = rows.part(i)
        placed_rows = grid.place(rows.numbers(i), -1) if covariates else None
        label, reordered = None if ids is None else ids[i], int(rows.reordered[i])
        for name, values in columns.items():
            missing = int(np.isnan(values[part]).sum())
            placed = grid.place(values[part], np.nan)
            series.append(
                TimedSeries(label, name, placed, grid, times, missing, reordered, placed_rows)
            )
    codes = np.repeat(np.arange(len(grids)), len(layout.targets))
    ignored = tuple(name for name in layout.ignored if name not in covariates)
    return TimedFrame(
        tuple(series), ids, codes, layout.id, stamps, layout.targets, covariates, ignored, times
    )


def _check_ids(ids: Any, name: str, where: str) -> None:
    """Refuses ids of two types that look alike, such as 1 and "1"."""
    if ids.dtype != object:
        return
    seen: dict[str, Any] = {}
    for label in ids:
        other = seen.setdefault(str(label), label)
        if other is not label and type(other) is not type(label):
            raise DataError(
                f"{where}: column {name!r} holds both {other!r} ({type(other).__name__}) and "
                f"{label!r} ({type(label).__name__}); make its ids one type, with astype(str)"
            )


def _check_finite(values: Float64[np.ndarray, " rows"], name: str, rows: SortedRows) -> None:
    infinite = np.isinf(values)
    if infinite.any():
        series, time = rows.describe(int(infinite.argmax()))
        raise DataError(
            f"{series}: column {name!r} is infinite at {time} ({int(infinite.sum())} such "
            "values); mark missing values as NaN"
        )


def future_index(series: TimedSeries, horizon: int) -> Any:
    """The `horizon` times that follow a series, as a pandas Index [H] of the type of its own."""
    return series.times.index(future_instants(series, horizon))


def future_instants(series: TimedSeries, horizon: int) -> Int64[np.ndarray, " H"]:
    """The `horizon` times that follow a series, as integers for `TimeType.index`."""
    grid = series.grid
    return next_instants(int(grid.instants[-1]), grid.clock, grid.frequency, series.times, horizon)


def to_frame(
    timed: TimedFrame,
    point: Float[np.ndarray, "N H"],
    quantiles: Float[np.ndarray, "N H Q"] | None = None,
    levels: Sequence[float] = (),
    originals: Mapping[str, Any] | None = None,
) -> Any:
    """Writes forecasts of `timed.series`, and quantiles of these `levels`, as a long data frame.

    Its columns are the ids, if there were any, the times, `target_name`, `predictions` and one per
    level, named "0.1" and so on. Ids and times keep their types, and `originals` says under which
    names they and the targets came, where that was no text.
    """
    import pandas as pd

    count, horizon = point.shape
    if count != len(timed.series):
        raise ValueError(f"there are {count} forecasts of {len(timed.series)} series")
    if (0 if quantiles is None else quantiles.shape[-1]) != len(levels):
        raise ValueError("there must be a level for each quantile")
    results: dict[str, Any] = {}
    for i, level in enumerate(levels):
        assert quantiles is not None
        results[str(float(level))] = quantiles[:, :, i].reshape(-1)
    others = {"target_name", "predictions", *results}
    for name in (timed.id_column, timed.timestamp_column):
        if name in others:
            raise DataError(
                f"the column {name!r} of the data frame has the name of a column of the result; "
                "rename it"
            )
    columns: dict[str, Any] = {}
    if timed.id_column is not None:
        columns[timed.id_column] = timed.ids.take(np.repeat(timed.codes, horizon))
    instants = [future_instants(series, horizon) for series in timed.series]
    columns[timed.timestamp_column] = timed.times.column(np.concatenate(instants))
    named = originals or {}
    names = pd.Index([named.get(s.target_name, s.target_name) for s in timed.series])
    columns["target_name"] = names.repeat(horizon)
    columns["predictions"] = point.reshape(-1)
    frame = pd.DataFrame(columns | results)
    roles = {timed.id_column, timed.timestamp_column}
    return frame.rename(columns={name: named[name] for name in named if name in roles})
