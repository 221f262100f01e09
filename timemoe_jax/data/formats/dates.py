"""Dates that are written as text: how they are read, and written again, and their frequency.

01/02/2024 is a day in January or in February. No reading of such text is ever guessed: it is the
only one that all rows allow, or the only one under which the times are regular, or an error.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from timemoe_jax.errors import DataError

DATE = re.compile(r"\d{1,4}[-/.]\d")  # how text begins that is likely to be a date
ISO = "ISO8601"  # the name of pandas for any of its layouts, which may differ between rows

_LIKELY = re.compile(r"\w.*\d", re.DOTALL)

# Three numbers of which the year is not the first, unless it has two digits.
_NUMBERS = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})(?!\d)(.*)", re.DOTALL)
_CLOCK = re.compile(
    r"(,? ?|T)(\d{1,2}:\d{2})(:\d{2})?(\.\d{1,9})?( ?)([AaPp][Mm])?( ?)(Z|[+-]\d{2}:?\d{2})?"
)
_SHORT_NAMES = re.compile(r"\d{2}[- ][A-Za-z]{3}[- ]\d{2}")
# Of months and names of months, which pandas does not recognize by itself.
_OTHERS = (
    *("%d-%b-%Y", "%d-%B-%Y", "%b %Y", "%B %Y", "%b-%Y", "%b-%y", "%b %y"),
    *("%m/%Y", "%m-%Y", "%m.%Y", "%Y%m"),
)
_ORDERS = {"dmy": "day first", "mdy": "month first", "ymd": "year first"}

# Times are regular if so much of their grid is there, and are not if less than that is.
_REGULAR, _IRREGULAR = 0.75, 0.25
_DAY = 86400  # seconds
FREQUENCIES_SEEN = 200  # series of a long table whose frequencies are compared


def date_format(
    texts: Sequence[str],
    describe: Callable[[int], str],
    series: Int64[np.ndarray, " T"] | None = None,
) -> str:
    """Finds the layout under which all texts are dates: of `strptime`, or `ISO`.

    Where the order of day, month and year is open, it is the one under which the times of each
    series, whose number `series` gives, have one step or calendar. `describe` names a text in an
    error by its position.

    Raises:
      DataError: a text is no date, or the texts can be read in more than one way.
    """
    import pandas as pd

    codes, distinct = pd.factorize(np.array([text.strip() for text in texts], object))
    firsts = np.unique(codes, return_index=True)[1]
    candidates, ordered = _candidates(distinct[0])
    # pandas reads now and today as dates, and -1 as a year.
    unlikely = np.array([not _LIKELY.match(text) for text in distinct])
    fitting: dict[str, Any] = {}
    row = 0
    for layout in candidates:
        dates = _parsed(distinct, layout)
        bad = dates.isna() | unlikely
        if bad.any():
            row = max(row, int(firsts[bad].min()))
        elif ordered:
            fitting[layout] = dates
        else:
            return layout
    if not fitting:
        raise DataError(
            f"{describe(row)} holds {texts[row][:40]!r}, not a date such as 2024-01-31 or "
            "2024-01-31 13:00:00"
        )
    if len(fitting) == 1:
        return next(iter(fitting))
    owners = np.zeros(len(codes), np.int64) if series is None else series
    return _chosen(fitting, texts, codes, firsts, owners, describe)


def _candidates(text: str) -> tuple[list[str], bool]:
    """The layouts that a text may have, and whether they differ in the order of its numbers."""
    import pandas as pd

    numbers = _NUMBERS.fullmatch(text)
    if numbers is not None:
        clock = _clock_format(numbers[5])
        if clock is None:
            return [], True
        orders = ("dmy", "mdy", "ymd") if len(numbers[4]) == 2 else ("dmy", "mdy")
        year = "%y" if len(numbers[4]) == 2 else "%Y"
        parts = {"d": "%d", "m": "%m", "y": year}
        return [numbers[2].join(parts[part] for part in order) + clock for order in orders], True
    if _SHORT_NAMES.fullmatch(text):
        return [order.replace("-", text[2]) for order in ("%d-%b-%y", "%y-%b-%d")], True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guess = pd.tseries.api.guess_datetime_format(text)
    if guess is None:
        return [ISO, *_OTHERS], False
    if {"%d", "%m"} <= {*re.findall("%[a-zA-Z]", guess)} and not guess.startswith("%Y"):
        swapped = guess.replace("%d", "%_").replace("%m", "%d").replace("%_", "%m")
        return [guess, swapped], True
    return [guess, ISO], False


def _clock_format(text: str) -> str | None:
    """The layout of a time of day; empty without one, None where the text is none."""
    if not text:
        return ""
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    begin, _, seconds, fraction, blank, half, gap, zone = match.groups()
    hours = "%I:%M" if half else "%H:%M"
    parts = (begin, hours, ":%S" if seconds else "", ".%f" if fraction else "", blank or "")
    return "".join(parts) + ("%p" if half else "") + (gap or "") + ("%z" if zone else "")


def _parsed(texts: Sequence[str], layout: str) -> Any:
    """A pandas DatetimeIndex in UTC, NaT where a text does not fit."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pd.to_datetime(pd.Index(texts), format=layout, utc=True, errors="coerce")
        except (ValueError, OverflowError):
            return pd.DatetimeIndex([pd.NaT] * len(texts), tz="UTC")


