"""Whole numbers that code dates: 20240131, 202401, units since 1970 and the days of Excel.

Whole numbers are step numbers unless the caller says more. As step numbers, dates in such a code
would run from 20240131 to 20240132; numbers that look like dates are therefore refused.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64

from timemoe_jax.errors import DataError

# Beside the layouts of strptime, what date_format may be for numbers: units since 1970, and days
# as spreadsheets count them.
UNITS = ("s", "ms", "us", "ns", "excel")

# Layouts of numbers of so many digits.
_LAYOUTS = {
    6: ("%Y%m",),
    7: ("%Y%j",),
    8: ("%Y%m%d",),
    10: ("%Y%m%d%H",),
    12: ("%Y%m%d%H%M",),
    14: ("%Y%m%d%H%M%S",),
}
_NAMES = {
    **{"%Y%m": "yyyymm", "%Y%j": "yyyyddd", "%Y%m%d": "yyyymmdd", "%Y%m%d%H": "yyyymmddhh"},
    **{"%Y%m%d%H%M": "yyyymmddhhmm", "%Y%m%d%H%M%S": "yyyymmddhhmmss"},
}
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_YEARS = (1900, 2100)
_SINCE_1970 = (315_532_800, 4_102_444_800)  # seconds: the years 1980 to 2099
_EXCEL = (32_874, 58_440)  # days since the end of 1899: the years 1990 to 2059
_EXCEL_EPOCH = np.datetime64("1899-12-30", "s").astype(np.int64)


def refuse_coded(values: Int64[np.ndarray, " rows"], title: str) -> None:
    """Raises a DataError that says what numbers look like if they look like dates."""
    distinct = np.unique(values)
    low, high = int(distinct[0]), int(distinct[-1])
    layout = _layout_of(distinct)
    if layout is not None:
        form, given = f"dates of the form {_NAMES[layout]}", layout
    elif _EXCEL[0] <= low and high < _EXCEL[1]:
        form, given = "serial numbers of days of Excel", "excel"
    else:
        unit = _unit_of(low, high)
        if unit is not None:
            form, given = f"Unix times in {_UNIT_NAMES[unit]}", unit
        elif _split_years(distinct, 10, 4):
            form, given = "quarters of the form yyyyq", ""
        elif _split_years(distinct, 100, 53):
            form, given = "weeks of the form yyyyww", ""
        else:
            return
    how = f"give date_format={given!r}" if given else "convert them to dates"
    raise DataError(
        f"{title} holds {low} to {high}, which look like {form}; {how}, or give an integer freq if "
        "they are step numbers"
    )


def _layout_of(values: Int64[np.ndarray, " _"]) -> str | None:
    """The layout under which all numbers are dates of a plausible year."""
    digits = len(str(int(values[0])))
    year = 10 ** (digits - 4)
    if digits not in _LAYOUTS or not _plausible(values // year).all():
        return None
    return next((layout for layout in _LAYOUTS[digits] if _all_dates(values, layout)), None)


def _plausible(years: Int64[np.ndarray, " _"]) -> np.ndarray:
    return (years >= _YEARS[0]) & (years <= _YEARS[1])


def _all_dates(values: Int64[np.ndarray, " _"], layout: str) -> bool:
    import pandas as pd

    texts = pd.Index(values).astype(str)
    return not pd.to_datetime(texts, format=layout, errors="coerce").isna().any()


def _unit_of(low: int, high: int) -> str | None:
    for unit, scale in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        if _SINCE_1970[0] * scale <= low and high < _SINCE_1970[1] * scale:
            return unit
    return None


def _split_years(values: Int64[np.ndarray, " _"], base: int, most: int) -> bool:
    """Whether numbers are years and parts of a year from 1 on, which begin anew in each year."""
    years, parts = np.divmod(values, base)
    if not _plausible(years).all() or not ((parts >= 1) & (parts <= most)).all():
        return False
    jumps = np.diff(values)
    # Over the end of a year the step is larger than within it.
    return bool(np.ptp(years) and len(np.unique(jumps)) > 1)


def instants_of(values: Int64[np.ndarray, " rows"], unit: str) -> Any:
    """Numbers in one of `UNITS` as datetime64."""
    if unit == "excel":
        return (values * 86400 + _EXCEL_EPOCH).view("M8[s]")
    return values.view(f"M8[{unit}]")


def numbers_of(index: Any, layout: str) -> Int64[np.ndarray, " T"]:
    """A pandas DatetimeIndex as numbers of a layout of strptime or of one of `UNITS`."""
    if layout == "excel":
        return (index.as_unit("s").asi8 - _EXCEL_EPOCH) // 86400
    if layout in UNITS:
        return index.as_unit(layout).asi8
    return index.strftime(layout).astype(np.int64).to_numpy()
