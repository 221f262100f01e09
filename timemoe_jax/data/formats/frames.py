"""Data frames as sources of series: wide, long, or a list in each row."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from timemoe_jax.data.formats.long_index import LongIndex, LongPart
from timemoe_jax.data.formats.table_layout import ColumnNames, Kind, Layout, find_layout
from timemoe_jax.data.series_source import ArraySource, SequenceSource, float_of
from timemoe_jax.errors import DataError

_KINDS: dict[str, Kind] = {
    "floating": "number",
    "integer": "number",
    "mixed-integer-float": "number",
    "decimal": "number",
    "empty": "number",
    "datetime64": "time",
    "datetime": "time",
    "date": "time",
    "period": "time",
    "string": "text",
}


def frame_source(
    frame: Any, names: ColumnNames | None = None, where: str = "the data frame"
) -> SequenceSource:
    """Takes the series out of a data frame.

    A long frame has an id column (unique_id, item_id or id), a target column (y or target) and
    maybe one of times (ds or timestamp); a frame with lists has them in a column target or
    sequence; in any other, every numeric column is a series. Named levels of the index and an
    index of times count as columns. The rows of each series are put in the order of their times.

    Args:
      frame: a pandas DataFrame; NaN, None and NA are missing values. Not modified.
      names: which columns are which, where their names do not say.
      where: what to call the frame in a message.

    Returns:
      the series, in the order in which they appear, named by id or column.

    Raises:
      DataError: `frame` is no data frame, the columns can be understood in more than one way or
        in none, or a value is of the wrong kind.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{where} must be a pandas DataFrame, not a {type(frame).__name__}")
    frame = with_index(frame)
    frame.columns = [str(name) for name in frame.columns]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{where} has more than one column {twice[0]!r}; the names must differ")
    if not len(frame):
        raise DataError(f"{where} has no rows; give at least one")
    kinds = {name: kind_of(frame[name]) for name in frame.columns}
    layout = find_layout(where, kinds, names or ColumnNames())
    source = {"wide": _wide, "long": _long, "list": _lists}[layout.kind](frame, layout, where)
    source.ignored_columns = layout.ignored
    return source


def with_index(frame: Any) -> Any:
    """A new frame, with the index among its columns where it says something.

    Args:
      frame: a pandas DataFrame. Not modified.
    """
    import pandas as pd

    named = any(name is not None for name in frame.index.names)
    timed = isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex)
    if named or timed:
        return frame.reset_index(allow_duplicates=True)
    return frame.reset_index(drop=True)


def kind_of(column: Any) -> Kind:
    """What a column holds.

    Args:
      column: a pandas Series.
    """
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


def _numbers(column: Any, where: str) -> Float[np.ndarray, " rows"]:
    dtype = column.dtype
    known = isinstance(dtype, np.dtype) and dtype.kind in "iuf"
    try:
        return column.to_numpy(float_of(dtype) if known else np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: column {column.name!r} must hold numbers: {error}") from None


def _times(column: Any, where: str) -> Shaped[np.ndarray, " rows"]:
    """Numbers as they are, anything else as UTC."""
    import pandas as pd

    kind = kind_of(column)
    if kind == "number":
        return _numbers(column, where)
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if kind == "text":
        from timemoe_jax.data.formats.csv_files import parse_dates

        cells = ["" if cell is None or cell != cell else str(cell) for cell in column]
        return parse_dates(cells, lambda row: f"{where} column {column.name!r}: row {row}")
    try:
        return pd.to_datetime(column, utc=True).dt.tz_localize(None).to_numpy()
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: column {column.name!r} must hold times: {error}") from None


def _wide(frame: Any, layout: Layout, where: str) -> ArraySource:
    order: Any = slice(None)
    if layout.timestamp is not None:
        # One series, as far as its order is concerned.
        times = _times(frame[layout.timestamp], where)
        part = LongPart(np.zeros(len(frame), np.int64), [where], times)
        order = LongIndex(where, lambda: iter([part])).rows(0, 0, len(frame))
    columns = [_numbers(frame[name], where)[order] for name in layout.targets]
    return ArraySource(columns, list(layout.targets))


def _long(frame: Any, layout: Layout, where: str) -> ArraySource:
    import pandas as pd

    try:
        codes, labels = pd.factorize(frame[layout.id])
    except TypeError as error:
        raise DataError(f"{where}: column {layout.id!r} must hold ids: {error}") from None
    times = None if layout.timestamp is None else _times(frame[layout.timestamp], where)
    part = LongPart(codes.astype(np.int64), list(labels), times)
    index = LongIndex(where, lambda: iter([part]))
    rows = [index.rows(i, 0, int(n)) for i, n in enumerate(index.lengths)]
    series, names = [], []
    for target in layout.targets:
        values = _numbers(frame[target], where)
        series += [values[row] for row in rows]
        suffix = f" {target}" if len(layout.targets) > 1 else ""
        names += [name + suffix for name in index.ids]
    return ArraySource(series, names)


def _lists(frame: Any, layout: Layout, where: str) -> ArraySource:
    ids = range(len(frame)) if layout.id is None else frame[layout.id]
    series, names = [], []
    for target in layout.targets:
        for row, (label, cell) in enumerate(zip(ids, frame[target], strict=True)):
            place = f"{where} column {target!r} row {row}"
            channels = list(_channels(cell, place))
            series += [values for _, values in channels]
            prefix = f"row {label}" if layout.id is None else str(label)
            prefix += f" {target}" if len(layout.targets) > 1 else ""
            names += [prefix + suffix for suffix, _ in channels]
    return ArraySource(series, names)


def _channels(cell: Any, place: str) -> Iterator[tuple[str, Float[np.ndarray, " T"]]]:
    """The series in a cell: one, or several where it holds a list of lists."""
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
    # NumPy takes an empty list for one of floats.
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
