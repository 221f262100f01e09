"""A forecaster as one of sktime's: `fit`, `predict`, `predict_quantiles`, `predict_interval`."""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtri

from timemoe_jax.checkpoints import bundled
from timemoe_jax.errors import DataError, listed
from timemoe_jax.forecasting.adapters.loading import forecaster_of, require
from timemoe_jax.forecasting.intervals.plan import TooShortError

_base: Any = require("sktime.forecasting.base", "sktime")

# What sktime calls one multivariate series, a panel of them, and a hierarchy of panels.
_MTYPES = ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"]


class TimeMoeForecaster(_base.BaseForecaster):
    """Forecasts each column of each series by itself, all of them in one call.

    `fit` and `update` learn nothing: they keep the data as the context of what `predict` returns.
    A time without a row counts as missing. As sktime requires, a series of a panel that ends before
    the others is forecast beyond the end of the longest. A series too short for the errors of
    earlier forecasts gets the intervals of a random walk around its forecast, with a warning.

    Args:
      model: the name of a bundled model, the path of a checkpoint, or a Forecaster. sktime clones
        estimators: a Forecaster is copied with its parameters, a name or a path is not.
      context_length: read at most so many last points of each series.
      normalize: as `Forecaster.forecast` takes it.
      intervals: where quantiles come from, as `Forecaster.forecast` takes it.
      batch_size: series per step, or "auto".

    Raises:
      ConfigError: from `fit`: `model` is neither.
      DataError: from `predict`: a series cannot be forecast; the message names it.

    Examples:
      >>> from timemoe_jax.forecasting.adapters.sktime import TimeMoeForecaster
      >>> forecaster = TimeMoeForecaster().fit(y)  # doctest: +SKIP
      >>> forecaster.predict_interval(fh=[1, 2, 3], coverage=0.8)  # doctest: +SKIP
    """

    _tags: ClassVar[dict[str, Any]] = {
        "python_dependencies": ["jax", "flax"],
        "capability:multivariate": True,
        "capability:exogenous": False,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:missing_values": True,
        "capability:update": True,
        "y_inner_mtype": _MTYPES,
        "X_inner_mtype": _MTYPES,
        "requires-fh-in-fit": False,
    }
    # This class keeps the data, so that sktime need not keep them too.
    _config: ClassVar[dict[str, Any]] = {"remember_data": False}

    def __init__(
        self,
        model: Any = bundled.DEFAULT,
        context_length: int | None = None,
        normalize: str = "instance",
        intervals: str = "auto",
        batch_size: int | str = "auto",
    ):
        # sktime's rule: a constructor does no more than this.
        self.model = model
        self.context_length = context_length
        self.normalize = normalize
        self.intervals = intervals
        self.batch_size = batch_size
        super().__init__()
        # sktime would remember these; without them some of its methods fail.
        self._y = self._X = None

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """The parameters that sktime tests this estimator with: the bundled model, twice."""
        return [{"model": bundled.DEFAULT}, {"normalize": "instance", "batch_size": 4}]

    def _fit(self, y: Any, X: Any = None, fh: Any = None) -> "TimeMoeForecaster":
        forecaster_of(self.model)
        self._history = y
        return self

    def _update(self, y: Any, X: Any = None, update_params: bool = True) -> "TimeMoeForecaster":
        # Whatever update_params says: a forecast from a later end has to know what came before it.
        self._history = y.combine_first(self._history)[list(self._history.columns)]
        return self

    def _predict(self, fh: Any, X: Any = None) -> Any:
        import pandas as pd

        return pd.DataFrame(
            self._forecast(fh, []), index=self._future(fh), columns=self._history.columns
        )

    def _predict_quantiles(self, fh: Any, X: Any, alpha: Sequence[float]) -> Any:
        import pandas as pd

        columns = pd.MultiIndex.from_product([self._get_varnames(), alpha])
        return pd.DataFrame(self._forecast(fh, alpha), index=self._future(fh), columns=columns)

    def _future(self, fh: Any) -> Any:
        """The index of a forecast: by series, then by time."""
        return fh.get_expected_pred_idx(y=self._history, cutoff=self.cutoff)

    def _forecast(self, fh: Any, alpha: Sequence[float]) -> Float64[np.ndarray, "rows C*Q"]:
        """The quantiles in the rows of `_future`, by column, then level; points without levels."""
        steps = np.asarray(fh.to_relative(self.cutoff).to_numpy(), np.int64)
        names, series = self._series(fh.freq or getattr(self.cutoff, "freq", None))
        levels, horizon = sorted(set(alpha)), int(steps.max())
        try:
            out = self._call(names, series, horizon, levels)
            values = out.quantiles if levels else out.point[:, :, None]
        except TooShortError:
            values = self._quantiles_of_short(names, series, horizon, levels)
        if levels:
            values = values[:, :, [levels.index(level) for level in alpha]]
        # The columns of an instance are neighbors in the batch; here they share a row.
        columns, width = len(self._history.columns), values.shape[-1]
        apart = values[:, steps - 1].reshape(-1, columns, len(steps), width).swapaxes(1, 2)
        return apart.reshape(-1, columns * width)

    def _call(
        self, names: Sequence[str], series: Sequence[Any], horizon: int, levels: Sequence[float]
    ) -> Any:
        return forecaster_of(self.model).forecast(
            series,
            horizon,
            context_length=self.context_length,
            normalize=self.normalize,
            batch_size=self.batch_size,
            quantile_levels=levels or None,
            intervals=self.intervals,
            names=names,
        )

    def _quantiles_of_short(
        self, names: Sequence[str], series: Sequence[Any], horizon: int, levels: Sequence[float]
    ) -> Float64[np.ndarray, "S H Q"]:
        """Quantiles where some series are too short for the errors of earlier forecasts.

        sktime asks every forecaster for intervals of any series. Around the forecast of such a
        series they are those of a random walk with steps as large as the series' own.
        """
        import pandas as pd

        values, short = [], []
        for name, one in zip(names, series, strict=True):
            try:
                values.append(self._call([name], [one], horizon, levels).quantiles[0])
            except TooShortError:
                short.append(name)
                point = self._call([name], [one], horizon, []).point[0]
                changes = np.diff(pd.Series(one).dropna().to_numpy(np.float64))
                step = float(np.sqrt(np.mean(changes**2))) if changes.size else 0.0
                spread = step * np.sqrt(np.arange(1, horizon + 1))
                values.append(point[:, None] + spread[:, None] * ndtri(np.asarray(levels)))
        warnings.warn(
            f"{listed(short)}: too short for the errors of earlier forecasts; the intervals are "
            "those of a random walk around the forecast",
            stacklevel=2,
        )
        return np.stack(values)

    def _series(self, freq: Any) -> tuple[list[str], list[Float64[np.ndarray, " T"]]]:
        """What to call each series, and its values up to the last time of all."""
        y = self._history
        depth = y.index.nlevels - 1
        if not depth:
            wide = _on_grid(y, freq)
            return [f"column {name!r}" for name in y.columns], list(wide.to_numpy(np.float64).T)
        # sktime wants forecasts in the order of sorted instances.
        instances = y.index.droplevel(-1).unique().sort_values()
        wide = _on_grid(y.unstack(list(range(depth))).sort_index(), freq)
        keys = [
            (column, *(instance if depth > 1 else (instance,)))
            for instance in instances
            for column in y.columns
        ]
        indices = wide.columns.get_indexer(keys)
        names = [f"column {column!r} of {', '.join(map(str, key))}" for column, *key in keys]
        return names, list(wide.to_numpy(np.float64)[:, indices].T)


def _on_grid(wide: Any, freq: Any) -> Any:
    """Adds rows so that every time has one, if the step between times is known."""
    import pandas as pd

    times = wide.index
    if isinstance(times, pd.PeriodIndex):
        grid = pd.period_range(times[0], times[-1], freq=times.freq)
    elif isinstance(times, pd.DatetimeIndex):
        if freq is None:
            return wide
        grid = pd.date_range(times[0], times[-1], freq=freq)
    else:
        grid = pd.RangeIndex(times[0], times[-1] + 1)
    if not times.isin(grid).all():
        first = times[~times.isin(grid)][0]
        raise DataError(
            f"the time {first} is not on the grid of the frequency {freq!r} of the forecast; "
            "make the times regular, with asfreq or resample"
        )
    return wide if len(grid) == len(times) else wide.reindex(grid)
