"""Data frames as tables of series: wide, long, or a list in each row."""

import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float, Int64, Shaped

from timemoe_jax.data.formats.dates import common_frequency, frequency_of, parse_dates
from timemoe_jax.data.formats.long_index import LongIndex, LongPart
from timemoe_jax.data.formats.table_layout import (
    TARGET_NAMES,
    TIME_NAMES,
    ColumnNames,
    Kind,
    Layout,
    Numbers,
    check_differ,
    find_layout,
    find_time_column,
    looks_like_date,
    row_counters,
)
from timemoe_jax.data.series_source import ArraySource, SequenceSource, float_of
from timemoe_jax.errors import DataError

# The key in `attrs` under which a frame from a text file holds the line of each row.
LINES = "timemoe_jax.lines"
DECIMAL = "timemoe_jax.decimal"  # the key of its decimal mark

# Columns that may say a part of the time of a row, and what pandas calls that part.
_PARTS_OF_TIME = {
    **{name: name for name in ("year", "quarter", "month", "day", "hour", "minute", "second")},
    **dict.fromkeys(("weekday", "day_of_week", "dayofweek", "dow"), "day_of_week"),
    **dict.fromkeys(("dayofyear", "day_of_year", "doy"), "day_of_year"),
    **dict.fromkeys(("dayofmonth", "day_of_month", "dom"), "day"),
}

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("floating", "integer", "mixed-integer-float", "decimal", "empty"), "number"),
    **dict.fromkeys(("datetime64", "datetime", "date", "period"), "time"),
    "string": "text",
}


def frame_source(
    frame: Any, names: ColumnNames | None = None, where: str = "the data frame"
) -> SequenceSource:
    """Takes the series out of a data frame.

    A long frame has an id column (unique_id, item_id or id), a target column (y or target) and
    maybe one of times (ds or timestamp); a frame with lists has them in a column target or
    sequence; in any other, every numeric column is a series. Named levels of the index and an
    index of times count as columns. NaN, None and NA are missing values. The rows of each series
    are put in the order of their times, and the series, named by id or column, in the order in
    which they appear. The frame is not modified.

    Raises:
      DataError: `frame` is no data frame, the columns can be understood in more than one way or
        in none, or a value is of the wrong kind.
    """
    frame = columns_of(frame, where)
    layout = layout_of(frame, names or ColumnNames(), where)
    source = {"wide": _wide, "long": _long, "list": _lists}[layout.kind](frame, layout, where)
    source.ignored_columns = layout.ignored
    return source


class _FrameSource(ArraySource):
    """Series of a frame: messages name the frame and the series."""

    def __init__(
        self,
        series: Sequence[Float[np.ndarray, " _"]],
        labels: list[str],
        where: str,
        times: Sequence[Shaped[np.ndarray, " _"]] = (),  # of each series
    ):
        super().__init__(series, labels)
        self._where, self._times = where, times

    def name(self, i: int) -> str:
        return f"{self._where} {self.label(i)}"

    def times(self, i: SupportsIndex) -> Shaped[np.ndarray, " T"] | None:
        return self._times[operator.index(i)] if self._times else None


def columns_of(df: Any, where: str) -> Any:
    """Copies a frame, with names as text, and an index of names or times among its columns."""
    import pandas as pd

    if not isinstance(df, pd.DataFrame):
        raise DataError(f"{where} must be a pandas DataFrame, not a {type(df).__name__}")
    timed = isinstance(df.index, pd.DatetimeIndex | pd.PeriodIndex)
    if timed and df.index.name is None and "timestamp" not in df.columns:
        df = df.rename_axis("timestamp")
    said = timed or any(name is not None for name in df.index.names)
    frame = df.reset_index(allow_duplicates=True) if said else df.reset_index(drop=True)
    frame.columns = [str(name) for name in frame.columns]
    check_differ(where, frame.columns)
    if not len(frame):
        raise DataError(f"{where} has no rows; give at least one")
    return frame


