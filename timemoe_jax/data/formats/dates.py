"""Dates that are written as text, and the frequency of dates."""

import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Shaped

from timemoe_jax.errors import DataError

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
# A whole date: parts of figures, or of figures with the name of a month; and a time if need be.
_PARTS = re.compile(
    r"(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}[-/.]\d{4})(?![\d.;|,\t])"
)
_NAMED = re.compile(r"(\d{1,4}[- /.]+)?([a-z]{3,9})[-. /,]+\d{1,4}")
_QUARTER = re.compile(r"\d{4}[- ]?q[1-4]|q[1-4][- /]?\d{4}")


def looks_like_date(text: str) -> bool:
    """Whether text is written as dates are: 2024-01-31, 31.01.2024, Jan 2024, 2024Q1."""
    text = text.strip().lower()
    named = _NAMED.match(text)
    return bool(
        _PARTS.match(text)
        or _QUARTER.fullmatch(text)
        or (named is not None and named[2][:3] in _MONTHS)
    )


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