def _chosen(
    fitting: dict[str, Any],
    texts: Sequence[str],
    codes: Int64[np.ndarray, " T"],
    firsts: Int64[np.ndarray, " _"],
    owners: Int64[np.ndarray, " T"],
    describe: Callable[[int], str],
) -> str:
    """The reading that the regularity of the times decides for, if they differ at all."""
    readings = {
        layout: dates.tz_localize(None).to_numpy().astype("M8[s]").astype(np.int64)
        for layout, dates in fitting.items()
    }
    first, *others = readings
    differ = [layout for layout in others if (readings[layout] != readings[first]).any()]
    if not differ:
        return first
    shares = {layout: _shares(readings[layout][codes], owners) for layout in (first, *differ)}
    best, second = sorted(shares, key=lambda layout: -shares[layout])[:2]
    whole = shares[best] == 1 > shares[second]
    if whole or (shares[best] >= _REGULAR and shares[second] < _IRREGULAR):
        return best
    at = int(firsts[(readings[first] != readings[differ[0]]).argmax()])
    said = [
        f"{fitting[layout][codes[at]].date()!s} ({_order_of(layout)}, date_format={layout!r})"
        for layout in (first, *differ)
    ]
    raise DataError(
        f"{describe(at)} holds {texts[at][:40]!r}, which is {' or '.join(said)}, as all rows "
        "allow; give date_format, or write dates such as 2024-01-31"
    )


def _order_of(layout: str) -> str:
    letters = "".join(part[1].lower() for part in re.findall("%[dmyY]", layout))
    return _ORDERS.get(letters, layout)


def _shares(times: Int64[np.ndarray, " T"], owners: Int64[np.ndarray, " T"]) -> float:
    """Which share of the regular times of all series is there; 0 where none has three."""
    order = np.lexsort((times, owners))
    times, owners = times[order], owners[order]
    parts = np.split(times, np.flatnonzero(np.diff(owners)) + 1)
    there = points = 0
    for part in parts:
        part = np.unique(part)
        if len(part) >= 3:
            there += len(part)
            points += min(_points(part), _points_of_months(part))
    return there / points if points else 0.0


def _points(values: Int64[np.ndarray, " T"]) -> int:
    """How many points the grid of rising values has."""
    return int(values[-1] - values[0]) // int(np.gcd.reduce(np.diff(values))) + 1


def _points_of_months(times: Int64[np.ndarray, " T"]) -> int:
    """The same in months, where all times are at one day of the month and one time of day."""
    days = times.astype("M8[s]").astype("M8[D]")
    months = days.astype("M8[M]")
    first = (days - months.astype("M8[D]")).astype(np.int64)
    last = ((months + 1).astype("M8[D]") - days).astype(np.int64)
    if np.ptp(times % _DAY) or (np.ptp(first) and np.ptp(last)):
        return int(np.iinfo(np.int64).max)
    return _points(months.astype(np.int64))


