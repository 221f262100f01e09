"""The forecast of a data frame, from which its table and its picture are made."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.calendar import calendar_marks
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
    calendar: bool | None = None  # whether a model with covariates read the calendar

    @property
    def frame(self) -> Any:
        """The pandas DataFrame that `Forecaster.predict_df` returns."""
        frame = self.prepared.to_frame(self.point, self.quantiles, self.levels)
        if self.joint:
            frame.attrs["joint"] = True
        if self.calendar is not None:
            frame.attrs["calendar"] = self.calendar
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
    variates: int = 0,
    **options: Any,
) -> FrameForecast:
    """Forecasts the series of a data frame by `Forecaster.forecast`, with its options.

    With `non_negative` no value is below 0, what covariates contribute included. With `joint` the
    forecast reads the targets of an id, and the covariates that are beside them, together. A model
    with covariates reads so many `variates` together with the calendar, where the frame has them.
    """
    names = prepared.names if names is None else names
    items = _items(prepared, variates) if options.get("quantile_levels") is None else []
    if items:
        parts = [_with_calendar(forecast, prepared, item, options) for item in items]
        point, quantiles, levels = np.concatenate(parts), None, ()
    else:
        given: Any = prepared.joint(names) if joint else prepared.series
        out = forecast(given, prepared.horizon, names=names, **options)
        quantiles = None if out.quantiles is None else prepared.complete(out.quantiles)
        point, levels = out.point, out.quantile_levels
    point = prepared.complete(point)
    if non_negative:
        point = np.maximum(point, 0.0)
        quantiles = None if quantiles is None else np.maximum(quantiles, 0.0)
    calendar = bool(items) if variates else None
    return FrameForecast(prepared, point, quantiles, levels, joint, calendar)


def _items(prepared: FrameInputs, variates: int) -> list[slice]:
    """The series that a model reads together: so many, with the same times; [] where some are not.

    They are the targets of an id, or all series of the frame.
    """
    every = prepared.timed.series
    if not variates or len(every) % variates or not all(_is_dated(each) for each in every):
        return []
    if len(prepared.timed.targets) != variates and len(every) != variates:
        return []
    items = [slice(i, i + variates) for i in range(0, len(every), variates)]
    alike = all(
        each.timestamps.equals(every[item.start].timestamps)
        for item in items
        for each in every[item]
    )
    return items if alike else []


def _is_dated(series: Any) -> bool:
    return hasattr(series.timestamps, "year")  # step numbers have no calendar


def _with_calendar(
    forecast: Callable[..., Any], prepared: FrameInputs, item: slice, options: dict[str, Any]
) -> Float64[np.ndarray, "C H"]:
    """The forecast of the variates of one item."""
    first = prepared.timed.series[item.start]
    later = future_index(first, prepared.horizon)
    parts = [_instants(times) for times in (first.timestamps, later)]
    marks = calendar_marks(np.concatenate(parts))
    values = np.stack(prepared.series[item])[None]
    return forecast(values, prepared.horizon, marks=marks, **options).point[0]


def _instants(times: Any) -> np.ndarray:
    """Times of a pandas Index as datetime64, as their clocks show them."""
    times = times.to_timestamp() if hasattr(times, "to_timestamp") else times
    if getattr(times, "tz", None) is not None:
        times = times.tz_localize(None)
    return np.asarray(times).astype("datetime64[s]")
