"""The plan of a calibration: how many errors it needs, and from which origins of a series."""

import dataclasses
import functools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float64, Int

from timemoe_jax.data.series import check_levels
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.intervals.rolling import first_observed, trailing_gap

# With 59 errors, (K + 1) c is whole for the confidences 80, 90 and 95 percent: nothing is rounded.
DEFAULT_ORIGINS = 59
SHORTEST_CONTEXT = 16


class TooShortError(DataError):
    """A series has too few points for the errors of earlier forecasts."""


@dataclasses.dataclass(frozen=True)
class CalibrationPlan:
    """The arguments of `conformal_offsets`, the same for every series."""

    horizon: int
    levels: tuple[float, ...]
    context_length: int
    min_context: int
    origins: int  # of a series without missing values that is long enough
    exact: bool  # whether the caller asked for that number of origins
    needed: int  # errors at each step
    span: int  # points that the origins are spread over at most


def errors_needed(levels: Sequence[float] | Float64[np.ndarray, " Q"]) -> int:
    """The fewest errors that determine the outermost of some quantile levels.

    ceil((K + 1) c) <= K for the confidence c = |2 tau - 1|, so K >= 1 / (1 - c) - 1: 4 for the
    levels of an interval of 80 percent, 9 for 90, 19 for 95, none for the level 0.5.
    """
    confidences = [confidence_of(level) for level in check_levels(levels).tolist()]
    return max(-(-c.denominator // (c.denominator - c.numerator)) - 1 for c in confidences)


def make_plan(
    horizon: int,
    levels: Sequence[float] | Float64[np.ndarray, " Q"],
    context_length: int,
    min_context: int | None,
    origins: int | None,
    span: int | None = None,
) -> CalibrationPlan:
    """Checks the arguments of `conformal_offsets`, and fills in their defaults."""
    for name, value in (("horizon", horizon), ("context_length", context_length)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, but is {value}")
    needed = errors_needed(levels)
    exact = origins is not None
    if origins is None:
        origins = max(DEFAULT_ORIGINS, 2 * needed + 1)
    if origins < max(1, needed):
        raise DataError(
            f"origins is {origins}, but the levels {listed(levels)} need at least "
            f"{max(1, needed)} errors"
        )
    if min_context is None:
        min_context = min(context_length, max(horizon, SHORTEST_CONTEXT))
    if not 1 <= min_context <= context_length:
        raise DataError(
            f"min_context must be from 1 to context_length {context_length}, but is {min_context}"
        )
    # Each origin is another point of the series, whatever the span.
    span = origins * horizon if span is None else max(span, origins)
    levels = tuple(map(float, levels))
    return CalibrationPlan(
        horizon, levels, context_length, min_context, origins, exact, needed, span
    )


# Asked for each level of each series.
@functools.lru_cache(maxsize=1024)
def confidence_of(level: float) -> Fraction:
    """|2 tau - 1|, exact for the decimal that was written: 0.95, not 0.95 + 2e-17.

    Refuses a level within a millionth of 0 or 1, for which there are never enough errors.
    """
    confidence: Fraction = abs(2 * Fraction(level).limit_denominator(10**6) - 1)
    if confidence >= 1:
        raise DataError(
            f"quantile level {level:g} is too close to {round(level)} to be calibrated; levels "
            "from 1e-06 to 0.999999 can be, by as many errors"
        )
    return confidence


def listed(levels: Sequence[float] | Float64[np.ndarray, " Q"]) -> str:
    """Levels as an error shows them."""
    return ", ".join(f"{level:g}" for level in levels)


def wanted_origins(plan: CalibrationPlan, series: Float64[np.ndarray, " T"]) -> int:
    """How many origins to choose so that as many errors count as in a series without gaps."""
    if plan.exact:
        return plan.origins
    inner = series[first_observed(series) : len(series) - trailing_gap(series)]
    observed = int(np.count_nonzero(~np.isnan(inner)))
    return min(4 * plan.origins, plan.origins * len(inner) // max(1, observed))


def choose_origins(
    plan: CalibrationPlan,
    series: Float64[np.ndarray, " T"],
    gap: int,
    count: int,
    needed: int,
    label: str,
    remedy: str = "give less extreme levels, a shorter horizon, or a calibration set",
) -> Int[np.ndarray, " K"]:
    """Spreads at most `count` origins over a series as `conformal_offsets` says.

    The last `gap` points before each are to be hidden. Refuses a series that is too short for as
    many origins as are `needed`; `remedy` is the end of that error.
    """
    before = first_observed(series) + gap  # no context ends here or earlier
    last = len(series) - trailing_gap(series) - plan.horizon
    earliest = before + plan.min_context
    if last - earliest + 1 < needed:
        ends = first_observed(series), trailing_gap(series)
        missing = f", of which the first {ends[0]} and the last {ends[1]} are missing"
        least = len(series) + needed - (last - earliest + 1)
        origins = "1 origin" if needed == 1 else f"{needed} origins"
        raise TooShortError(
            f"{label} has {len(series)} points{missing if any(ends) else ''}, too few to calibrate "
            f"the levels {listed(plan.levels)}: it needs at least {least}, for contexts of "
            f"{plan.min_context} or more, a horizon of {plan.horizon} and {origins}; {remedy}"
        )
    # Long contexts, unless they leave the origins to a small part of the series.
    first = min(before + plan.context_length, (before + last) // 2, last - count + 1)
    # Origins more than a horizon apart share no target: a wider spread only makes them older.
    first = max(
        first, earliest, last - (count - 1) * plan.horizon, last - max(plan.span, count) + 1
    )
    count = min(count, last - first + 1)
    steps = np.arange(count - 1, -1, -1, dtype=np.int64)
    return last - steps * (last - first) // max(1, count - 1)


def is_too_short(
    series: Float64[np.ndarray, " T"],
    horizon: int,
    levels: Sequence[float],
    context_length: int,
) -> bool:
    """Whether a series has too few points for the errors of earlier forecasts.

    The arguments are as for `conformal.conformal_offsets`, which refuses such a series.
    """
    plan = make_plan(horizon, levels, context_length, None, None)
    if not plan.needed:
        return False
    try:
        gap = trailing_gap(series)
        choose_origins(plan, series, gap, wanted_origins(plan, series), plan.needed, "the context")
    except TooShortError:
        return True
    return False
