"""Conformal intervals: quantiles calibrated on the errors of forecasts from rolling origins.

An earlier forecast has a score at every step of the horizon: how far it was off. The interval of
confidence c is as wide as the ceil((K + 1) c)-th smallest of K scores of that step says (Vovk,
Gammerman and Shafer, Algorithmic Learning in a Random World, 2005). Were the scores and the coming
one exchangeable, it would hold the truth with a probability between c and c + 1 / (K + 1). Errors
of a time series are not exactly that: they overlap, and series change. So coverage is measured
(`benchmarks/coverage.py`), not guaranteed.

A model that gives points is scored by its absolute error (Lei, G'Sell, Rinaldo, Tibshirani and
Wasserman, Distribution-free predictive inference for regression, 2018). The quantile of level tau
is then point + sign(tau - 1/2) Q, where Q is the half-width of confidence |2 tau - 1|: the level
0.5 is the point itself, and levels cannot cross. That each single quantile has its level requires
errors as often above as below; the interval between tau and 1 - tau does not.

A model that gives quantiles is scored by how far the truth lay outside the interval between tau and
1 - tau, negative inside; both ends move outwards by that much (Romano, Patterson and Candes,
Conformalized quantile regression, 2019).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.intervals.along import SPAN, Along, forecasts_along
from timemoe_jax.forecasting.intervals.plan import (
    CalibrationPlan,
    choose_origins,
    confidence_of,
    listed,
    make_plan,
    wanted_origins,
)
from timemoe_jax.forecasting.intervals.quantiles import at_levels
from timemoe_jax.forecasting.intervals.rolling import (
    Predict,
    Together,
    label_series,
    rolling_forecasts,
    trailing_gap,
)

# About how many origins a calibration set has in all; each of its series has at least one.
CALIBRATION_ORIGINS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """The result of `conformal_offsets` for N series, a horizon of H and Q levels."""

    levels: tuple[float, ...]  # of the quantiles, rising
    offsets: Float64[np.ndarray, "N H Q"]  # to add to the forecast, in the units of each series
    # For each series the errors [K, H] of points or medians, truth minus forecast, in its units; a
    # row per origin, the oldest first; NaN where nothing was observed or forecast. With a
    # calibration set they are those of all its series, on the scale of this one.
    residuals: tuple[Float64[np.ndarray, "_ H"], ...]
    # For each series the indices of the first points forecast [K]; empty with a calibration set.
    origins: tuple[Int[np.ndarray, " _"], ...]
    counts: Int[np.ndarray, "N H"]  # how many errors each half-width was taken from

    def quantiles(self, point: Float64[np.ndarray, "N H"]) -> Float64[np.ndarray, "N H Q"]:
        """The quantiles around point forecasts, in the units of the series."""
        return point[..., None] + self.offsets


def conformal_offsets(
    series: Sequence[Float64[np.ndarray, " _"]],
    horizon: int,
    levels: Sequence[float] | Float64[np.ndarray, " Q"],
    predict: Predict,
    context_length: int,
    calibration: Sequence[Float64[np.ndarray, " _"]] | None = None,
    names: Sequence[str] | None = None,
    origins: int | None = None,
    min_context: int | None = None,
    of_quantiles: bool = False,
    along: Along | None = None,
    together: Together | None = None,
) -> Calibrated:
    """Calibrates quantiles on the errors that the model made at earlier origins of the series.

    Each series is calibrated on its own errors alone, so that the others in the call change
    nothing. Origins are spread evenly, at most one horizon apart, up to the last whose horizon is
    still observed. They begin where the context is as long as the forecast's own, or in the middle
    of the series where that would leave less than its second half. There are at most `origins` of
    them: by default 59, or twice what the levels need, and more where values are missing. Before
    the first lie `min_context` points: by default a horizon, but at least 16. An error at a missing
    step does not count. Where a series ends in missing values, as many are hidden before each
    origin. If the model is equivariant to shifts and scales of a series, so are the offsets.

    With `calibration` the errors are those of its series, each divided by `context_scale` of the
    context that it was made from, and multiplied by that of the series at hand, which may then be
    short. Errors from a context without scale do not count.

    With `along` the forecasts of all origins come from few passes of a causal model instead of a
    call of `predict` for each, and the origins span at most `SPAN` contexts: see
    `forecasting.intervals.along`.

    With `together` the errors are those of joint forecasts: at an origin of a series the model
    reads the others of its item up to there; with `calibration` these are among its series.

    With `of_quantiles` the model gives the quantiles [N, H, Q] of the levels instead of points; the
    levels are then 0.5 and pairs of tau and 1 - tau.

    Raises:
      DataError: an argument is out of range, a series is too short, or too few of its errors count.
    """
    span = None if along is None else int(SPAN * context_length)
    plan = make_plan(horizon, levels, context_length, min_context, origins, span)
    if of_quantiles:
        _check_symmetry(plan.levels)
    labels = label_series(names, len(series))
    if calibration is not None:
        return _from_others(plan, series, calibration, predict, along, together)
    gaps = [trailing_gap(each) for each in series]
    chosen = [
        choose_origins(plan, each, gap, wanted_origins(plan, each), plan.needed, label)
        if plan.needed
        else np.zeros(0, np.int64)
        for each, gap, label in zip(series, gaps, labels, strict=True)
    ]
    shape = (horizon, len(plan.levels)) if of_quantiles else (horizon,)
    how = (shape, predict, along, context_length)
    forecasts = _earlier(series, chosen, *how, gaps, labels, together)
    offsets, residuals = [], []
    for each, origin, forecast, label in zip(series, chosen, forecasts, labels, strict=True):
        truth = _outcomes(each, origin, horizon)
        if of_quantiles:
            residuals.append(truth - forecast[..., len(plan.levels) // 2])
            scores = _outside_intervals(truth, forecast)
        else:
            residuals.append(truth - forecast)
            scores = np.abs(residuals[-1])[..., None]
        offsets.append(_offsets(scores, plan, label))
    return _calibrated(plan, offsets, residuals, chosen)


def calibrated_quantiles(
    quantiles: Float64[np.ndarray, "N H P"],
    model_levels: Sequence[float],
    levels: Sequence[float],
    series: Sequence[Float64[np.ndarray, " _"]],
    predict: Predict,
    context_length: int,
    names: Sequence[str],
    along: Along | None = None,
    together: Together | None = None,
) -> Float64[np.ndarray, "N H Q"]:
    """As `at_levels`, with each interval widened or narrowed by how it did at earlier origins.

    `predict` gives the quantiles [N, H, P] of the model's levels. Refuses a level that lies outside
    of these, or of which 1 - tau does.
    """
    symmetric = list(levels)
    for level in (0.5, *levels):
        if not any(abs(1 - level - other) < 1e-9 for other in symmetric):
            symmetric.append(1 - level)
    symmetric.sort()

    def predict_levels(contexts: list, horizon: int) -> np.ndarray:
        return at_levels(predict(contexts, horizon), model_levels, symmetric)

    def levels_along(contexts: list, wanted: list) -> list[np.ndarray]:
        assert along is not None
        return [at_levels(q, model_levels, symmetric) for q in along.read(contexts, wanted)]

    calibrated = conformal_offsets(
        series,
        quantiles.shape[1],
        symmetric,
        predict_levels,
        context_length,
        names=names,
        of_quantiles=True,
        along=None if along is None else along._replace(read=levels_along),
        together=together,
    )
    adjusted = adjust_quantiles(at_levels(quantiles, model_levels, symmetric), calibrated.offsets)
    return adjusted[..., [symmetric.index(level) for level in levels]]


def adjust_quantiles(
    quantiles: Float64[np.ndarray, "N H Q"], offsets: Float64[np.ndarray, "N H Q"]
) -> Float64[np.ndarray, "N H Q"]:
    """Adds offsets to quantiles that are symmetric about a median, and keeps them from crossing.

    Each level has an offset of its own, so that a narrowed interval may end up within a smaller
    one. Going outwards from the median, which stays as it is, a quantile is at least as far out as
    the one before it: intervals only become wider by that.
    """
    moved = quantiles + offsets
    middle = moved.shape[-1] // 2
    above = np.maximum.accumulate(moved[..., middle:], axis=-1)
    below = np.minimum.accumulate(moved[..., middle::-1], axis=-1)[..., ::-1]
    return np.concatenate([below, above[..., 1:]], axis=-1)


def context_scale(context: Float64[np.ndarray, " T"]) -> float:
    """The spread of a context: the median absolute deviation from the median.

    Where that is 0, since most values are equal, it is the mean of those deviations; 0 for a
    constant context, and where nothing is observed. Single large values hardly move it, unlike a
    standard deviation.
    """
    observed = context[~np.isnan(context)]
    if not observed.size:
        return 0.0
    deviations = np.abs(observed - np.median(observed))
    return float(np.median(deviations)) or float(deviations.mean())


def _earlier(
    series: Sequence[Float64[np.ndarray, " _"]],
    origins: Sequence[Int[np.ndarray, " _"]],
    shape: tuple[int, ...],
    predict: Predict,
    along: Along | None,
    context_length: int,
    gaps: Sequence[int],
    labels: Sequence[str],
    together: Together | None = None,
) -> list[np.ndarray]:
    """The forecasts of all origins, [K, *shape] for each series."""
    if along is None:
        rest = (context_length, gaps, labels, together)
        return rolling_forecasts(series, origins, shape, predict, *rest)
    found: dict[int, np.ndarray] = {}
    in_one = [along.possible(gap) for gap in gaps]
    for kind in (True, False):
        some = [i for i, each in enumerate(in_one) if each is kind]
        own, own_origins = [series[i] for i in some], [origins[i] for i in some]
        own_gaps, own_labels = [gaps[i] for i in some], [labels[i] for i in some]
        own_rest = (context_length, own_gaps, own_labels)
        if kind:
            forecasts = forecasts_along(own, own_origins, shape, along, *own_rest)
        else:
            forecasts = rolling_forecasts(own, own_origins, shape, predict, *own_rest)
        found.update(zip(some, forecasts, strict=True))
    return [found[i] for i in range(len(series))]


def _outcomes(
    series: Float64[np.ndarray, " T"], origins: Int[np.ndarray, " K"], horizon: int
) -> Float64[np.ndarray, "K H"]:
    """The points that followed each origin."""
    return series[origins[:, None] + np.arange(horizon)]


def _outside_intervals(
    truth: Float64[np.ndarray, "K H"], quantiles: Float64[np.ndarray, "K H Q"]
) -> Float64[np.ndarray, "K H Q"]:
    """How far the truth lay outside the interval that each level is an end of."""
    below = quantiles[..., ::-1] - truth[..., None]
    above = truth[..., None] - quantiles
    upper = np.maximum(below, above)[..., quantiles.shape[-1] // 2 :]
    return np.concatenate([upper[..., :0:-1], upper], axis=-1)


def _offsets(
    scores: Float64[np.ndarray, "K H S"], plan: CalibrationPlan, label: str
) -> Float64[np.ndarray, "H Q"]:
    """sign(tau - 1/2) times the ceil((K + 1) |2 tau - 1|)-th smallest score of a step.

    The scores have a last axis of 1, shared by all levels, or of their number Q; NaN is missing.
    """
    counts = (~np.isnan(scores[..., 0])).sum(axis=0)
    if counts.min(initial=plan.needed) < plan.needed:
        step = int(counts.argmin())
        raise DataError(
            f"{label} has {counts[step]} errors that count at step {step + 1} of the horizon, of "
            f"{len(scores)} forecasts; the levels {listed(plan.levels)} need {plan.needed} "
            "(an error at a missing value does not count)"
        )
    ordered = np.sort(scores, axis=0)  # missing ones last
    offsets = np.zeros((plan.horizon, len(plan.levels)))
    for q, level in enumerate(plan.levels):
        c = confidence_of(level)
        if c:
            rank = -(-(counts + 1) * c.numerator // c.denominator)
            of_level = ordered[..., q if ordered.shape[-1] > 1 else 0]
            half_width = of_level[rank - 1, np.arange(plan.horizon)]
            offsets[:, q] = half_width if level > 0.5 else -half_width
    return offsets


def _check_symmetry(levels: tuple[float, ...]) -> None:
    confidences = [confidence_of(level) for level in levels]
    symmetric = len(levels) % 2 and confidences == confidences[::-1]
    if len(levels) < 3 or not symmetric or confidences[len(levels) // 2]:
        raise DataError(
            f"levels must be 0.5 and pairs of tau and 1 - tau, as 0.1, 0.5, 0.9 are, but are "
            f"{listed(levels)}"
        )


def _calibrated(
    plan: CalibrationPlan,
    offsets: list[Float64[np.ndarray, "H Q"]],
    residuals: list[Float64[np.ndarray, "_ H"]],
    origins: list[Int[np.ndarray, " _"]],
) -> Calibrated:
    """Joins what was found for each series; also for none."""
    counts = [(~np.isnan(each)).sum(axis=0) for each in residuals]
    shape = (len(offsets), plan.horizon)
    return Calibrated(
        levels=plan.levels,
        offsets=np.array(offsets).reshape(*shape, len(plan.levels)),
        residuals=tuple(residuals),
        origins=tuple(origins),
        counts=np.array(counts, np.int64).reshape(shape),
    )


def _from_others(
    plan: CalibrationPlan,
    series: Sequence[Float64[np.ndarray, " _"]],
    calibration: Sequence[Float64[np.ndarray, " _"]],
    predict: Predict,
    along: Along | None,
    together: Together | None,
) -> Calibrated:
    """Scores of a calibration set, on the scale of each series."""
    if not len(calibration):
        raise DataError("calibration holds no series; give at least one, or None")
    gaps = [trailing_gap(each) for each in series]
    errors = {
        gap: _scaled_errors(plan, calibration, gap, predict, along, together)
        for gap in sorted(set(gaps))
    }
    label = "the calibration set as a whole"
    unit = {gap: _offsets(np.abs(each)[..., None], plan, label) for gap, each in errors.items()}
    scales = [context_scale(each[-plan.context_length :]) for each in series]
    return _calibrated(
        plan,
        [unit[gap] * scale for gap, scale in zip(gaps, scales, strict=True)],
        [errors[gap] * scale for gap, scale in zip(gaps, scales, strict=True)],
        [np.zeros(0, np.int64)] * len(series),
    )


def _scaled_errors(
    plan: CalibrationPlan,
    calibration: Sequence[Float64[np.ndarray, " _"]],
    gap: int,
    predict: Predict,
    along: Along | None,
    together: Together | None,
) -> Float64[np.ndarray, "K H"]:
    """Errors over the scale of the context that each was made from, of all series together."""
    labels = [f"calibration series {i}" for i in range(len(calibration))]
    count = min(plan.origins, max(1, -(-CALIBRATION_ORIGINS // len(calibration))))
    remedy = "leave it out, or give a shorter horizon"
    chosen = [
        choose_origins(plan, each, gap, count, 1, label, remedy)
        for each, label in zip(calibration, labels, strict=True)
    ]
    gaps, shape = [gap] * len(calibration), (plan.horizon,)
    rest = (plan.context_length, gaps, labels, together)
    rolled = _earlier(calibration, chosen, shape, predict, along, *rest)
    scaled = []
    for each, origins, forecasts in zip(calibration, chosen, rolled, strict=True):
        errors = _outcomes(each, origins, plan.horizon) - forecasts
        contexts = [each[max(0, t - plan.context_length) : t - gap] for t in origins.tolist()]
        scales = np.array([context_scale(context) for context in contexts])
        scaled.append(errors / np.where(scales > 0, scales, np.nan)[:, None])
    return np.concatenate(scaled)
