"""The forecast of a data frame, from which its table and its picture are made."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.forecasting.frames.frames import future_index
from timemoe_jax.forecasting.frames.prepare import FrameInputs


@dataclasses.dataclass(frozen=True, eq=False)
class FrameForecast:
    """Forecasts of the series of a data frame, with what their covariates contribute."""

    prepared: FrameInputs
    point: Float64[np.ndarray, "N H"]
    quantiles: Float64[np.ndarray, "N H Q"] | None
    levels: Sequence[float]
    joint: bool = False  # whether the targets of an id were read together

    @property
    def frame(self) -> Any:
        """The pandas DataFrame that `Forecaster.predict_df` returns."""
        frame = self.prepared.to_frame(self.point, self.quantiles, self.levels)
        if self.joint:
            frame.attrs["joint"] = True
        return frame

    @property
    def times(self) -> list[tuple[Any, Any]]:
        """The times of each series and of its forecast, as pandas Indexes [T] and [H]."""
        horizon, timed = self.prepared.horizon, self.prepared.timed
        return [(each.timestamps, future_index(each, horizon)) for each in timed.series]


def forecast_frame(
    forecast: Callable[..., Any],
    prepared: FrameInputs,
    names: Sequence[str] | None = None,
    non_negative: bool = False,
    joint: bool = False,
    **options: Any,
) -> FrameForecast:
    """Forecasts the series of a data frame by `Forecaster.forecast`, with its options.

    With `non_negative` no value is below 0, what covariates contribute included. With `joint` the
    forecast reads the targets of an id, and the covariates that are beside them, together.
    """
    names = prepared.names if names is None else names
    given: Any = prepared.joint(names) if joint else prepared.series
    out = forecast(given, prepared.horizon, names=names, **options)
    quantiles = None if out.quantiles is None else prepared.complete(out.quantiles)
    point = prepared.complete(out.point)
    if non_negative:
        point = np.maximum(point, 0.0)
        quantiles = None if quantiles is None else np.maximum(quantiles, 0.0)
    return FrameForecast(prepared, point, quantiles, out.quantile_levels, joint)
