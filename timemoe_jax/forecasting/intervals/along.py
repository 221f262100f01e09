"""Earlier forecasts of a series from one pass of a causal model, which predicts at every position.

A forecast from each of 59 origins would cost 59 forecasts. A model that forecasts the horizon with
one head says in one pass over a stretch what it would forecast after each of its points, so that a
few passes give all errors. What differs from a forecast of its own: the stretch is standardized
once, by its points up to its first origin, and its later origins read between half and all of the
context. On hourly, daily, weekly and generated series that changes the widths by some 2%.

A model that reads several heads for one horizon says only the first of them in such a pass: what
the next one is read after is the first one's forecast, another for each origin, where a pass holds
the truth. Each origin would need its forecast behind its own beginning of the stretch, as a branch
that no other reads, at positions that several branches share. The attention here knows neither,
since the place of a point is its position; so such a model forecasts from each origin
(`rolling.rolling_forecasts`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from timemoe_jax.forecasting.contexts import Context
from timemoe_jax.forecasting.intervals.rolling import first_observed

# Origins span at most so many contexts: with half a context for each pass these are three passes.
SPAN = 1.5

# For a context the last observed points before its origins, and how many missing ones follow each.
Wanted = list[tuple[int, int]]


class Along(NamedTuple):
    """A causal model that says at once what it would forecast after many points of a context."""

    # What follows these points and their gaps: [K, H], or [K, H, Q] of quantiles, for each context;
    # NaN where the head does not reach so far.
    read: Callable[[list[Context], list[Wanted]], list[np.ndarray]]
    # Whether it would forecast after so many missing points as it says in one pass.
    possible: Callable[[int], bool]


class Pass(NamedTuple):
    """A stretch of a series, and which of its origins are read along it."""

    begin: int
    end: int  # of the points that are read; the last origin less the gap
    chosen: list[int]  # indices of origins


def passes(origins: Int[np.ndarray, " K"], context_length: int, gap: int, first: int) -> list[Pass]:
    """The stretches that all origins are read along, the latest first.

    None is longer than a context, and before each origin it holds at least a half of one, a third
    where that saves a pass, or all there is from the series' `first` observed point on.
    """
    found, left = [], len(origins)
    while left:
        end = int(origins[left - 1]) - gap
        begin = max(0, end - context_length)
        held = origins[:left] - gap - begin
        most = 0 if begin <= first else context_length // 2
        if held[0] * 3 >= context_length:
            most = 0
        start = min(int(np.searchsorted(held, max(most, 1))), left - 1)
        found.append(Pass(begin, end, list(range(start, left))))
        left = start
    return found


def forecasts_along(
    series: Sequence[Float64[np.ndarray, " _"]],
    origins: Sequence[Int[np.ndarray, " _"]],
    shape: tuple[int, ...],
    along: Along,
    context_length: int,
    gaps: Sequence[int],
    labels: Sequence[str],
) -> list[Float64[np.ndarray, "_ H ..."]]:
    """What `rolling.rolling_forecasts` returns for the same arguments, in few passes.

    A row is NaN where nothing of the context is observed, or where the values before the origin are
    missing for so long that the head does not reach over them.
    """
    forecasts = [np.full((len(each), *shape), np.nan) for each in origins]
    contexts: list[Context] = []
    wanted: list[Wanted] = []
    targets: list[tuple[int, list[int]]] = []
    for i, each in enumerate(series):
        for part in passes(origins[i], context_length, gaps[i], first_observed(each)):
            found = _context(each, part, origins[i], gaps[i], labels[i])
            if found is not None:
                context, points, chosen = found
                contexts.append(context)
                wanted.append(points)
                targets.append((i, chosen))
    if contexts:
        for (i, chosen), values in zip(targets, along.read(contexts, wanted), strict=True):
            forecasts[i][chosen] = values
    return forecasts


def _context(
    series: Float64[np.ndarray, " T"],
    part: Pass,
    origins: Int[np.ndarray, " K"],
    gap: int,
    label: str,
) -> tuple[Context, Wanted, list[int]] | None:
    """What a pass reads, the points to read it at, and the origins that these stand for."""
    seen = series[part.begin : part.end]
    observed = np.flatnonzero(~np.isnan(seen))
    # The last observed point before each origin, or -1.
    last = np.searchsorted(observed, origins[part.chosen] - gap - part.begin) - 1
    chosen = [k for k, at in zip(part.chosen, last, strict=True) if at >= 0]
    if not chosen:
        return None
    points = observed[last[last >= 0]]
    gaps = origins[chosen] - 1 - part.begin - points
    skipped = int(observed[0])  # a context begins with an observed point
    context = Context.of(seen, len(seen), label)
    context = context._replace(gap=gap, scaled_by=int(points[0]) + 1 - skipped)
    return context, list(zip((points - skipped).tolist(), gaps.tolist(), strict=True)), chosen
