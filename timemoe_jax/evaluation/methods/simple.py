"""The built-in methods: those of `forecasting.scoring`, made to answer whatever the context is."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64

from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.forecasting.scoring import baselines, spreads
from timemoe_jax.forecasting.scoring.linear import default_lags, linear

Context = Float64[np.ndarray, " T"]
Answer = tuple[Float64[np.ndarray, " H"], Float64[np.ndarray, "H Q"]]
# Of a context that has at least two points and begins with an observed one.
Rule = Callable[[Context, int, int, Sequence[float]], Answer]


class UndefinedError(Exception):
    """A method has no forecast of a context; the message says why."""


@dataclasses.dataclass(frozen=True)
class SimpleMethod:
    """A method that forecasts each context by a function, and by `last_resort` where it has none.

    `failures` names the contexts for which that was so.
    """

    name: str
    rule: Rule
    isolated: bool = False

    def predict(
        self,
        contexts: Sequence[Context],
        horizon: int,
        season: int,
        levels: Sequence[float],
        freq: str | None = None,
    ) -> MethodForecast:
        """Forecasts each context; see `Method`."""
        point = np.empty((len(contexts), horizon))
        quantiles = np.empty((len(contexts), horizon, len(levels)))
        failures = {}
        for i, context in enumerate(contexts):
            point[i], quantiles[i], failure = self._predict(context, horizon, season, levels)
            if failure:
                failures[i] = failure
        return MethodForecast(point, quantiles, failures)

    def _predict(
        self, context: Context, horizon: int, season: int, levels: Sequence[float]
    ) -> tuple[Float64[np.ndarray, " H"], Float64[np.ndarray, "H Q"], str]:
        resort, spread, failure = last_resort(context, horizon, season, levels)
        begun = from_first_observed(context)
        if len(begun) < 2:
            return resort, spread, failure or "the context has a single observed point"
        try:
            point, quantiles = self.rule(begun, horizon, season, levels)
        except UndefinedError as error:
            return resort, spread, str(error)
        undefined = ~(np.isfinite(point) & np.isfinite(quantiles).all(axis=1))
        if not undefined.any():
            return point, quantiles, ""
        point = np.where(undefined, resort, point)
        quantiles = np.where(undefined[:, None], spread, quantiles)
        return point, quantiles, f"{int(undefined.sum())} of {horizon} steps are not defined"


def from_first_observed(context: Context) -> Context:
    """The context without the missing values that it begins with; empty where all are missing."""
    seen = np.flatnonzero(~np.isnan(context))
    return context[seen[0] :] if seen.size else context[:0]


def last_resort(
    context: Context, horizon: int, season: int, levels: Sequence[float]
) -> tuple[Float64[np.ndarray, " H"], Float64[np.ndarray, "H Q"], str]:
    """What stands in for any method: seasonal naive as far as it is defined; always finite.

    A context shorter than a season, and a phase that was never observed, get the last value; so do
    quantiles without a change to take them from. A context without an observed value gets 0.
    Returns point, quantiles, and what was not defined, if anything.
    """
    values = from_first_observed(context)
    if not len(values):
        zeros = np.zeros((horizon, len(levels)))
        return zeros[:, 0], zeros, "the context has no observed value, and is forecast as 0"
    failure = ""
    used = season if len(values) >= season else 1
    if used < season:
        failure = f"the context is shorter than a season of {season}"
    last = baselines.naive(values[None], horizon)[0]
    point = baselines.seasonal_naive(values[None], horizon, used)[0]
    if np.isnan(point).any():
        failure = "a phase of the season was never observed"
    point = np.where(np.isnan(point), last, point)
    offsets = np.full((horizon, len(levels)), np.nan)
    # Changes over a season, else over one step, else none.
    for step in dict.fromkeys((used, 1)):
        if len(values) > step and np.isnan(offsets).any():
            around = baselines.seasonal_naive_quantiles(values[None], horizon, step, levels)[0]
            center = baselines.seasonal_naive(values[None], horizon, step)[0]
            offsets = np.where(np.isnan(offsets), around - center[:, None], offsets)
    return point, point[:, None] + np.nan_to_num(offsets), failure


def _naive(context: Context, horizon: int, season: int, levels: Sequence[float]) -> Answer:
    batch = context[None]
    point = baselines.naive(batch, horizon)
    return point[0], spreads.naive_quantiles(batch, horizon, levels)[0]


def _seasonal_naive(context: Context, horizon: int, season: int, levels: Sequence[float]) -> Answer:
    if len(context) <= season:
        raise UndefinedError(
            f"the context has {len(context)} points, not over a season of {season}"
        )
    batch = context[None]
    point = baselines.seasonal_naive(batch, horizon, season)
    return point[0], baselines.seasonal_naive_quantiles(batch, horizon, season, levels)[0]


def _drift(context: Context, horizon: int, season: int, levels: Sequence[float]) -> Answer:
    batch = context[None]
    point = baselines.drift(batch, horizon)
    return point[0], spreads.drift_quantiles(batch, horizon, levels)[0]


def _window_average(context: Context, horizon: int, season: int, levels: Sequence[float]) -> Answer:
    batch, window = context[None], min(max(season, baselines.MIN_STRETCH), len(context) - 1)
    point = baselines.window_average(batch, horizon, window)
    return point[0], spreads.window_average_quantiles(batch, horizon, window, levels)[0]


def _parroting(context: Context, horizon: int, season: int, levels: Sequence[float]) -> Answer:
    batch, stretch = context[None], baselines.parroting_stretch(season, len(context))
    assert stretch is not None  # there are two points
    if len(context) == 2 * stretch:
        stretch -= 1  # so that there is an origin before the last one
    if not stretch:
        raise UndefinedError("the context has 2 points, too few for context parroting")
    point = baselines.context_parroting(batch, horizon, stretch)
    return point[0], spreads.context_parroting_quantiles(batch, horizon, stretch, levels)[0]


def _linear(context: Context, horizon: int, season: int, levels: Sequence[float]) -> Answer:
    lags = default_lags(season, len(context), horizon)
    if lags < 2:
        raise UndefinedError(f"the context is too short to fit steps up to {horizon} ahead")
    fitted = linear(context, horizon, lags, levels)
    return fitted.point, fitted.quantiles


SIMPLE = tuple(
    SimpleMethod(name, rule)
    for name, rule in (
        ("naive", _naive),
        ("seasonal_naive", _seasonal_naive),
        ("drift", _drift),
        ("window_average", _window_average),
        ("parroting", _parroting),
        ("linear", _linear),
    )
)