def layout_of(frame: Any, names: ColumnNames, where: str, covariates: Sequence[str] = ()) -> Layout:
    """Finds out which columns of a frame hold ids, times and values; `covariates` hold none."""
    import pandas as pd

    kinds = {name: kind_in(frame, name) for name in frame.columns if name not in covariates}
    for name in names.targets or TARGET_NAMES:
        if name in kinds and pd.api.types.is_bool_dtype(frame[name].dtype):
            raise DataError(
                f"{where}: the target column {name!r} holds booleans; convert it with astype(float)"
            )
    # Text in place of numbers gets an error of its own, which names the cell.
    texts = [name for name, kind in kinds.items() if kind == "text"]
    if texts and texts[0] == next(iter(kinds)) and texts[0] not in names.targets:
        texts = texts[1:]  # the first column may hold dates
    kinds |= dict.fromkeys(texts, "number")
    layout = find_layout(where, kinds, names, _reader(frame, texts, where))
    for name in layout.targets:
        if name in texts:
            raise DataError(f"{where}: column {name!r} must hold numbers, {_text_of(frame, name)}")
    if names.targets:
        return layout
    return without_parts_of_time(
        layout,
        lambda name: _times(frame, name, where),
        lambda name: numbers_of(frame, name, where),
    )


def without_parts_of_time(
    layout: Layout, times: Callable[[str], Shaped[np.ndarray, " rows"]], numbers: Numbers
) -> Layout:
    """Leaves out of a wide table the year, month, hour and so on of its times, unless it is all."""
    parts = [name for name in layout.targets if name.strip().lower() in _PARTS_OF_TIME]
    if layout.kind != "wide" or layout.timestamp is None or not parts:
        return layout
    import pandas as pd

    try:
        index = pd.DatetimeIndex(times(layout.timestamp))
    except (DataError, TypeError, ValueError):
        return layout  # times that are wrong, or step numbers, are looked at elsewhere
    for name in parts:
        part = getattr(index, _PARTS_OF_TIME[name.strip().lower()])
        # Days of the week and the year are counted from 0 or from 1.
        apart = np.unique(numbers(name) - np.asarray(part))
        if len(apart) == 1 and apart[0] in (-1, 0, 1) and len(layout.targets) > 1:
            targets = tuple(other for other in layout.targets if other != name)
            layout = layout._replace(targets=targets, ignored=(*layout.ignored, name))
    return layout


def time_column_of(frame: Any, names: ColumnNames, where: str) -> str | None:
    """The column of times that `layout_of` would find, None if there is none."""
    kinds = {name: kind_in(frame, name) for name in frame.columns}
    return find_time_column(where, kinds, names, _reader(frame, (), where))


def counters_of(frame: Any) -> list[str]:
    """The columns that only count rows, which are no series and no covariates."""
    kinds = {name: kind_in(frame, name) for name in frame.columns}
    return row_counters(kinds, _reader(frame, (), ""))


def _reader(frame: Any, texts: Sequence[str], where: str) -> Numbers:
    """Reads columns of a frame as numbers; those that hold text have none."""
    return lambda name: np.zeros(0) if name in texts else numbers_of(frame, name, where)


def _text_of(frame: Any, name: str) -> str:
    cells = ((row, cell) for row, cell in enumerate(frame[name]) if isinstance(cell, str))
    comma = frame.attrs.get(DECIMAL) == ","
    for row, cell in cells:
        if not is_number(cell.replace(",", ".") if comma and "." not in cell else cell):
            hint = "; give --decimal ',' if that is a decimal comma"
            hint = hint if _DECIMAL_COMMA.fullmatch(cell) else ""
            return f"but {row_name(frame, row)} holds {cell[:40]!r}{hint}"
    return "but holds text; convert numbers that are written as text with pandas.to_numeric"


