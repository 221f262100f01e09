"""Columns of times as int64: dates with or without a time zone, periods, or step numbers."""

import dataclasses
import datetime
import re
import warnings
from typing import Any

import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.formats.dates import DateText, date_format, date_text
from timemoe_jax.data.formats.frames import cell_name, kind_of, row_name
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.coded_times import UNITS, instants_of, numbers_of, refuse_coded

# Units of a datetime64 in a second.
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclasses.dataclass(frozen=True)
class Written:
    """How a column holds times that are none of its own dtype.

    `kind` is "text", "numbers" that code dates, "dates" and "datetimes" for objects of the module
    datetime, or "dtype" for a dtype of pandas beside its usual ones.
    """

    kind: str
    dtype: Any
    format: str = ""  # of `strptime`, or a unit of `coded_times`
    text: DateText | None = None


@dataclasses.dataclass(frozen=True)
class TimeType:
    """What a column of times holds, and how it is written back."""

    dtype: Any  # datetime64, pandas' DatetimeTZDtype or PeriodDtype, or an integer
    written: Written | None = None  # None where the column itself has that dtype

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

    @property
    def layout(self) -> str | None:
        """How dates that came as text or numbers were read, as `date_format` takes it."""
        return self.written.format or None if self.written is not None else None

    def column(self, instants: Int64[np.ndarray, " T"]) -> Any:
        """The same times as the column held them: text as text, dates as dates."""
        import pandas as pd

        written = self.written
        if written is None:
            return self.index(instants)
        if written.kind == "dtype":
            return pd.Series(self.index(instants)).astype(written.dtype).array
        if written.kind == "datetimes":
            return self.index(instants).astype(object)
        distinct, codes = np.unique(instants, return_inverse=True)
        index = self.index(distinct)
        if index[-1].year > datetime.MAXYEAR:
            raise DataError(
                f"the forecast ends at {index[-1]}, beyond the year {datetime.MAXYEAR}, which "
                f"dates as {written.kind} cannot hold; correct the times, or use periods"
            )
        if written.kind == "dates":
            return index.date[codes]
        if written.kind == "numbers":
            return numbers_of(index, written.format).astype(written.dtype)[codes]
        assert written.text is not None
        texts = np.array(written.text.write(index), object)[codes]
        return pd.Series(texts, dtype=written.dtype)  # an array of objects would become another

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


def read_times(
    frame: Any,
    name: str,
    where: str,
    *,
    layout: str | None = None,
    series: Int64[np.ndarray, " rows"] | None = None,
    steps: bool = False,
    like: TimeType | None = None,
) -> tuple[Int64[np.ndarray, " rows"], TimeType]:
    """Turns a column of times into integers, and returns the type to write times back in.

    The column holds datetime64 with or without a time zone, periods, integers, dates as text, or
    `datetime` and `date` objects; text and objects become datetime64.

    Args:
      frame: has the column `name`; errors call it `where`.
      layout: of dates that are text or numbers, as `strptime` takes it; by default it is found.
      series: the number of each row's series, of which each has regular times.
      steps: whether whole numbers are known to be step numbers.
      like: the type of other times, whose layout is taken if it fits.

    Raises:
      DataError: a time is missing or none; the dates can be read in more than one way; or whole
        numbers look like dates.
    """
    import pandas as pd

    title = f"{where}: column {name!r}"
    column = frame[name]
    missing = column.isna().to_numpy()
    if missing.any():
        row = row_name(frame, int(missing.argmax()))
        raise DataError(
            f"{title} has no time in {row} ({int(missing.sum())} such rows); every row needs one"
        )
    if layout is None and like is not None and like.written is not None:
        layout = _layout_that_fits(column, like.written)
    column, written = _as_times(frame, name, where, layout, series)
    dtype = column.dtype
    if pd.api.types.is_integer_dtype(dtype):
        instants = _whole_numbers(column, title)
        times = TimeType(np.dtype(getattr(dtype, "numpy_dtype", dtype)), written)
        if not steps:
            refuse_coded(instants, title)
    else:
        instants = np.ascontiguousarray(column.array.asi8)
        times = TimeType(dtype, written)
    first, last = int(instants.min()), int(instants.max())
    if last - first >= 2**63:
        raise DataError(
            f"{title} spans from {times.show(first)} to {times.show(last)}, more than its unit can "
            "tell apart; correct the times"
        )
    return instants, times


def _whole_numbers(column: Any, title: str) -> Int64[np.ndarray, " rows"]:
    if column.max() >= 2**63:
        raise DataError(f"{title} holds {column.max()}, more than 64 bits hold; count from less")
    return np.ascontiguousarray(column.to_numpy(np.int64))


