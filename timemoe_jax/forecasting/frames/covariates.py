"""Covariates: what is known beside a series about its past, and maybe about its future.

Each series is adjusted for its covariates by itself, before and after the model: `regression.py`
says how. A covariate whose future is known is used at the time of the value. One whose future is
not known is used as it was one horizon earlier, so that it is known at every step of the forecast.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from timemoe_jax.data.formats.frames import counters_of, kind_in, kind_of, numbers_of, row_name
from timemoe_jax.data.formats.table_layout import (
    ID_NAMES,
    TARGET_NAMES,
    TIME_NAMES,
    ColumnNames,
)
from timemoe_jax.data.seasons import season_of
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.frames import TimedFrame, TimedSeries, future_instants
from timemoe_jax.forecasting.frames.regression import CONSTANT, Adjustment, fit_covariates
from timemoe_jax.forecasting.frames.rows import SortedRows
from timemoe_jax.forecasting.frames.times import TimeType, read_times

# Why a column without an effect is left out that is none in the future.
_NEW = "it is constant in the past but not in the future, so nothing is known of its effect"


class _Column(NamedTuple):
    """The past and future rows of a covariate: numbers, or indices of `categories`, -1 for none."""

    name: str
    categories: Any
    past: np.ndarray
    future: np.ndarray | None


class CovariateTable(NamedTuple):
    """The covariates of one series, as columns of numbers.

    A column of categories has become one of 0 and 1 for each category in the history of the series,
    named "column=category". `past` holds them at the times of the series, NaN where not known, and
    `future` at the times to forecast, NaN only where a covariate without a future is not known.
    """

    names: tuple[str, ...]
    past: Float64[np.ndarray, "T C"]
    future: Float64[np.ndarray, "H C"]


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedCovariates:
    """The covariates of all series of a frame."""

    known: tuple[str, ...]
    lagged: tuple[str, ...]  # their future is not known: they are used one `horizon` later
    horizon: int
    extra_ids: dict[Any, int]  # ids of the future that no series has, and how many rows they have
    extra_rows: int  # rows of the other ids, at times that are not forecast
    _timed: TimedFrame = dataclasses.field(repr=False)
    _columns: tuple[_Column, ...] = dataclasses.field(repr=False)
    _future_rows: Int64[np.ndarray, "ids H"] | None = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self._timed.series)

    @property
    def codes(self) -> Int64[np.ndarray, " N"]:
        """The id of each series, by its position."""
        return self._timed.codes

    def name(self, i: int) -> str:
        """What to call the series at position `i` in a message."""
        return self._timed.series[i].name

    def variates(self, i: int) -> list[tuple[str, str, np.ndarray, np.ndarray | None]]:
        """The covariates of the series at position `i` as series of their own.

        Of each its column, its name, its values [T] at the times of the series, and those [H] to
        forecast if they are known. Categories are one of 0 and 1 each; NaN is missing.
        """
        series = self._timed.series[i]
        assert series.rows is not None
        found: list[tuple[str, str, np.ndarray, np.ndarray | None]] = []
        for column in self._columns:
            before, after = _taken(column.past, series.rows), None
            if column.future is not None:
                assert self._future_rows is not None
                after = column.future[self._future_rows[self._timed.codes[i]]]
                _check_seen(column, before, after, series)
            if column.categories is None:
                found.append((column.name, column.name, before, after))
                continue
            for category in np.unique(before[before >= 0]):
                past = np.where(before < 0, np.nan, before == category)
                ahead = None if after is None else np.where(after == category, 1.0, 0.0)
                named = f"{column.name}={column.categories[category]}"
                found.append((column.name, named, past, ahead))
        return found

    def table(self, i: int) -> CovariateTable:
        """The covariates of the series at position `i` of `TimedFrame.series`."""
        series = self._timed.series[i]
        names: list[str] = []
        past: list[np.ndarray] = []
        future: list[np.ndarray] = []
        for column in self._columns:
            assert series.rows is not None
            before = _taken(column.past, series.rows)
            if column.future is None:
                before, after = _lagged(before, self.horizon)
            else:
                assert self._future_rows is not None
                after = column.future[self._future_rows[self._timed.codes[i]]]
                _check_seen(column, before, after, series)
            if column.categories is None:
                names.append(column.name)
                past.append(before)
                future.append(after)
                continue
            for category in np.unique(before[before >= 0]):
                names.append(f"{column.name}={column.categories[category]}")
                past.append(np.where(before < 0, np.nan, before == category))
                future.append(
                    np.where(np.isin(after, before[before >= 0]), after == category, np.nan)
                )
        return CovariateTable(
            tuple(names),
            np.array(past, np.float64).reshape(len(names), len(series.values)).T,
            np.array(future, np.float64).reshape(len(names), self.horizon).T,
        )


def shared_columns(past: Any, future: Any, names: ColumnNames) -> tuple[str, ...]:
    """The columns of a frame of the future that are covariates: all but ids, times and targets.

    Both frames are as `columns_of` makes them; `names` are those of the past, which must have the
    covariates, too.
    """
    roles = {names.id, names.timestamp, *(names.targets or TARGET_NAMES)}
    roles |= set(ID_NAMES) if names.id is None else set()
    if names.timestamp is None:
        times = {*TIME_NAMES} & {*past.columns}
        times = times or {name for name in future.columns if kind_in(future, name) == "time"}
        # The first column may hold dates as text.
        first = str(past.columns[0])
        named = (roles | times).isdisjoint(past.columns)
        roles |= times | ({first} if named and kind_in(past, first) == "text" else set())
    roles |= {*counters_of(past)}
    covariates = tuple(name for name in future.columns if name not in roles)
    for name in covariates:
        if name not in past.columns:
            raise DataError(
                f"future_df has a column {name!r} that df does not have; a covariate needs its "
                "past, too"
            )
    return covariates


def align_covariates(
    past: Any,
    future: Any | None,
    timed: TimedFrame,
    horizon: int,
    date_format: str | None = None,
) -> AlignedCovariates:
    """Finds the covariates of each series, at its own times and at those to forecast.

    `past` is the frame that `timed` was read from, and `future` another with the same id and
    timestamp columns and a row for each time to forecast, or None; both are as `columns_of` makes
    them. The other columns of `future` are covariates whose future is known.

    A DataError says that `future` lacks a time of a series, has one twice, or has no value there,
    or that a covariate is infinite or neither numbers nor text.
    """
    rows, extra_rows = None, 0
    extra_ids: dict[Any, int] = {}
    if future is not None:
        rows, extra_ids, extra_rows = _future_rows(future, timed, horizon, date_format)
    known = tuple(n for n in timed.covariates if future is not None and n in future.columns)
    columns = []
    for name in timed.covariates:
        column = _column(name, past, future if name in known else None)
        if rows is not None and column.future is not None:
            _check_future(column, rows, timed, horizon)
        columns.append(column)
    lagged = tuple(name for name in timed.covariates if name not in known)
    return AlignedCovariates(
        known, lagged, horizon, extra_ids, extra_rows, timed, tuple(columns), rows
    )


def adjustments(timed: TimedFrame, aligned: AlignedCovariates) -> list[Adjustment]:
    """Estimates what the covariates contribute to each series, from that series alone."""
    effects = []
    for i, series in enumerate(timed.series):
        names, past, future = aligned.table(i)
        season, where = season_of(freq=series.freq).points, f"series {series.name}"
        effect = fit_covariates(
            series.values, past, future, season=season, names=names, where=where
        )
        new = [name for j, name in enumerate(names) if _is_new(past[:, j], future[:, j])]
        effect.ignored.update({name: _NEW for name in new if effect.ignored.get(name) == CONSTANT})
        effects.append(effect)
    return effects


def _is_new(past: Float64[np.ndarray, " T"], future: Float64[np.ndarray, " H"]) -> bool:
    """Whether a column has a value in the future that it never has in the past."""
    return not np.isin(future[~np.isnan(future)], past).all()


def _column(name: str, past: Any, future: Any | None) -> _Column:
    import pandas as pd

    frames = [(past, "df")] if future is None else [(past, "df"), (future, "future_df")]
    kinds = [_covariate_kind(name, frame, where) for frame, where in frames]
    if len(set(kinds)) > 1:
        raise DataError(
            f"covariate {name!r} holds {kinds[0]} in df and {kinds[1]} in future_df; it must be "
            "the same in both"
        )
    if kinds[0] == "numbers":
        arrays = [_numbers(frame, name, where) for frame, where in frames]
        return _Column(name, None, arrays[0], arrays[1] if future is not None else None)
    codes, categories = pd.factorize(past[name].astype(object), sort=False)
    if future is None:
        return _Column(name, categories, codes, None)
    ahead = future[name].astype(object)
    # Categories that only the future has get numbers of their own, so that they can be named.
    everything = categories.append(pd.Index(ahead.dropna().unique()).difference(categories))
    return _Column(name, everything, codes, everything.get_indexer(pd.Index(ahead)))


def _covariate_kind(name: str, frame: Any, where: str) -> str:
    import pandas as pd

    if pd.api.types.is_bool_dtype(frame[name].dtype):
        return "numbers"
    kind = kind_of(frame[name])
    if kind == "text":
        return "text"
    if kind != "number":
        raise DataError(
            f"{where}: covariate {name!r} must hold numbers, booleans or text, but is of dtype "
            f"{frame[name].dtype}"
        )
    return "numbers"


def _numbers(frame: Any, name: str, where: str) -> Float64[np.ndarray, " rows"]:
    values = numbers_of(frame, name, where).astype(np.float64, copy=False)
    infinite = np.isinf(values)
    if infinite.any():
        row = row_name(frame, int(infinite.argmax()))
        raise DataError(f"{where}: covariate {name!r} is infinite in {row}")
    return values


def _absent(values: np.ndarray) -> float | int:
    return np.nan if values.dtype.kind == "f" else -1


def _taken(values: np.ndarray, rows: Int64[np.ndarray, " T"]) -> np.ndarray:
    return np.where(rows < 0, _absent(values), values[rows])


def _lagged(values: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """A column one horizon later, at the times of the series and at those to forecast.

    Nothing is known of the effect of a category that only the last horizon has, so that it counts
    as missing.
    """
    joined = np.concatenate([np.full(horizon, _absent(values)), values])
    return joined[: len(values)], joined[len(values) :]


def _check_seen(
    column: _Column, before: np.ndarray, after: np.ndarray, series: TimedSeries
) -> None:
    if column.categories is None:
        return
    unseen = np.setdiff1d(after[after >= 0], before)
    if unseen.size:
        raise DataError(
            f"series {series.name}: covariate {column.name!r} is "
            f"{str(column.categories[unseen[0]])[:40]!r} in the future, which it never is in the "
            "history of the series; nothing is known of its effect"
        )


def _future_rows(
    future: Any, timed: TimedFrame, horizon: int, date_format: str | None
) -> tuple[Int64[np.ndarray, "ids H"], dict[Any, int], int]:
    """Returns the row of each id at each time to forecast, and the ids and rows not used."""
    for name in (timed.id_column, timed.timestamp_column):
        if name is not None and name not in future.columns:
            raise DataError(
                f"future_df has no column {name!r}, which df has; it must have the same id and "
                "timestamp columns"
            )
    extra: dict[Any, int] = {}
    codes = None
    if timed.id_column is not None:
        column = future[timed.id_column]
        codes = timed.ids.get_indexer(column)
        _check_id_types(column[codes < 0], timed)
    instants = _future_times(future, timed, codes, date_format)
    used = np.arange(len(instants))
    if codes is not None:
        extra = column[codes < 0].value_counts(sort=False, dropna=False).to_dict()
        used = np.flatnonzero(codes >= 0)
        codes = codes[used]
    ahead = SortedRows(codes, timed.ids, instants[used], timed.times, "future_df", "the series")
    rows = np.empty((len(ahead.labels), horizon), np.int64)
    for code, first in zip(*np.unique(timed.codes, return_index=True), strict=True):
        wanted = future_instants(timed.series[first], horizon)
        times = ahead.instants[ahead.part(code)]
        at = np.searchsorted(times, wanted)
        present = np.append(times, wanted[-1] + 1)[at] == wanted
        if not present.all():
            missing = timed.times.show(int(wanted[present.argmin()]))
            raise DataError(
                f"future_df has no row for {ahead.labels[code]} at {missing} "
                f"({int((~present).sum())} of {horizon} times are absent); it needs one for every "
                "time to forecast"
            )
        rows[code] = used[ahead.numbers(code)[at]]
    return rows, extra, len(used) - rows.size


def _check_id_types(unknown: Any, timed: TimedFrame) -> None:
    """Refuses ids of the future that look like those of the past, but are of another type."""
    known = {str(label): label for label in timed.ids}
    for label in unknown.unique():
        other = known.get(str(label))
        if other is not None:
            raise DataError(
                f"future_df: column {timed.id_column!r} holds {label!r} ({type(label).__name__}), "
                f"but that of df holds {other!r} ({type(other).__name__}); make them one type"
            )


def _future_times(
    future: Any, timed: TimedFrame, codes: Any, date_format: str | None
) -> Int64[np.ndarray, " rows"]:
    steps = not timed.times.is_datetime
    options = {"layout": date_format, "series": codes, "steps": steps, "like": timed.times}
    instants, times = read_times(future, timed.timestamp_column, "future_df", **options)
    if _kind_of_time(times) != _kind_of_time(timed.times):
        raise DataError(
            f"future_df: column {timed.timestamp_column!r} holds {times.dtype}, but that of df "
            f"holds {timed.times.dtype}; both must be of one kind, with a time zone or without"
        )
    # An instant is the same integer in any time zone, but not in any unit.
    return times.index(instants).as_unit(timed.times.unit).asi8 if times.is_datetime else instants


def _kind_of_time(times: TimeType) -> Any:
    if times.is_datetime:
        return times.zone is None
    return "steps" if isinstance(times.dtype, np.dtype) else times.dtype


def _check_future(
    column: _Column, rows: Int64[np.ndarray, "ids H"], timed: TimedFrame, horizon: int
) -> None:
    assert column.future is not None
    values = column.future[rows]
    missing = np.argwhere(np.isnan(values) if values.dtype.kind == "f" else values < 0)
    if missing.size:
        code, step = missing[0]
        series = timed.series[int(np.flatnonzero(timed.codes == code)[0])]
        when = timed.times.show(int(future_instants(series, horizon)[step]))
        whose = "" if timed.ids is None else f" of series {series.id}"
        raise DataError(
            f"future_df: covariate {column.name!r}{whose} has no value at {when}; every covariate "
            "of the future needs one at every time to forecast"
        )