def is_number(text: str) -> bool:
    """Whether text is a number; 1_000 is none, although Python reads it as one."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def row_name(frame: Any, row: int) -> str:
    """Names a row in a message: by its line in the file that it is from, or by its number."""
    lines = frame.attrs.get(LINES)
    return f"row {row}" if lines is None else f"line {lines[row]}"


def kind_in(frame: Any, name: str) -> Kind:
    """What a column holds; text counts as times if the first cell that is not missing is a date."""
    column = frame[name]
    kind = kind_of(column)
    if kind == "text":
        first = column.iloc[column.notna().to_numpy().argmax()]
        return "time" if looks_like_date(str(first)) else "text"
    return kind


def kind_of(column: Any) -> Kind:
    """What a pandas Series holds."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return "text"
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return "time"
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind in _KINDS:
        return _KINDS[kind]
    values = (value for value in column if value is not None)
    sequences = isinstance(next(values, None), list | tuple | np.ndarray)
    return "list" if sequences else "other"


def dates_of(frame: Any, column: str, where: str) -> Shaped[np.ndarray, " rows"]:
    """A column of dates as text, as datetime64; an error names the row that has none, and why."""
    cells = ["" if cell is None or cell != cell else str(cell) for cell in frame[column]]
    return parse_dates(cells, cell_name(frame, column, where))


def cell_name(frame: Any, column: str, where: str) -> Callable[[int], str]:
    """Names the cell of a row in an error about dates, and says why it should hold one."""
    why = ":"
    if column == frame.columns[0] and column not in TIME_NAMES and LINES in frame.attrs:
        why = " is first and not numeric, so it must hold dates in every row, but"
    return lambda row: f"{where}: column {column!r}{why} {row_name(frame, row)}"


def codes_of(frame: Any, column: str, where: str) -> tuple[Int64[np.ndarray, " rows"], Any]:
    """Numbers ids in the order of appearance: returns the number of each row, and the ids."""
    import pandas as pd

    try:
        codes, ids = pd.factorize(frame[column])
    except TypeError as error:
        raise DataError(f"{where}: column {column!r} must hold ids: {error}") from None
    if (codes < 0).any():
        row = row_name(frame, int((codes < 0).argmax()))
        raise DataError(f"{where}: column {column!r} has no id in {row}; every row needs one")
    return codes.astype(np.int64, copy=False), ids


