"""A linear forecast: ridge regression on lags, fitted to the context alone, in closed form.

It is what is left of a neural forecaster when everything but one linear map is taken away (Zeng et
al., Are Transformers Effective for Time Series Forecasting?, arXiv 2205.13504), and hard to beat
where a context holds many periods.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.series import check_levels, positive_int
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.scoring.spreads import Levels, quantiles_by_step

MOST_LAGS, LEAST_LAGS = 512, 32
MOST_ROWS = 2000  # windows that are fitted, the last ones of a context
LEAST_ROWS = 10  # fewer say nothing of a spread
ERRORS_KEPT = 200
# Penalties that are tried, relative to the mean variance along the principal directions.
PENALTIES = 10.0 ** np.arange(-6, 4)


class LinearForecast(NamedTuple):
    """The result of `linear`, in the units of the context."""

    point: Float64[np.ndarray, " H"]
    quantiles: Float64[np.ndarray, "H Q"]
    penalty: float  # the one that was chosen


def default_lags(season: int, length: int, horizon: int) -> int:
    """How many lags a context has room for: two seasons, from 32 to 512, and as many rows.

    Below 2 there is no room.
    """
    wanted = min(max(2 * season, LEAST_LAGS), MOST_LAGS)
    return min(wanted, (length - horizon + 1 - LEAST_ROWS), (length - horizon + 1) // 2 + 1)


def linear(
    context: Float64[np.ndarray, " T"], horizon: int, lags: int, levels: Levels
) -> LinearForecast:
    """Forecasts every step by its own ridge regression on the last `lags` values.

    Lags and targets are differences to the last value before the forecast, so that a shift of
    level changes nothing. Rows are the windows of `lags + horizon` points in the context, at most
    the last 2,000. The penalty is the one of `PENALTIES` with the least generalized
    cross-validation error over all steps (Golub, Heath and Wahba, Technometrics 21, 1979).
    Quantiles are those of the leave-one-out errors of the rows, step by step, which ridge
    regression has in closed form. Missing values (NaN) are interpolated, and those at the ends
    take the nearest value.

    Raises:
      DataError: there are fewer than 2 lags, nothing is observed, or there are fewer than 10 rows.
    """
    tau, horizon = check_levels(levels), positive_int("horizon", horizon)
    rows = len(context) - lags - horizon + 1
    if lags < 2 or rows < LEAST_ROWS:
        raise DataError(
            f"lags is {lags}, but must be at least 2 and leave {LEAST_ROWS} rows: a context of "
            f"{len(context)} points and a horizon of {horizon} leave {max(rows, 0)}"
        )
    seen = np.flatnonzero(~np.isnan(context))
    if not seen.size:
        raise DataError("the context has no observed value")
    values = np.interp(np.arange(len(context)), seen, context[seen])
    # Of a size near 1, so that no square overflows.
    scale = float(np.abs(values).max()) or 1.0
    scaled = values / scale
    deviation = float(scaled.std()) or 1.0
    windows = np.lib.stride_tricks.sliding_window_view(
        scaled[-(MOST_ROWS + lags + horizon - 1) :] / deviation, lags + horizon
    )
    last = windows[:, lags - 1 : lags]
    fit = _Ridge(windows[:, : lags - 1] - last, windows[:, lags:] - last)
    now = scaled[-lags:] / deviation
    point = now[-1] + fit.predict(now[:-1] - now[-1])
    quantiles = point[:, None] + quantiles_by_step(fit.errors(), tau)
    unit = scale * deviation
    return LinearForecast(point * unit, quantiles * unit, fit.penalty)


class _Ridge:
    """Ridge regression of many targets on the same inputs, with an intercept."""

    def __init__(self, inputs: Float64[np.ndarray, "n L"], targets: Float64[np.ndarray, "n H"]):
        self.mean_in, self.mean_out = inputs.mean(axis=0), targets.mean(axis=0)
        self.inputs, self.targets = inputs - self.mean_in, targets - self.mean_out
        variances, self.directions = np.linalg.eigh(self.inputs.T @ self.inputs)
        self.variances = np.maximum(variances, 0)
        self.products = self.directions.T @ (self.inputs.T @ self.targets)
        self.power = np.square(self.products).sum(axis=1)
        self.total = float(np.square(self.targets).sum())
        unit = float(self.variances.mean()) or 1.0
        self.penalty = min(unit * PENALTIES, key=self._validation_error)
        shrunk = self.products / (self.variances + self.penalty)[:, None]
        self.weights = self.directions @ shrunk

    def _validation_error(self, penalty: float) -> float:
        """Generalized cross-validation: the squared error over the free rows squared."""
        shrink = self.variances + penalty
        share = self.power / shrink
        squared = max(self.total - float((share * (2 - self.variances / shrink)).sum()), 0.0)
        free = len(self.inputs) - 1 - float((self.variances / shrink).sum())
        return squared / free**2 if free > 0 else np.inf

    def predict(self, inputs: Float64[np.ndarray, " L"]) -> Float64[np.ndarray, " H"]:
        return self.mean_out + (inputs - self.mean_in) @ self.weights

    def errors(self) -> Float64[np.ndarray, "K H"]:
        """What each row is off when it is left out of the fit, of rows evenly spaced."""
        n = len(self.inputs)
        kept = np.linspace(0, n - 1, min(n, ERRORS_KEPT)).round().astype(np.int64)
        turned = self.inputs[kept] @ self.directions
        leverage = 1 / n + (np.square(turned) / (self.variances + self.penalty)).sum(axis=1)
        residuals = self.targets[kept] - self.inputs[kept] @ self.weights
        return residuals / np.maximum(1 - leverage, 1e-6)[:, None]
