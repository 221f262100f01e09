"""Columns of times as int64: dates with or without a time zone, periods, or step numbers."""

import dataclasses
import warnings
from typing import Any

import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.formats.frames import dates_of, row_name
from timemoe_jax.errors import DataError

# Units of a datetime64 in a second.
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclasses.dataclass(frozen=True)
class TimeType:
    """What a column of times holds, and how it is written back."""

    dtype: Any  # datetime64, pandas' DatetimeTZDtype or PeriodDtype, or an integer

    @property
    def is_datetime(self) -> bool:
        """Whether the times are instants, rather than periods or step numbers."""
        return self.unit is not None

    @property
    def unit(self) -> str | None:
        """The unit of instants: "s", "ms", "us" or "ns"."""
        if isinstance(self.dtype, np.dtype):
            return np.datetime_data(self.dtype)[0] if self.dtype.kind == "M" else None
        return getattr(self.dtype, "unit", None)

    @property
    def zone(self) -> Any:
        """The time zone of instants, if they have one."""
        return getattr(self.dtype, "tz", None)

    @property
    def per_second(self) -> int:
        """Units in a second."""
        return _PER_SECOND[str(self.unit)]

    def index(self, instants: Int64[np.ndarray, " T"]) -> Any:
        """Units since 1970 UTC, ordinals of periods, or step numbers, as a pandas Index."""
        import pandas as pd

        if isinstance(self.dtype, pd.PeriodDtype):
            return pd.PeriodIndex.from_ordinals(instants, freq=self.dtype.freq)
        if not self.is_datetime:
            return pd.Index(instants.astype(self.dtype))
        index = pd.DatetimeIndex(instants.view(f"M8[{self.unit}]"))
        return index if self.zone is None else index.tz_localize("UTC").tz_convert(self.zone)

    def show(self, instant: int) -> str:
        """One time as text."""
        return str(self.index(np.array([instant], np.int64))[0])

    def walls(self, instants: Int64[np.ndarray, " T"]) -> Int64[np.ndarray, " T"]:
        """What the clocks of the time zone show at some instants, in units since 1970."""
        return instants if self.zone is None else self.index(instants).tz_localize(None).asi8

    def from_walls(self, walls: Int64[np.ndarray, " T"]) -> Int64[np.ndarray, " T"]:
        """The instants at which the clocks show some times, in units since 1970.

        A time that the clocks skip is the first instant after it; one that they show twice is the
        first of the two.
        """
        import pandas as pd

        if self.zone is None:
            return walls
        index = pd.DatetimeIndex(walls.view(f"M8[{self.unit}]"))
        first = np.ones(len(walls), bool)
        return index.tz_localize(self.zone, ambiguous=first, nonexistent="shift_forward").asi8


def read_times(frame: Any, name: str, where: str) -> tuple[Int64[np.ndarray, " rows"], TimeType]:
    """Turns a column of times into integers, and returns the type to write times back in.

    The column holds datetime64 with or without a time zone, periods, integers, dates as text, or
    `datetime` and `date` objects; text and objects become datetime64.
    """
    import pandas as pd

    title = f"{where}: column {name!r}"
    column = _as_times(frame, name, where)
    missing = column.isna().to_numpy()
    if missing.any():
        row = row_name(frame, int(missing.argmax()))
        raise DataError(
            f"{title} has no time in {row} ({int(missing.sum())} such rows); every row needs one"
        )
    dtype = column.dtype
    if pd.api.types.is_integer_dtype(dtype):
        instants = np.ascontiguousarray(column.to_numpy(np.int64))
        times = TimeType(np.dtype(getattr(dtype, "numpy_dtype", dtype)))
    else:
        instants, times = np.ascontiguousarray(column.array.asi8), TimeType(dtype)
    first, last = int(instants.min()), int(instants.max())
    if last - first >= 2**63:
        raise DataError(
            f"{title} spans from {times.show(first)} to {times.show(last)}, more than its unit can "
            "tell apart; correct the times"
        )
    return instants, times


def _as_times(frame: Any, name: str, where: str) -> Any:
    """The column as integers, periods or datetime64."""
    import pandas as pd

    column, title = frame[name], f"{where}: column {name!r}"
    dtype = column.dtype
    if isinstance(dtype, pd.ArrowDtype) and dtype.kind == "M":
        zone, unit = dtype.pyarrow_dtype.tz, dtype.pyarrow_dtype.unit
        return column.astype(pd.DatetimeTZDtype(unit, zone) if zone else f"datetime64[{unit}]")
    kinds = pd.api.types
    if (
        isinstance(dtype, pd.PeriodDtype)
        or kinds.is_datetime64_any_dtype(dtype)
        or kinds.is_integer_dtype(dtype)
    ):
        return column
    if kinds.is_numeric_dtype(dtype):
        raise DataError(
            f"{title} must hold dates, periods or whole step numbers, but is of dtype {dtype}; "
            "convert it with pandas.to_datetime or astype(int)"
        )
    for layout in (None, "ISO8601"):
        with warnings.catch_warnings():
            # pandas warns where it would guess a layout for each row.
            warnings.simplefilter("error")
            try:
                return pd.to_datetime(column, format=layout)
            except (Warning, ValueError, TypeError, OverflowError):
                continue
    dates_of(frame, name, where)
    # All of them are dates, so that pandas can only have refused their time zones.
    raise DataError(
        f"{title} mixes time zones or offsets from UTC; bring all rows to one time zone, "
        "with pandas.to_datetime(..., utc=True).dt.tz_convert(...)"
    )