@dataclasses.dataclass(frozen=True)
class DateText:
    """How dates are written as text, so that text that was read becomes the same text again."""

    format: str  # of strptime
    short: frozenset[str] = frozenset()  # directives of numbers without leading zeros
    fraction: int = 6  # digits
    zone: str = ""  # "Z", ":" as in +01:00, or "" as in +0100
    case: str = "title"  # of names of months and of AM and PM: the name of a method of str

    def write(self, stamps: Any) -> list[str]:
        """Texts of a pandas DatetimeIndex."""

        def field(match: re.Match[str], stamp: Any) -> str:
            directive = match[0]
            if directive == "%f":
                return f"{stamp.microsecond:06d}{stamp.nanosecond:03d}"[: self.fraction]
            text = str(stamp.strftime(directive))
            if directive == "%z":
                return "Z" if self.zone == "Z" else f"{text[:3]}{self.zone}{text[3:5]}"
            if directive in self.short:
                return text.lstrip("0") or "0"
            named = directive in ("%b", "%B", "%p") and self.case != "title"
            return str(getattr(text, self.case)()) if named else text

        pattern = re.compile("%[a-zA-Z]")
        return [pattern.sub(lambda m, s=stamp: field(m, s), self.format) for stamp in stamps]  # type: ignore[misc]


def date_text(texts: Sequence[str], layout: str) -> DateText:
    """Finds out how dates are written that are read under a layout of `date_format`.

    Where rows differ in more than their dates, it is the layout of ISO dates.
    """
    import pandas as pd

    sample = list(dict.fromkeys(texts))
    sample = [text.strip() for text in sample[:: max(1, len(sample) // 200)]]
    stamps = pd.DatetimeIndex(pd.to_datetime(pd.Index(sample), format=layout))
    if layout == ISO:
        layout = pd.tseries.api.guess_datetime_format(sample[0]) or "%Y-%m-%d"
    digits = re.search(r"\.(\d+)", sample[0])
    zone = "Z" if sample[0].endswith("Z") else ":" if re.search(r":\d\d$", sample[0]) else ""
    clock, day = frozenset({"%H", "%I"}), frozenset({"%d", "%m"})
    for short in (frozenset[str](), day, clock, day | clock):
        for case in ("title", "upper", "lower"):
            text = DateText(layout, short, len(digits[1]) if digits else 6, zone, case)
            if text.write(stamps) == sample:
                return text
    midnight = (stamps == stamps.normalize()).all()
    return DateText("%Y-%m-%d" if midnight else "%Y-%m-%d %H:%M:%S")


def parse_dates(
    cells: Sequence[str],
    describe: Callable[[int], str],
    layouts: Sequence[str | None] = (None, ISO),
) -> Shaped[np.ndarray, " T"]:
    """Turns text into datetime64, in UTC where it has a time zone.

    Each of `layouts` is tried in turn; None is the one that `date_format` finds. `describe` names a
    cell in an error by its position.

    Raises:
      DataError: a cell is no date, or the cells can be read in more than one way.
    """
    texts = [cell.strip() for cell in cells]
    layout = date_format(texts, describe) if None in layouts else ISO
    dates = _parsed(texts, layout)
    bad = dates.isna()
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"{describe(row)} holds {cells[row][:40]!r}, not a date such as 2024-01-31 or "
            "2024-01-31 13:00:00"
        )
    return dates.tz_localize(None).to_numpy()


def frequency_of(times: Shaped[np.ndarray, " T"] | None) -> str | None:
    """The pandas alias of the frequency of regular dates in order; None for any other times."""
    import pandas as pd

    if times is None or times.dtype.kind != "M" or len(times) < 3:
        return None
    with warnings.catch_warnings():
        # Some versions announce that later ones return an offset, whose alias is the same text.
        warnings.simplefilter("ignore")
        found = pd.infer_freq(pd.DatetimeIndex(times))
    return getattr(found, "freqstr", found)


def common_frequency(
    count: int, times: Callable[[int], Shaped[np.ndarray, " T"] | None]
) -> str | None:
    """The frequency of `count` series by their times, None where they differ.

    Of many series a few, spread evenly, count.
    """
    chosen = range(0, count, max(1, count // FREQUENCIES_SEEN))
    found = {frequency_of(times(i)) for i in chosen}
    return found.pop() if len(found) == 1 else None
