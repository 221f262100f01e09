"""Statistical methods of statsforecast, one series at a time: `pip install 'statsforecast>=2.1'`.

Each fits a series by itself: ETS and ARIMA by information criteria (Hyndman and Khandakar, 2008),
Theta by its four variants, MSTL by seasonal and trend decomposition (Bandara et al., 2021), CES as
the complex exponential smoothing of Svetunkov et al. (2022). Quantiles are statsforecast's
prediction intervals.
"""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.methods.simple import from_first_observed

# The name here, and that of statsforecast's class.
CLASSES = {
    "ets": "AutoETS",
    "theta": "AutoTheta",
    "arima": "AutoARIMA",
    "mstl": "MSTL",
    "ces": "AutoCES",
}
MOST_POINTS = 2000
LEAST_POINTS = 3


@dataclasses.dataclass(frozen=True)
class StatisticalMethod:
    """A model of statsforecast, fitted to the last `MOST_POINTS` points of each context.

    Missing values are interpolated, since these models take none. A season of which the context
    holds less than two counts as none.
    """

    name: str
    isolated: bool = True

    def prepare(self) -> None:
        """Imports the package, before any time is counted."""
        importlib.import_module("statsforecast.models")

    def predict(
        self,
        contexts: Sequence[Float64[np.ndarray, " _"]],
        horizon: int,
        season: int,
        levels: Sequence[float],
        freq: str | None = None,
    ) -> MethodForecast:
        """Forecasts each context; what the package raises is raised."""
        each = [self._one(context, horizon, season, levels) for context in contexts]
        return MethodForecast(np.stack([e[0] for e in each]), np.stack([e[1] for e in each]))

    def _one(
        self,
        context: Float64[np.ndarray, " T"],
        horizon: int,
        season: int,
        levels: Sequence[float],
    ) -> tuple[Float64[np.ndarray, " H"], Float64[np.ndarray, "H Q"]]:
        values = from_first_observed(context)[-MOST_POINTS:]
        seen = np.flatnonzero(~np.isnan(values))
        if len(values) < LEAST_POINTS:
            raise ValueError(f"the context has fewer than {LEAST_POINTS} points")
        values = np.interp(np.arange(len(values)), seen, values[seen])
        season = season if len(values) >= 2 * season else 1
        if self.name == "mstl" and season == 1:
            raise ValueError("MSTL needs two seasons, and the context has none")
        models = importlib.import_module("statsforecast.models")
        model = getattr(models, CLASSES[self.name])(season_length=season)
        coverages = sorted({abs(round(200 * level - 100, 6)) for level in levels if level != 0.5})
        out: dict[str, Any] = model.forecast(y=values, h=horizon, level=coverages or None)
        point = np.asarray(out["mean"], np.float64)
        columns = [point if level == 0.5 else _bound(out, level) for level in levels]
        # Bounds of narrower intervals may cross by rounding.
        return point, np.sort(np.stack(columns, axis=1), axis=1)


def _bound(out: dict[str, Any], level: float) -> Float64[np.ndarray, " H"]:
    """The bound of the central interval that a quantile is."""
    coverage = abs(round(200 * level - 100, 6))
    side = "lo" if level < 0.5 else "hi"
    for written in (coverage, int(coverage) if coverage == int(coverage) else coverage):
        if f"{side}-{written}" in out:
            return np.asarray(out[f"{side}-{written}"], np.float64)
    raise KeyError(f"{side}-{coverage:g} is not among {', '.join(out)}")
