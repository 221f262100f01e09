"""What covariates contribute to one series: a ridge regression beside a slow baseline.

The series is modeled as a level and a season, which the model forecasts, plus a linear combination
of its covariates. The coefficients are estimated on the residuals of both after a linear filter: it
takes off a moving average, then what a trend and a season, filtered likewise, explain of the rest.
By the theorem of Frisch and Waugh (1933) and Lovell (1963), such a regression estimates the same
coefficients as one with the level and season among its regressors, so that neither is attributed to
a covariate.

The strength of the ridge minimizes generalized cross-validation (Golub, Heath and Wahba, 1979,
"Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter"), where the
parameters of the filter count, too. No contribution at all is one of the choices.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from timemoe_jax.data.series import location_and_scale
from timemoe_jax.errors import DataError

# The level is an average over whole seasons, and over at least so many points: a shorter one would
# take what a covariate does for a few days in a row.
MIN_LEVEL_POINTS = 21
# Seasons that are needed to estimate one.
MIN_SEASONS = 3
# Points that a regression needs for each coefficient, and beside that.
POINTS_PER_COEFFICIENT = 3
MIN_POINTS = 12
# Harmonics of a season that are taken off: all of them where it has at most twice as many points,
# such as the weeks of a year.
MAX_HARMONICS = 26
# A residual below this part of the deviation of its column is rounding.
_NOTHING = 1e-9
# Why a column is left out.
CONSTANT = "it is constant"
_STRENGTHS = 10.0 ** np.arange(-8, 6.25, 0.25)


@dataclasses.dataclass(frozen=True, eq=False)
class Adjustment:
    """What covariates contribute to a series, measured from their mean effect in its past.

    `contribution_context` is taken off the series before it is forecast, in its units, and is 0
    where a covariate is not known; `contribution_future` is added to its forecast and quantiles.
    """

    contribution_context: Float64[np.ndarray, " T"]
    contribution_future: Float64[np.ndarray, " H"]
    coefficients: Float64[np.ndarray, " C"]  # series units per column unit; 0 where ignored
    strength: float  # of the ridge, for columns of unit variance; infinite if none contributes
    ignored: dict[str, str]  # for each column that was left out, why
    used: int  # points that the regression saw
    unknown: int  # points, past and future, that miss a covariate
    season: int  # points in the season that was taken off; 1 for none


def fit_covariates(
    values: Float64[np.ndarray, " T"],
    past: Float64[np.ndarray, "T C"],
    future: Float64[np.ndarray, "H C"],
    *,
    season: int = 1,
    names: Sequence[str] | None = None,
    where: str = "the series",
) -> Adjustment:
    """Estimates what covariates contribute to one series, from that series alone.

    A point whose value or covariate is NaN is left out of the regression. Of a covariate that is
    not known at a time, the mean is taken. A season of `season` points is taken off where the
    series has three of them.

    Raises:
      DataError: an array is of another shape or infinite, or there are too few points.
    """
    values, past, future = (np.asarray(array, np.float64) for array in (values, past, future))
    labels = list(names) if names is not None else [f"column {i}" for i in range(past.shape[-1])]
    _check_tables(values, past, future, labels, where)
    known = ~np.isnan(past).any(axis=1)
    used = known & ~np.isnan(values)
    _check_points(past, int(used.sum()), labels, where)
    unknown = int((~known).sum()) + int(np.isnan(future).any(axis=1).sum())
    coefficients = np.zeros(past.shape[1])
    means, spreads = np.zeros((2, past.shape[1]))
    if used.any():
        means, spreads = location_and_scale(past[used].T)
    ignored = {label: CONSTANT for label, s in zip(labels, spreads, strict=True) if not s > 0}
    columns = np.flatnonzero(spreads > 0)
    season = _usable_season(season, int(used.sum()), len(columns))
    strength = np.inf
    if columns.size:
        standard = np.zeros((len(values), len(columns)))
        standard[used] = (past[used][:, columns] - means[columns]) / spreads[columns]
        smoother = _smoother(used.tobytes(), season)
        _check_freedom(int(used.sum()) - smoother.parameters, len(columns), where)
        left = smoother.rest(standard)
        kept = np.sqrt(np.mean(np.square(left), axis=0)) > _NOTHING
        ignored |= {labels[i]: "the level or season explains it" for i in columns[~kept]}
        columns = columns[kept]
        level, scale = location_and_scale(values[None, used])
        if columns.size and scale[0] > 0:
            target = np.zeros((len(values), 1))
            target[used, 0] = (values[used] - level[0]) / scale[0]
            rest = smoother.rest(target)[:, 0]
            slopes, strength = _ridge(left[:, kept], rest, smoother.parameters)
            coefficients[columns] = slopes * scale[0] / spreads[columns]
    return Adjustment(
        _contribution(past, means, coefficients, columns),
        _contribution(future, means, coefficients, columns),
        coefficients,
        strength,
        ignored,
        int(used.sum()),
        unknown,
        season,
    )


def _check_tables(
    values: Float64[np.ndarray, " T"],
    past: Float64[np.ndarray, "T C"],
    future: Float64[np.ndarray, "H C"],
    labels: list[str],
    where: str,
) -> None:
    shape = (len(values), len(labels))
    if past.shape != shape or future.ndim != 2 or future.shape[1] != shape[1]:
        raise DataError(
            f"{where}: past covariates must be {list(shape)} and future ones [H, {shape[1]}], but "
            f"are {list(past.shape)} and {list(future.shape)}"
        )
    if np.isinf(values).any():
        raise DataError(f"{where} is infinite at point {int(np.isinf(values).argmax())}")
    for name, table in (("past", past), ("future", future)):
        infinite = np.argwhere(np.isinf(table))
        if infinite.size:
            row, column = infinite[0]
            raise DataError(
                f"{where}: covariate {labels[column]!r} is infinite at {name} point {row}"
            )


def _check_points(
    past: Float64[np.ndarray, "T C"], used: int, labels: list[str], where: str
) -> None:
    """Refuses a column without a value, and too few points for the columns that vary."""
    filled = [column[~np.isnan(column)] for column in past.T]
    for label, column in zip(labels, filled, strict=True):
        if not column.size:
            raise DataError(
                f"{where}: covariate {label!r} has no value in the history; one whose future is "
                "not known needs more than a horizon of it"
            )
    columns = sum(bool(column.min() < column.max()) for column in filled)
    needed = MIN_POINTS + POINTS_PER_COEFFICIENT * columns
    if columns and used < needed:
        raise DataError(
            f"{where} is too short for {columns} covariate columns: it has {used} points with a "
            f"value and all covariates, and needs at least {needed}; give a longer history, or "
            "fewer covariates or categories"
        )


def _check_freedom(points: float, columns: int, where: str) -> None:
    """Refuses points so far apart that the moving average explains nearly all of them."""
    needed = MIN_POINTS / 2 + 2 * columns
    if points < needed:
        raise DataError(
            f"{where} has its values too far apart for {columns} covariate columns: beside the "
            f"moving level they are worth {points:.1f} points, and {needed:.0f} are needed; give "
            "fewer covariates or a coarser freq="
        )


def _usable_season(season: int, used: int, columns: int) -> int:
    enough = max(MIN_SEASONS * season, 2 * season + POINTS_PER_COEFFICIENT * columns + MIN_POINTS)
    return season if season > 1 and used >= enough else 1


class _Smoother:
    """A level and a season, as a linear filter: the same one for the series and its covariates.

    `used` says which points count, `parameters` how many the filter estimates: its trace.
    """

    def __init__(self, used: Bool[np.ndarray, " T"], season: int):
        self._used = used
        self._width = season * -(-MIN_LEVEL_POINTS // season)
        counts = _window_sums(used[:, None].astype(np.float64), self._width)
        self._counts = np.maximum(counts, 0.5)
        shapes = np.where(used[:, None], _trend_and_season(len(used), season), 0.0)
        # The average is lopsided beside gaps and at the ends, where it leaves some of the season.
        shapes = self._unlevelled(shapes)
        power, axes = np.linalg.eigh(shapes.T @ shapes)
        independent = power > 1e-10 * max(power[-1], 1.0)
        self._basis = shapes @ (axes[:, independent] / np.sqrt(power[independent]))
        self.parameters = float((1 / counts[used]).sum()) + int(independent.sum())

    def rest(self, table: Float64[np.ndarray, "T C"]) -> Float64[np.ndarray, "n C"]:
        """What the filter leaves of columns at the points that count; at others they are 0."""
        left = self._unlevelled(table)
        # The second pass takes off what rounding leaves in the first.
        for _ in range(2):
            left = left - self._basis @ (self._basis.T @ left)
        return left

    def _unlevelled(self, table: Float64[np.ndarray, "T C"]) -> Float64[np.ndarray, "n C"]:
        return (table - _window_sums(table, self._width) / self._counts)[self._used]


@functools.lru_cache(maxsize=4)
def _smoother(used: bytes, season: int) -> _Smoother:
    """The filter, kept for further series that have their values at the same positions."""
    return _Smoother(np.frombuffer(used, bool), season)


def _trend_and_season(length: int, season: int) -> Float64[np.ndarray, "T K"]:
    """A straight line, and the cosines and sines of a season."""
    t = np.arange(length)
    columns = [t / length - 0.5]
    for k in range(1, min(season // 2, MAX_HARMONICS) + 1):
        # The remainder of whole numbers keeps the season exact at the end of a long series.
        angle = 2 * np.pi * (k * t % season) / season
        columns.append(np.cos(angle))
        if 2 * k < season:
            columns.append(np.sin(angle))
    return np.stack(columns, axis=1)


def _window_sums(table: Float64[np.ndarray, "T C"], width: int) -> Float64[np.ndarray, "T C"]:
    """Sums over a window around each row; one of even width counts its two ends by half."""

    def around(reach: int) -> Float64[np.ndarray, "T C"]:
        rows = np.arange(len(table))
        ends = np.minimum(rows + reach + 1, len(table))
        return sums[ends] - sums[np.maximum(rows - reach, 0)]

    sums = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(table, axis=0)])
    reach = width // 2
    return around(reach) if width % 2 else (around(reach) + around(reach - 1)) / 2


def _ridge(
    table: Float64[np.ndarray, "n C"], target: Float64[np.ndarray, " n"], parameters: float
) -> tuple[Float64[np.ndarray, " C"], float]:
    """Ridge regression whose strength minimizes generalized cross-validation."""
    count = len(table)
    scales = np.sqrt(np.mean(np.square(table), axis=0))
    left, singular, right = np.linalg.svd(table / scales, full_matrices=False)
    seen = left.T @ target
    power = np.square(singular)[:, None]
    strengths = np.append(_STRENGTHS, np.inf)
    # The part of each direction that the ridge keeps, for every strength.
    taken = power / (power + count * strengths)
    outside = max(float(target @ target - seen @ seen), 0.0)
    errors = outside + (np.square((1 - taken) * seen[:, None])).sum(axis=0)
    freedom = count - parameters - taken.sum(axis=0)
    # Among equal scores the strongest ridge wins: if there is nothing to explain, none contributes.
    scores = errors / np.square(freedom)
    best = len(scores) - 1 - int(scores[::-1].argmin())
    if not np.isfinite(strengths[best]):
        return np.zeros(table.shape[1]), np.inf
    shrunk = seen * singular / (power[:, 0] + count * strengths[best])
    return (right.T @ shrunk) / scales, float(strengths[best])


def _contribution(
    table: Float64[np.ndarray, "n C"],
    means: Float64[np.ndarray, " C"],
    coefficients: Float64[np.ndarray, " C"],
    columns: Int64[np.ndarray, " _"],
) -> Float64[np.ndarray, " n"]:
    deviations = table[:, columns] - means[columns]
    return np.where(np.isnan(deviations), 0.0, deviations) @ coefficients[columns]
