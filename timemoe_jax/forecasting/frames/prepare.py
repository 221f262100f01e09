"""Turns a data frame into series without covariate effects, and forecasts into a data frame."""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.formats.table_layout import listed
from timemoe_jax.forecasting.contexts import Beside, Inputs
from timemoe_jax.forecasting.frames.covariates import (
    AlignedCovariates,
    adjustments,
    align_covariates,
    shared_columns,
)
from timemoe_jax.forecasting.frames.frames import TimedFrame, series_of, to_frame
from timemoe_jax.forecasting.frames.given import given_frame, text_frame
from timemoe_jax.forecasting.frames.regression import Adjustment


@dataclasses.dataclass(frozen=True, eq=False)
class FrameInputs:
    """The series of a data frame, ready to be forecast."""

    timed: TimedFrame
    horizon: int
    effects: list[Adjustment] | None = None  # of the covariates of each series, if there are any
    extra_ids: dict[Any, int] = dataclasses.field(default_factory=dict)  # see `AlignedCovariates`
    extra_rows: int = 0
    # Covariates that a joint model reads as variates, of all ids; the series are then as they were.
    beside: tuple[Beside, ...] = ()
    # What the caller calls the columns whose names are no text.
    originals: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def series(self) -> list[Float64[np.ndarray, " _"]]:
        """The series without what the covariates contribute, which the model forecasts."""
        values = [each.values for each in self.timed.series]
        if self.effects is None:
            return values
        pairs = zip(values, self.effects, strict=True)
        return [each - effect.contribution_context for each, effect in pairs]

    def joint(self, names: Sequence[str] | None = None) -> Inputs:
        """The series as a joint model reads them: those of an id, and what is beside, together."""
        parsed = Inputs.parse(self.series, self.names if names is None else names)
        return dataclasses.replace(parsed, items=self.timed.codes.tolist(), beside=self.beside)

    @property
    def freq(self) -> str | dict[str, str]:
        """The frequency of all series, or that of each where they differ."""
        found = {str(s.target_name if s.id is None else s.id): s.freq for s in self.timed.series}
        every = set(found.values())
        return every.pop() if len(every) == 1 else found

    @property
    def names(self) -> list[str]:
        """What to call the series in an error."""
        return [each.name for each in self.timed.series]

    @property
    def ignored_covariates(self) -> dict[str, dict[str, list[str]]]:
        """For each covariate that was left out, the reasons, and the series that each holds for."""
        ignored: dict[str, dict[str, list[str]]] = {}
        for series, effect in zip(self.timed.series, self.effects or (), strict=False):
            for name, reason in effect.ignored.items():
                ignored.setdefault(name, {}).setdefault(reason, []).append(series.name)
        return ignored

    def complete(self, forecasts: Float64[np.ndarray, "N H ..."]) -> Float64[np.ndarray, "N H ..."]:
        """Adds what the covariates will contribute to forecasts or quantiles of `series`."""
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
        frame = to_frame(self.timed, point, quantiles, levels, self.originals)
        frame.attrs.update(
            freq=self.freq,
            date_format=self.timed.times.layout,
            filled=self.timed.filled,
            missing=self.timed.missing,
            reordered=self.timed.reordered,
            ignored_columns=list(self.timed.ignored),
            # As text, since a file of the frame may hold the attributes as JSON.
            extra_ids={str(label): rows for label, rows in self.extra_ids.items()},
            extra_rows=self.extra_rows,
            ignored_covariates=self.ignored_covariates,
            unknown_covariates=sum(effect.unknown for effect in self.effects or ()),
        )
        return frame

    def warn(self) -> None:
        """Warns of ids, rows and covariates that are not used, in a line each."""
        if self.extra_ids:
            warnings.warn(
                f"df has no series of {_counted(len(self.extra_ids), 'id')} of future_df, whose "
                f"{_counted(sum(self.extra_ids.values()), 'row')} are not used: "
                f"{listed(self.extra_ids)}",
                stacklevel=5,
            )
        if self.extra_rows:
            warnings.warn(
                f"{_counted(self.extra_rows, 'row')} of future_df are not used, since their times "
                f"are none of the {self.horizon} that follow each series",
                stacklevel=5,
            )
        for name, reasons in self.ignored_covariates.items():
            for reason, series in reasons.items():
                warnings.warn(
                    f"the covariate {name!r} is not used for {len(series):,} of "
                    f"{len(self.timed.series):,} series, since {reason}: {listed(series)}",
                    stacklevel=5,
                )


def _beside(aligned: AlignedCovariates) -> Iterator[Beside]:
    """The covariates of every id, as series on its times."""
    for i, code in zip(*np.unique(aligned.codes, return_index=True)[::-1], strict=True):
        for column, variate, past, ahead in aligned.variates(int(i)):
            yield Beside(past, int(code), column, variate, aligned.name(int(i)), ahead)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def prepare_frame(
    df: Any,
    horizon: int,
    *,
    future_df: Any = None,
    past_covariates: Any = (),
    freq: Any = None,
    where: str = "df",
    id_column: Any = None,
    timestamp_column: Any = None,
    target: Any = None,
    date_format: str | None = None,
    as_variates: bool = False,
    left_out: Sequence[str] = (),
) -> FrameInputs:
    """Takes the series out of a data frame, and what covariates contribute out of the series.

    The arguments are those of `Forecaster.predict_df`; `where` is what to call `df` in an error.
    With `as_variates` covariates contribute nothing, and are series beside those of their id.
    Columns that are `left_out` are neither series nor covariates. A `UserWarning` names the ids,
    rows and covariates that are of no use to the forecast.
    """
    given = given_frame(df, where, id_column, timestamp_column, target, past_covariates)
    past, names, originals = given.frame, given.names, given.originals
    future = None if future_df is None else text_frame(future_df, "future_df")[0]
    known = () if future is None else shared_columns(past, future, names)
    covariates = (*known, *(name for name in given.past_covariates if name not in known))
    others = (*covariates, *left_out)
    timed = series_of(past, names, freq, others, where, date_format)
    timed = dataclasses.replace(timed, covariates=covariates)
    if future is not None and not known:
        warnings.warn(
            "future_df is not used, since all of its columns are ids, times or targets",
            stacklevel=4,
        )
        future = None
    if not covariates:
        return FrameInputs(timed, horizon, originals=originals)
    aligned = align_covariates(past, future, timed, horizon, date_format)
    effects = None if as_variates else adjustments(timed, aligned)
    unused = (aligned.extra_ids, aligned.extra_rows)
    beside = tuple(_beside(aligned)) if as_variates else ()
    inputs = FrameInputs(timed, horizon, effects, *unused, beside, originals)
    inputs.warn()
    return inputs
