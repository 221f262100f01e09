"""How many points a season has: by the times of a series, by its frequency, or by its values.

`season_of` is the one rule that every part of the library follows.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Shaped

DAY = 86400.0  # seconds
DAYS_IN_WEEK, WEEKS_IN_YEAR, MONTHS_IN_YEAR, QUARTERS_IN_YEAR = 7, 52, 12, 4

# Steps longer than half a day: their length in days, how far it may be off, points in a season.
_LONG_STEPS = (
    (1, 0.05, DAYS_IN_WEEK),
    (7, 0.05, WEEKS_IN_YEAR),
    (30.4, 0.1, MONTHS_IN_YEAR),
    (91.3, 0.05, QUARTERS_IN_YEAR),
)
_OF_OFFSET = {
    **{"D": DAYS_IN_WEEK, "B": 5, "C": 5, "W": WEEKS_IN_YEAR, "SM": 24},
    **dict.fromkeys(("M", "BM", "CBM"), MONTHS_IN_YEAR),
    **dict.fromkeys(("Q", "BQ"), QUARTERS_IN_YEAR),
}

# A step of months to the same day, as offsets of pandas are written.
_MONTHS = re.compile(r"DateOffset\((months|years)=(\d+)\)")

# Points of a season that calendars give to series: quarters and months in a year, days in a week
# and a month, weeks in a year, and the days, weeks and years of steps from a minute to a day.
SEASONS = (4, 7, 12, 24, 30, 48, 52, 60, 96, 144, 168, 288, 336, 365, 672, 1440)
# An autocorrelation below this is no season worth repeating, nor is a peak by less than this.
LEAST_AUTOCORRELATION = 0.2
LEAST_PROMINENCE = 0.1
FLAT_PEAK = 0.03  # noise moves the top of a smooth peak by a few lags
# Multiples of a season correlate as much as it does, but for chance: the shortest counts.
SAME_AUTOCORRELATION = 0.05
LEAST_HORIZON = 12  # of a horizon that nobody gave
SERIES_SEEN = 32  # of many series, those in which a season is looked for


class Season(NamedTuple):
    """The points of a season, and how they are known."""

    points: int  # 1 without a season
    origin: str  # "calendar", "found in the series", or "none"


def season_of(
    series: Sequence[Float64[np.ndarray, " _"]] = (),
    freq: str | None = None,
    times: Shaped[np.ndarray, " T"] | None = None,
) -> Season:
    """The season of series that share a step: by their calendar, else found in their values.

    Args:
      series: the values, NaN where missing; of more than 32, the first 32 are looked at. Without
        any, only the calendar counts.
      freq: a pandas alias of the step, as `season_of_frequency` takes it, where it is known.
      times: dates, as `season_of_times` takes them; looked at where there is no `freq`.

    Returns:
      the season of the calendar where that has one; else the one that `season_of_values` finds
      in most of the series, of equally frequent ones the shortest; else 1.
    """
    known = season_of_times(times) if freq is None else season_of_frequency(freq)
    if known > 1:
        return Season(known, "calendar")
    found = Counter(season_of_values(each) for each in series[:SERIES_SEEN])
    points = min(found, key=lambda season: (-found[season], season), default=1)
    return Season(points, "found in the series" if points > 1 else "none")


def default_horizon(season: int) -> int:
    """The steps to forecast where nobody says how many: two seasons, at least 12."""
    return max(2 * season, LEAST_HORIZON)


def season_of_times(times: Shaped[np.ndarray, " T"] | None) -> int:
    """Guesses the points in a season from the median step of dates.

    They are the steps in a day where a step is at most half a day; else 7 for days, 52 for weeks,
    12 for months, 4 for quarters; 1 for anything else, and without dates.
    """
    if times is None or len(times) < 2:
        return 1
    step = float(np.median(np.diff(times) / np.timedelta64(1, "s")))
    if 0 < step <= DAY / 2:
        return round(DAY / step)
    for days, tolerance, season in _LONG_STEPS:
        if abs(step / DAY - days) <= tolerance * days:
            return season
    return 1


def season_of_frequency(freq: str) -> int:
    """Looks up the points in the most usual season of a pandas alias.

    The season is a day for hours and shorter steps, a week for days, and a year for weeks, months
    and quarters. The result is 1 where there is no season, and for step numbers.
    """
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    if freq.isdigit():
        return 1
    months = _MONTHS.fullmatch(freq)
    if months is not None:
        season, rest = divmod(MONTHS_IN_YEAR, int(months[2]) * (12 if months[1] == "years" else 1))
        return season if not rest else 1
    try:
        offset = to_offset(freq)
    except ValueError:
        # Periods have names of their own: M, Q and Y.
        offset = to_offset(freq.replace("-", "E-", 1) if "-" in freq else freq + "E")
    if isinstance(offset, pd.offsets.Tick) and not isinstance(offset, pd.offsets.Day):
        day, rest = divmod(pd.Timedelta(days=1), pd.Timedelta(offset))
        return int(day) if not rest else 1
    if isinstance(offset, pd.offsets.Day) and offset.n % DAYS_IN_WEEK == 0:
        season, rest = divmod(WEEKS_IN_YEAR, offset.n // DAYS_IN_WEEK)
        return season if not rest else 1
    name = offset.base.freqstr.split("-")[0].removesuffix("S").removesuffix("E")
    season, rest = divmod(_OF_OFFSET.get(name, 1), offset.n)
    return season if not rest else 1


def season_of_values(values: Float64[np.ndarray, " T"]) -> int:
    """Finds the season of a series where its autocorrelation peaks, among the usual lengths.

    The straight line through the series is taken off first. A length of `SEASONS` counts where the
    series holds it three times and the autocorrelation at that lag is 0.2 or more, within 0.03 of
    the highest at lags up to a sixteenth away, and 0.1 above the lowest at any shorter lag, which
    that of a trend is not. Of the lengths within 0.05 of the highest autocorrelation, the shortest
    is the season; without any it is 1. Pairs with a missing value, NaN, do not count.
    """
    observed = ~np.isnan(values)
    if observed.sum() < 3:
        return 1
    steps = np.arange(len(values), dtype=np.float64)
    # Of a size near 1, so that no square overflows.
    scaled = values / (np.abs(values[observed]).max() or 1.0)
    line = np.polynomial.Polynomial.fit(steps[observed], scaled[observed], 1)
    rest = np.where(observed, scaled - line(steps), 0.0)
    if np.abs(rest).max() < 1e-12:
        return 1
    correlation = _autocorrelation(rest, observed, len(values) // 3 + 2)
    peaks = {}
    for season in SEASONS:
        if season >= len(correlation) - 1:
            break
        here = correlation[season]
        if here < LEAST_AUTOCORRELATION:
            continue
        around = correlation[season - max(1, season // 16) : season + max(1, season // 16) + 1]
        is_peak = here >= np.nanmax(around) - FLAT_PEAK
        if is_peak and here - np.nanmin(correlation[1:season]) >= LEAST_PROMINENCE:
            peaks[season] = here
    near = [s for s, here in peaks.items() if here >= max(peaks.values()) - SAME_AUTOCORRELATION]
    return min(near, default=1)


def _autocorrelation(
    values: Float64[np.ndarray, " T"], observed: np.ndarray, lags: int
) -> Float64[np.ndarray, " lags"]:
    """Of the lags from 0 up, each over its own pairs of observed values; NaN without such."""
    size = 1 << (2 * len(values) - 1).bit_length()

    def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        spectrum = np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size)
        return np.fft.irfft(spectrum, size)[:lags]

    there = observed.astype(np.float64)
    squares = np.square(values)
    # Each lag by the power of the very values it pairs: 1 for a series that repeats exactly.
    power = np.sqrt(np.maximum(products(squares, there) * products(there, squares), 0))
    pairs = products(there, there)
    small = (pairs < 2.5) | (power <= 1e-12 * squares.sum())
    return np.where(small, np.nan, products(values, values) / np.where(small, 1, power))
