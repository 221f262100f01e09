"""A forecaster of known answers, with the methods and the checks of the real one."""

import dataclasses
from typing import Any

import numpy as np

from timemoe_jax.data.formats.frames import columns_of
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.data.series import validate_series
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.frames import series_of, to_frame


def read_frame(
    df,
    *,
    id_column=None,
    timestamp_column=None,
    target=None,
    freq=None,
    covariates=(),
    where="df",
    date_format=None,
):
    """The series of a data frame, as `Forecaster.predict_df` reads it."""
    targets = (target,) if isinstance(target, str) else tuple(target or ())
    others = (covariates,) if isinstance(covariates, str) else tuple(covariates)
    names = ColumnNames(id_column, timestamp_column, targets)
    return series_of(columns_of(df, where), names, freq, others, where, date_format)


@dataclasses.dataclass(frozen=True)
class FakeForecast:
    point: np.ndarray  # [N, H]
    quantiles: np.ndarray | None  # [N, H, Q]
    quantile_levels: tuple[float, ...]


class FakeForecaster:
    """The h-th point after the end is the last observed value plus the steps since then.

    Its quantile of level q lies 10 h (q - 0.5) above that. `calls` keeps what it was asked.
    """

    joint = False

    def __init__(self):
        self.calls: list[dict[str, Any]] = []

    def forecast(
        self,
        inputs,
        horizon,
        context_length=None,
        normalize="instance",
        quantile_levels=None,
        batch_size="auto",
        progress=False,
        names=None,
        intervals="auto",
    ):
        self.calls.append(
            {
                "series": len(inputs),
                "horizon": horizon,
                "context_length": context_length,
                "normalize": normalize,
                "quantile_levels": quantile_levels,
                "batch_size": batch_size,
                "intervals": intervals,
            }
        )
        series = validate_series(inputs, names)
        steps = np.arange(1, horizon + 1)
        last = [int(np.flatnonzero(~np.isnan(s))[-1]) for s in series]
        point = np.stack(
            [s[at] + len(s) - 1 - at + steps for s, at in zip(series, last, strict=True)]
        )
        if quantile_levels is None:
            return FakeForecast(point, None, ())
        levels = tuple(quantile_levels)
        if list(levels) != sorted(set(levels)) or not all(0 < q < 1 for q in levels):
            raise DataError(f"quantile_levels must increase between 0 and 1, but are {levels}")
        spread = 10 * steps[:, None] * (np.array(levels) - 0.5)
        return FakeForecast(point, point[:, :, None] + spread, levels)

    def predict_df(
        self,
        df,
        horizon,
        id_column=None,
        timestamp_column=None,
        target=None,
        freq=None,
        quantile_levels=None,
        future_df=None,
        **options,
    ):
        timed = read_frame(
            df, id_column=id_column, timestamp_column=timestamp_column, target=target, freq=freq
        )
        series = [each.values for each in timed.series]
        out = self.forecast(series, horizon, quantile_levels=quantile_levels, **options)
        self.calls[-1]["future_df"] = future_df
        return to_frame(timed, out.point, out.quantiles, out.quantile_levels)
