"""The calendar of times as numbers, for models with covariates (arXiv 2601.21866)."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from timemoe_jax.errors import DataError

ROWS = 5  # minute, hour, weekday, day of the month, day of the year


def calendar_marks(times: Any) -> Float32[np.ndarray, "5 T"]:
    """Where times lie within their hour, day, week, month and year, each about from -0.5 to 0.5.

    The rows are minute / 59, hour / 23, weekday / 6 (Monday is 0), (day of the month - 1) / 30 and
    (day of the year - 1) / 365, each minus 0.5, computed in float64; day 366 gives 0.5.

    Args:
      times: datetime64 [T], or anything that NumPy converts to it, such as a pandas DatetimeIndex.

    Raises:
      DataError: they are no times, or one is missing.
    """
    try:
        seconds = np.asarray(times).astype("datetime64[s]")
    except (TypeError, ValueError) as error:
        raise DataError(f"times must be dates or datetime64 [T], but: {error}") from None
    if seconds.ndim != 1 or np.isnat(seconds).any():
        raise DataError("times must be one array [T] of times, none of them missing")
    days = seconds.astype("datetime64[D]")
    number = days.astype(np.int64)
    of_day = seconds.astype(np.int64) - number * 86_400
    rows = [
        (of_day // 60 % 60) / 59,
        (of_day // 3600) / 23,
        (number + 3) % 7 / 6,  # 1970 began on a Thursday
        (days - days.astype("datetime64[M]")).astype(np.int64) / 30,
        (days - days.astype("datetime64[Y]")).astype(np.int64) / 365,
    ]
    return (np.stack(rows) - 0.5).astype(np.float32)