def _as_times(
    frame: Any, name: str, where: str, layout: str | None, series: Any
) -> tuple[Any, Written | None]:
    """The column as integers, periods or datetime64, and how it held them."""
    import pandas as pd

    column, title = frame[name], f"{where}: column {name!r}"
    dtype, kinds = column.dtype, pd.api.types
    kind = "string" if isinstance(dtype, pd.CategoricalDtype) else kinds.infer_dtype(column)
    if kind == "string":
        return _from_text(frame, name, where, layout, series)
    if kind == "integer" and layout is not None:
        return _from_numbers(frame, name, title, layout)
    if layout is not None:
        raise DataError(
            f"{title} is of dtype {dtype}, for which there is no date_format; leave it out"
        )
    if isinstance(dtype, pd.ArrowDtype) and kind in ("datetime64", "datetime", "date"):
        zone, unit = (getattr(dtype.pyarrow_dtype, part, None) for part in ("tz", "unit"))
        unit = unit if unit in _PER_SECOND and kind != "date" else "s"
        taken = column.astype(pd.DatetimeTZDtype(unit, zone) if zone else f"datetime64[{unit}]")
        return taken, Written("dtype", dtype)
    if isinstance(dtype, pd.PeriodDtype) or kinds.is_datetime64_any_dtype(dtype):
        return column, None
    if kinds.is_integer_dtype(dtype):
        return column, None if isinstance(dtype, np.dtype) else Written("dtype", dtype)
    if kind == "integer":
        return column.astype(np.int64), Written("dtype", dtype)
    if kind in ("datetime", "datetime64", "date"):
        objects = Written("dates" if kind == "date" else "datetimes", dtype)
        return _converted(column, title, "ISO8601"), objects
    raise DataError(
        f"{title} must hold dates, periods or whole step numbers, but is of dtype {dtype} and "
        f"holds {kind} values; convert it with pandas.to_datetime or astype(int)"
    )


def _from_text(
    frame: Any, name: str, where: str, layout: str | None, series: Any
) -> tuple[Any, Written]:
    """Dates of text, read as one layout; see `date_format`."""
    import pandas as pd

    title = f"{where}: column {name!r}"
    texts = [text.strip() for text in frame[name].astype(object)]
    column = pd.Series(texts, dtype=object)
    if layout is None:
        layout = date_format(texts, cell_name(frame, name, where), series)
    else:
        _check_layout(frame, column, layout, title)
    dtype = frame[name].dtype
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
    # The rows of a panel repeat the same few times.
    codes, distinct = pd.factorize(column)
    dates = pd.Series(_converted(pd.Series(distinct), title, layout).array.take(codes))
    return dates, Written("text", dtype, layout, date_text(texts, layout))


def _from_numbers(frame: Any, name: str, title: str, layout: str) -> tuple[Any, Written]:
    """Dates that whole numbers code, such as 20240131 under %Y%m%d."""
    import pandas as pd

    column = frame[name]
    dtype = np.dtype(getattr(column.dtype, "numpy_dtype", column.dtype))
    if layout in UNITS:
        dates = pd.Series(instants_of(column.to_numpy(np.int64), layout))
    else:
        texts = column.astype("int64").astype(str)
        _check_layout(frame, texts, layout, title)
        dates = _converted(texts, title, layout)
    return dates, Written("numbers", dtype, layout)


def _check_layout(frame: Any, texts: Any, layout: str, title: str) -> None:
    """Refuses a layout that is none, or a row that is not in it."""
    import pandas as pd

    try:
        if not isinstance(layout, str) or "%" not in layout:
            raise ValueError("it names no part of a date")
        bad = pd.to_datetime(texts, format=layout, errors="coerce", utc=True).isna().to_numpy()
    except (ValueError, re.error) as error:
        raise DataError(
            f"date_format must be a layout of strptime such as '%d/%m/%Y', but is {layout!r}: "
            f"{error}"
        ) from None
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"{title}: {row_name(frame, row)} holds {texts.iloc[row][:40]!r}, which is no date of "
            f"the date_format {layout!r} ({int(bad.sum())} such rows)"
        )


def _layout_that_fits(column: Any, written: Written) -> str | None:
    """The layout of other times, where all of a column is in it."""
    import pandas as pd

    if written.kind == "numbers":
        return written.format if pd.api.types.is_integer_dtype(column.dtype) else None
    if written.kind != "text" or kind_of(column) != "text":
        return None
    texts = column.astype(object).str.strip()
    bad = pd.to_datetime(texts, format=written.format, errors="coerce", utc=True).isna()
    return None if bad.any() else written.format


def _converted(column: Any, title: str, layout: str) -> Any:
    """Dates of text or objects as datetime64; they are known to be dates."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dates = pd.to_datetime(column, format=layout)
        except (ValueError, TypeError, OverflowError):
            dates = column
    if not pd.api.types.is_datetime64_any_dtype(dates.dtype):
        raise DataError(
            f"{title} mixes time zones or offsets from UTC; bring all rows to one time zone, "
            "with pandas.to_datetime(..., utc=True).dt.tz_convert(...)"
        )
    return dates