def numbers_of(frame: Any, name: str, where: str) -> Float[np.ndarray, " rows"]:
    """A column as float32 or float64, NaN where missing, in which no number loses precision."""
    dtype = frame[name].dtype
    known = isinstance(dtype, np.dtype) and dtype.kind in "iuf"
    try:
        return frame[name].to_numpy(float_of(dtype) if known else np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: column {name!r} must hold numbers: {error}") from None


def _times(frame: Any, name: str, where: str) -> Shaped[np.ndarray, " rows"]:
    """The times of all rows: numbers as they are, anything else as datetime64 in UTC."""
    import pandas as pd

    column = frame[name]
    kind = kind_of(column)
    if kind == "text":
        return dates_of(frame, name, where)
    missing = column.isna().to_numpy()
    if missing.any():
        row = row_name(frame, int(missing.argmax()))
        raise DataError(f"{where}: column {name!r} has no time in {row}; every row needs one")
    if kind == "number":
        exact = column.dtype == np.int64
        return column.to_numpy() if exact else numbers_of(frame, name, where)
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    try:
        return pd.to_datetime(column, utc=True).dt.tz_localize(None).to_numpy()
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: column {name!r} must hold times: {error}") from None


def wide_columns(
    frame: Any, layout: Layout, where: str
) -> tuple[Shaped[np.ndarray, " T"] | None, list[Float[np.ndarray, " T"]]]:
    """The times of a wide frame, None without a column of them, and the series of its targets.

    Rows that are not in the order of their times are sorted; those at one time keep their order.
    """
    columns = [numbers_of(frame, name, where) for name in layout.targets]
    if layout.timestamp is None:
        return None, columns
    times, order = in_order(_times(frame, layout.timestamp, where), where, layout.timestamp)
    return times, columns if order is None else [values[order] for values in columns]


def in_order(
    times: Shaped[np.ndarray, " T"], where: str, column: str
) -> tuple[Shaped[np.ndarray, " T"], Int64[np.ndarray, " T"] | None]:
    """The times of a wide table in order, and the rows in that order, None if they are in it.

    Rows at one time keep their order; a warning counts them.
    """
    order = None
    if (times[1:] < times[:-1]).any():
        order = np.argsort(times, kind="stable")
        times = times[order]
    repeats = int((times[1:] == times[:-1]).sum())
    if repeats:
        rows = "1 row has" if repeats == 1 else f"{repeats:,} rows have"
        warnings.warn(
            f"{where}: {rows} the same time in {column!r} as the row before; each counts as a step",
            stacklevel=4,
        )
    return times, order


def _wide(frame: Any, layout: Layout, where: str) -> ArraySource:
    times, columns = wide_columns(frame, layout, where)
    each = [] if times is None else [times] * len(columns)
    source = _FrameSource(columns, list(layout.targets), f"{where} column", each)
    source.frequency = frequency_of(times)
    source.aligned = True
    return source


def _long(frame: Any, layout: Layout, where: str) -> ArraySource:
    assert layout.id is not None
    codes, labels = codes_of(frame, layout.id, where)
    times = None if layout.timestamp is None else _times(frame, layout.timestamp, where)
    index = LongIndex(where, lambda: iter([LongPart(codes, list(labels), times)]))
    rows = [index.rows(i, 0, int(n)) for i, n in enumerate(index.lengths)]
    series, names = [], []
    for target in layout.targets:
        values = numbers_of(frame, target, where)
        series += [values[row] for row in rows]
        suffix = f" {target}" if len(layout.targets) > 1 else ""
        names += [name + suffix for name in index.ids]
    each = [] if times is None else [times[row] for row in rows]
    source = _FrameSource(series, names, f"{where} series", each * len(layout.targets))
    source.frequency = None if times is None else common_frequency(len(each), each.__getitem__)
    return source


def _lists(frame: Any, layout: Layout, where: str) -> ArraySource:
    ids = range(len(frame)) if layout.id is None else frame[layout.id]
    series, names = [], []
    for target in layout.targets:
        for row, (label, cell) in enumerate(zip(ids, frame[target], strict=True)):
            cell_name = f"{where} column {target!r} row {row}"
            channels = list(_channels(cell, cell_name))
            series += [values for _, values in channels]
            prefix = f"row {label}" if layout.id is None else str(label)
            prefix += f" {target}" if len(layout.targets) > 1 else ""
            names += [prefix + suffix for suffix, _ in channels]
    return _FrameSource(series, names, f"{where} series")


def _channels(cell: Any, place: str) -> Iterator[tuple[str, Float[np.ndarray, " T"]]]:
    """Yields the series in a cell: one, or several where it holds a list of lists."""
    if _is_absent(cell):
        yield "", np.zeros(0)
    elif isinstance(cell, list | tuple | np.ndarray) and any(map(_is_sequence, cell)):
        for channel, row in enumerate(cell):
            yield f" channel {channel}", _series(row, f"{place} channel {channel}")
    else:
        yield "", _series(cell, place)


def _series(values: Any, place: str) -> Float[np.ndarray, " T"]:
    if _is_absent(values):
        return np.zeros(0)
    if not _is_sequence(values):
        raise DataError(f"{place} must hold a list of numbers, not {str(values)[:40]!r}")
    if not isinstance(values, np.ndarray) or values.dtype == object:
        for at, value in enumerate(values):
            if value is not None and (isinstance(value, bool) or not np.isscalar(value)):
                raise DataError(f"{place}: value {at} is {str(value)[:40]!r}; it must be a number")
    try:
        listed = not isinstance(values, np.ndarray) and any(value is None for value in values)
        array = np.asarray(values, object if listed else None)
        if array.dtype == object:
            array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{place} must hold a list of numbers: {error}") from None
    # NumPy makes an empty list an array of floats, which passes.
    if array.dtype.kind not in "iuf" or array.ndim != 1:
        raise DataError(
            f"{place} must hold a list of numbers, but holds {array.dtype} of shape {array.shape}"
        )
    return array.astype(float_of(array.dtype))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _is_absent(cell: Any) -> bool:
    import pandas as pd

    return cell is None or cell is pd.NA or (isinstance(cell, float) and cell != cell)
