"""Dates that are written as text, and the frequency of dates."""

import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Shaped

from timemoe_jax.errors import DataError

DATE = re.compile(r"\d{1,4}[-/.]\d")  # how text begins that is likely to be a date


def parse_dates(
    cells: Sequence[str],
    describe: Callable[[int], str],
    layouts: Sequence[str | None] = (None, "ISO8601"),
) -> Shaped[np.ndarray, " T"]:
    """Turns text into datetime64, in UTC where it has a time zone.

    Each of `layouts` is tried in turn; None is one layout for all cells, guessed from the first.
    `describe` names a cell in an error by its position.
    """
    import pandas as pd

    texts = pd.Series([cell.strip() for cell in cells], dtype=object)
    row = 0
    for layout in layouts:
        with warnings.catch_warnings():
            # Where no layout can be guessed, pandas warns and reads each cell in its own way:
            # 1/2 could be one date in this row and another in the next.
            warnings.simplefilter("error")
            try:
                dates = pd.to_datetime(texts, format=layout, utc=True, errors="coerce")
            except (UserWarning, ValueError, OverflowError):
                continue
        bad = dates.isna().to_numpy()
        if not bad.any():
            return dates.dt.tz_localize(None).to_numpy()
        row = max(row, int(bad.argmax()))
    raise DataError(
        f"{describe(row)} holds {cells[row][:40]!r}, not a date such as 2024-01-31 or "
        "2024-01-31 13:00:00"
    )


def frequency_of(times: Shaped[np.ndarray, " T"] | None) -> str | None:
    """The pandas alias of the frequency of regular dates in order; None for any other times."""
    import pandas as pd

    if times is None or times.dtype.kind != "M" or len(times) < 3:
        return None
    return pd.infer_freq(pd.DatetimeIndex(times))
