"""Which rows of a data frame are which series, in the order of their times."""

from typing import Any

import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.formats.frames import layout_of
from timemoe_jax.data.formats.table_layout import TARGET_NAMES, ColumnNames, Layout, listed
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.times import TimeType


def timed_layout(frame: Any, names: ColumnNames, covariates: tuple[str, ...], where: str) -> Layout:
    """The layout of a frame, as `layout_of` finds it, of series that have times."""
    roles = {names.id, names.timestamp, *names.targets}
    for name in covariates:
        if name not in frame.columns or name in roles:
            has = "it is also named as something else" if name in roles else "it is no column"
            raise DataError(f"{where}: {name!r} cannot be a covariate: {has}")
    layout = layout_of(frame, names, where, covariates)
    if layout.kind == "list":
        raise DataError(
            f"{where} holds a list of values in each row of {layout.targets[0]!r}, which has no "
            "times; give a row per point"
        )
    named = [name for name in layout.targets if name in TARGET_NAMES]
    if layout.kind == "wide" and not names.targets and named and len(layout.targets) > 1:
        raise DataError(
            f"{where} has no id column, and {named[0]!r} could be its only target or one of the "
            f"series {listed(layout.targets)}; name the target"
        )
    if layout.timestamp is None:
        raise DataError(
            f"{where} has no column of times that is called ds or timestamp or holds dates; name "
            f"the timestamp column: one of {listed(frame.columns)}"
        )
    return layout


def order_of(
    codes: Int64[np.ndarray, " rows"] | None, instants: Int64[np.ndarray, " rows"], count: int
) -> tuple[Int64[np.ndarray, " rows"] | None, Int64[np.ndarray, " _"], Int64[np.ndarray, " N"]]:
    """Sorts the rows by series and time; `codes` is None for a single series.

    Returns the rows in their new order, None where they have it already; where each series starts
    in it, then the number of rows; how many rows of each series were out of place.
    """
    reordered = np.zeros(count, np.int64)
    if codes is None:
        starts = np.array([0, len(instants)])
        codes = np.zeros(1, np.int8)
    else:
        starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=count))])
    grouped = None
    if (codes[1:] < codes[:-1]).any():
        # NumPy sorts integers of 16 bits in linear time.
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
    """The last row of each series except the last series; a series without rows has none."""
    inner = starts[1:-1]
    return inner[(inner > 0) & (inner < starts[-1])] - 1


def check_once(
    instants: Int64[np.ndarray, " rows"],
    starts: Int64[np.ndarray, " _"],
    labels: list[str],
    times: TimeType,
    where: str,
) -> None:
    """Refuses two rows of one series at the same time; the rows are in the order of `order_of`."""
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
