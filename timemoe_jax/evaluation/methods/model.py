"""A forecaster as a method: its points, and the quantiles of its heads or of its earlier errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.forecasting.intervals.plan import is_too_short
from timemoe_jax.forecasting.scoring import baselines

Contexts = Sequence[Float64[np.ndarray, " _"]]

# The same for every context, so that failures can be counted by their reason.
TOO_SHORT = (
    "the context is too short to calibrate quantiles, which are the changes over a season around "
    "the model's point"
)


class ModelMethod:
    """Forecasts every context by a model, all of them in one call.

    The point is the median where the quantiles are of the model's heads. Otherwise quantiles come
    from the errors of the model's forecasts at earlier points of the context, around its point. A
    context that is too short for such errors has the changes over a season around the model's
    point, and is reported. One that the model cannot forecast is NaN, and is reported too.

    Args:
      forecaster: the model.
      name: as tables name it.
      options: of `Forecaster.forecast`, such as `context_length`, `normalize` and `batch_size`.
    """

    isolated = False

    def __init__(self, forecaster: Forecaster, name: str = "model", **options: Any):
        self.forecaster = forecaster
        self.name = name
        self.options = options

    def predict(
        self,
        contexts: Contexts,
        horizon: int,
        season: int,
        levels: Sequence[float],
        freq: str | None = None,
    ) -> MethodForecast:
        """Forecasts each context; see `methods.base.Method`."""
        shape = (len(contexts), horizon)
        point, quantiles = np.full(shape, np.nan), np.full((*shape, len(levels)), np.nan)
        failures: dict[int, str] = {}
        short = self._too_short(contexts, horizon, levels)
        # Windows with the same past are forecast once.
        first: dict[tuple[int, ...], int] = {}
        same = [first.setdefault(_place(context), i) for i, context in enumerate(contexts)]
        whole = [i for i in first.values() if i not in short]
        self._forecast(contexts, whole, horizon, levels, point, quantiles, failures)
        self._forecast_short(contexts, short, horizon, season, levels, point, quantiles, failures)
        for i, other in enumerate(same):
            point[i], quantiles[i] = point[other], quantiles[other]
            if other in failures:
                failures[i] = failures[other]
        return MethodForecast(point, quantiles, dict(sorted(failures.items())))

    def _too_short(self, contexts: Contexts, horizon: int, levels: Sequence[float]) -> list[int]:
        """Which contexts have too few points for quantiles."""
        if self._has_heads():
            return []
        length = self.forecaster.usable_context(self.options.get("context_length"), horizon)
        return [i for i, each in enumerate(contexts) if is_too_short(each, horizon, levels, length)]

    def _has_heads(self) -> bool:
        return bool(self.forecaster.config.quantile_levels)

    def _forecast(
        self,
        contexts: Contexts,
        chosen: list[int],
        horizon: int,
        levels: Sequence[float],
        point: np.ndarray,
        quantiles: np.ndarray,
        failures: dict[int, str],
    ) -> None:
        """Forecasts some contexts; those with an error are found by halves."""
        if not chosen:
            return
        try:
            out = self.forecaster.forecast(
                [contexts[i] for i in chosen], horizon, quantile_levels=levels, **self.options
            )
        except DataError as error:
            if len(chosen) == 1:
                failures[chosen[0]] = str(error)
                return
            half = len(chosen) // 2
            for part in (chosen[:half], chosen[half:]):
                self._forecast(contexts, part, horizon, levels, point, quantiles, failures)
            return
        assert out.quantiles is not None
        quantiles[chosen] = out.quantiles
        middle = np.flatnonzero(np.isclose(levels, 0.5))
        median = self._has_heads() and middle.size
        point[chosen] = out.quantiles[..., middle[0]] if median else out.point

    def _forecast_short(
        self,
        contexts: Contexts,
        short: list[int],
        horizon: int,
        season: int,
        levels: Sequence[float],
        point: np.ndarray,
        quantiles: np.ndarray,
        failures: dict[int, str],
    ) -> None:
        """Forecasts contexts without earlier errors, with their changes over a season around."""
        chosen = [i for i in short if not np.isnan(contexts[i]).all()]
        failures |= dict.fromkeys(short, TOO_SHORT)
        if not chosen:
            return
        out = self.forecaster.forecast([contexts[i] for i in chosen], horizon, **self.options)
        for i, forecast in zip(chosen, out.point, strict=True):
            point[i] = forecast
            quantiles[i] = forecast[:, None] + _changes(contexts[i], horizon, season, levels)


def _changes(
    context: Float64[np.ndarray, " T"], horizon: int, season: int, levels: Sequence[float]
) -> Float64[np.ndarray, "H Q"]:
    """Quantiles of the changes over a season, or else from point to point; 0 without any."""
    for steps in (season, 1):
        if len(context) > steps:
            row = context[None]
            around = baselines.seasonal_naive_quantiles(row, horizon, steps, levels)
            spread = around[0] - baselines.seasonal_naive(row, horizon, steps)[0][:, None]
            if np.isfinite(spread).all():
                return spread
    return np.zeros((horizon, len(levels)))


def _place(context: Float64[np.ndarray, " T"]) -> tuple[int, ...]:
    """Where in memory a context lies, and how long it is: the same for windows of one past."""
    return context.__array_interface__["data"][0], len(context), *context.strides
