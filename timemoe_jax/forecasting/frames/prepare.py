"""From a data frame to series, and from their forecasts back to a frame; covariates in between."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.forecasting.frames.covariates import adjustments, align_covariates, shared_columns
from timemoe_jax.forecasting.frames.frames import TimedFrame, read_frame, to_frame
from timemoe_jax.forecasting.frames.regression import Adjustment


@dataclasses.dataclass(frozen=True, eq=False)
class FrameInputs:
    """The series of a data frame, ready to be forecast.

    Attributes:
      timed: the series, on their calendars.
      horizon: points to forecast.
      effects: of the covariates on each series; None without covariates.
    """

    timed: TimedFrame
    horizon: int
    effects: list[Adjustment] | None

    @property
    def series(self) -> list[Float64[np.ndarray, " _"]]:
        """What the model is to forecast: the series without what the covariates contribute."""
        values = [each.values for each in self.timed.series]
        if self.effects is None:
            return values
        pairs = zip(values, self.effects, strict=True)
        return [each - effect.contribution_context for each, effect in pairs]

    @property
    def names(self) -> list[str]:
        """What to call the series in an error."""
        return [each.name for each in self.timed.series]

    def complete(self, forecasts: Float64[np.ndarray, "N H ..."]) -> Float64[np.ndarray, "N H ..."]:
        """Forecasts or quantiles of `series`, with what the covariates will contribute."""
        if self.effects is None:
            return forecasts
        ahead = np.stack([effect.contribution_future for effect in self.effects])
        return forecasts + ahead.reshape(*ahead.shape, *(1,) * (forecasts.ndim - 2))

    def to_frame(
        self,
        point: Float64[np.ndarray, "N H"],
        quantiles: Float64[np.ndarray, "N H Q"] | None,
        levels: Sequence[float],
    ) -> Any:
        """A data frame of complete forecasts, whose `attrs` say what the input was like."""
        frame = to_frame(self.timed, point, quantiles, levels)
        frame.attrs.update(
            filled=self.timed.filled,
            missing=self.timed.missing,
            reordered=self.timed.reordered,
            ignored_columns=list(self.timed.ignored),
        )
        return frame


def prepare_frame(
    df: Any,
    horizon: int,
    *,
    future_df: Any = None,
    past_covariates: Sequence[str] = (),
    freq: Any = None,
    where: str = "df",
    **columns: Any,
) -> FrameInputs:
    """Takes the series out of a data frame, and what covariates contribute out of the series.

    Args:
      df: a pandas DataFrame: see `read_frame`.
      horizon: points to forecast.
      future_df: covariates that are known for the times to forecast.
      past_covariates: columns of `df` that are covariates without a known future.
      freq: the step between times.
      where: what to call `df` in a message.
      columns: `id_column`, `timestamp_column` and `target`.

    Raises:
      DataError: the frame or a covariate cannot be used.
    """
    known = () if future_df is None else shared_columns(df, future_df, **columns)
    covariates = (*known, *(name for name in past_covariates if name not in known))
    timed = read_frame(df, freq=freq, covariates=covariates, where=where, **columns)
    if not covariates:
        return FrameInputs(timed, horizon, None)
    effects = adjustments(timed, align_covariates(df, future_df, timed, horizon))
    return FrameInputs(timed, horizon, effects)
