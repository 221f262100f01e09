"""Which rows of a data frame are which series, in the order of their times."""

from typing import Any

import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.formats.frames import kind_of, with_index
from timemoe_jax.data.formats.table_layout import TARGET_NAMES, ColumnNames, Layout, find_layout
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.times import TimeType


def columns_of(df: Any, where: str) -> Any:
    """A new frame with an index that says something among its columns, whose names are text.

    Args:
      df: a pandas DataFrame. Not modified.
      where: what to call it in a message.

    Raises:
      DataError: it is no data frame, has no rows, or has two columns of one name.
    """
    import pandas as pd

    if not isinstance(df, pd.DataFrame):
        raise DataError(f"{where} must be a pandas DataFrame, not a {type(df).__name__}")
    timed = isinstance(df.index, pd.DatetimeIndex | pd.PeriodIndex)
    if timed and df.index.name is None and "timestamp" not in df.columns:
        df = df.rename_axis("timestamp")
    frame = with_index(df)
    frame.columns = [str(name) for name in frame.columns]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{where} has more than one column {twice[0]!r}; the names must differ")
    if not len(frame):
        raise DataError(f"{where} has no rows; give at least one")
    return frame


def layout_of(frame: Any, names: ColumnNames, covariates: tuple[str, ...], where: str) -> Layout:
    """Finds out which columns are ids, times and values.

    Args:
      frame: as `columns_of` makes it.
      names: what the caller says.
      covariates: columns that are none of these.
      where: what to call the frame in a message.

    Raises:
      DataError: as `read_frame` says.
    """
    import pandas as pd

    roles = {names.id, names.timestamp, *names.targets}
    for name in covariates:
        if name not in frame.columns or name in roles:
            has = "it is also named as something else" if name in roles else "it is no column"
            raise DataError(f"{where}: {name!r} cannot be a covariate: {has}")
    kinds = {name: kind_of(frame[name]) for name in frame.columns}
    for name in names.targets or TARGET_NAMES:
        if kinds.get(name) == "text":
            raise DataError(
                f"{where}: the target column {name!r} holds text; convert numbers that are written "
                "as text with pandas.to_numeric"
            )
        if name in kinds and pd.api.types.is_bool_dtype(frame[name].dtype):
            raise DataError(
                f"{where}: the target column {name!r} holds booleans; convert it with astype(float)"
            )
    own = {name: kind for name, kind in kinds.items() if name not in covariates}
    layout = find_layout(where, own, names)
    if layout.kind == "list":
        raise DataError(
            f"{where} holds a list of values in each row of {layout.targets[0]!r}, which has no "
            "times; give a row per point"
        )
    named = [name for name in layout.targets if name in TARGET_NAMES]
    if layout.kind == "wide" and not names.targets and named and len(layout.targets) > 1:
        raise DataError(
            f"{where} has no id column, and {named[0]!r} could be its only target or one of the "
            f"series {', '.join(map(repr, layout.targets[:8]))}; name the target"
        )
    if layout.timestamp is None:
        shown = ", ".join(repr(name) for name in list(kinds)[:8])
        raise DataError(
            f"{where} has no column of times that is called ds or timestamp or holds dates; name "
            f"the timestamp column: one of {shown}"
        )
    return layout


def codes_of(
    frame: Any, layout: Layout, where: str
) -> tuple[Int64[np.ndarray, " rows"] | None, Any]:
    """The series of each row by its number, in the order of appearance, and the ids.

    Args:
      frame: as `columns_of` makes it.
      layout: of its columns.
      where: what to call it in a message.

    Returns:
      int64 [rows] and a pandas Index; None and None without an id column.

    Raises:
      DataError: a row has no id.
    """
    import pandas as pd

    if layout.id is None:
        return None, None
    column = frame[layout.id]
    try:
        codes, ids = pd.factorize(column)
    except TypeError as error:
        raise DataError(f"{where}: column {layout.id!r} must hold ids: {error}") from None
    if (codes < 0).any():
        raise DataError(
            f"{where}: column {layout.id!r} has no id in row {int((codes < 0).argmax())}; every "
            "row needs one"
        )
    return codes, ids


def order_of(
    codes: Int64[np.ndarray, " rows"] | None, instants: Int64[np.ndarray, " rows"], count: int
) -> tuple[Int64[np.ndarray, " rows"] | None, Int64[np.ndarray, " _"], Int64[np.ndarray, " N"]]:
    """Sorts the rows by series and time.

    Args:
      codes: of the series of each row; None for a single one.
      instants: the time of each row.
      count: how many series there are.

    Returns:
      the rows in their new order, None where it is the one they have; where each series starts
      in it, and behind the last one its length; how many rows of each series were out of place.
    """
    reordered = np.zeros(count, np.int64)
    if codes is None:
        starts = np.array([0, len(instants)])
        codes = np.zeros(1, np.int8)
    else:
        starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=count))])
    grouped = None
    if (codes[1:] < codes[:-1]).any():
        # Numbers of 16 bits are sorted in linear time.
        grouped = np.argsort(codes.astype(np.min_scalar_type(count)), kind="stable")
        instants = instants[grouped]
    backward = instants[1:] < instants[:-1]
    backward[_borders(starts)] = False
    if not backward.any():
        return grouped, starts, reordered
    order = np.arange(len(instants)) if grouped is None else grouped.copy()
    for i in np.unique(np.searchsorted(starts, np.flatnonzero(backward) + 1, side="right") - 1):
        part = slice(starts[i], starts[i + 1])
        by_time = np.argsort(instants[part], kind="stable")
        reordered[i] = int((by_time != np.arange(len(by_time))).sum())
        order[part] = order[part][by_time]
    return order, starts, reordered


def _borders(starts: Int64[np.ndarray, " _"]) -> Int64[np.ndarray, " _"]:
    """The last row of each series but the last; one of no rows has none."""
    inner = starts[1:-1]
    return inner[(inner > 0) & (inner < starts[-1])] - 1


def check_once(
    instants: Int64[np.ndarray, " rows"],
    starts: Int64[np.ndarray, " _"],
    labels: list[str],
    times: TimeType,
    where: str,
) -> None:
    """Refuses two rows of one series at the same time.

    Args:
      instants: in the order of `order_of`.
      starts: of the series.
      labels: what to call them in a message.
      times: what the column of times holds.
      where: what to call the frame in a message.

    Raises:
      DataError: there are such rows.
    """
    again = instants[1:] == instants[:-1]
    again[_borders(starts)] = False
    if again.any():
        at = int(again.argmax())
        series = labels[int(np.searchsorted(starts, at, side="right")) - 1]
        named = "" if series == where else f"{series} has "
        raise DataError(
            f"{where}: {named}two rows or more at {times.show(int(instants[at]))} "
            f"({int(again.sum())} such rows in all); every time must come once in a series. Name "
            "the id column if the rows are of different series"
        )
