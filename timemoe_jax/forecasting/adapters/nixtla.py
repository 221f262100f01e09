"""Forecasts in the long format of Nixtla's libraries: unique_id, ds, and a column per model.

What `forecast` returns has the columns that statsforecast and neuralforecast write and that
`utilsforecast` evaluates. Nothing but pandas is needed.
"""

from collections.abc import Sequence
from typing import Any

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.adapters.loading import forecaster_of


def forecast(
    model: Any,
    df: Any,
    h: int,
    freq: Any = None,
    level: Sequence[float] | None = None,
    X_df: Any = None,
    *,
    id_col: str = "unique_id",
    time_col: str = "ds",
    target_col: str = "y",
    alias: str = "TimeMoE",
    **options: Any,
) -> Any:
    """Forecasts every series of a long data frame.

    Args:
      model: a Forecaster, or the path of a checkpoint.
      df: a pandas DataFrame with a row per series and time. Not modified.
      h: points to forecast.
      freq: a pandas alias, or an integer for step numbers; by default it is found.
      level: of central prediction intervals in percent, such as [80, 95].
      X_df: future values of covariates, which `Forecaster.predict_df` takes as `future_df`.
      id_col: the column that tells series apart.
      time_col: the column of times.
      target_col: the column of values.
      alias: what to call the model.
      **options: of `Forecaster.forecast`, such as `context_length` or `intervals`.

    Returns:
      a pandas DataFrame with `id_col`, `time_col`, the point forecast as `alias`, and for each
      level the bounds, from the lowest to the highest: `{alias}-lo-95`, `{alias}-lo-80`,
      `{alias}-hi-80`, `{alias}-hi-95`. A bound of level p is the quantile (100 -+ p) / 200. Series
      come in the order of their first rows.

    Raises:
      ConfigError: `model` is neither.
      DataError: the frame, the horizon, the frequency or a level cannot be used.
    """
    bounds = _bounds(level, alias)
    if alias in (id_col, time_col):
        raise DataError(f"alias {alias!r} is the name of another column of the result")
    out = forecaster_of(model).predict_df(
        df,
        h,
        id_column=id_col,
        timestamp_column=time_col,
        target=target_col,
        freq=freq,
        quantile_levels=list(bounds.values()) or None,
        future_df=X_df,
        **options,
    )
    names = {"predictions": alias} | {str(float(q)): name for name, q in bounds.items()}
    return out[[id_col, time_col, *names]].rename(columns=names)


def _bounds(level: Sequence[float] | None, alias: str) -> dict[str, float]:
    """The columns of the bounds and the quantiles that they are, from the lowest."""
    if level is None:
        return {}
    if isinstance(level, str) or not isinstance(level, Sequence) or not len(level):
        raise DataError(f"level must be a list of percentages such as [80, 95], but is {level!r}")
    for one in level:
        number = isinstance(one, int | float) and not isinstance(one, bool)
        if not number or not 0 < one < 100:
            raise DataError(f"level must hold numbers between 0 and 100, but has {one!r}")
    levels = sorted(set(level))
    # Rounded, so that the quantile of 99.9 is 0.0005 rather than 0.0004999999999999716.
    low = {f"{alias}-lo-{p}": round((100 - p) / 200, 12) for p in reversed(levels)}
    return low | {f"{alias}-hi-{p}": round((100 + p) / 200, 12) for p in levels}
