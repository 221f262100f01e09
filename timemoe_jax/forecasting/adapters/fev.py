"""A forecaster as a model of fev, the library of the benchmark fev-bench (arXiv 2509.26468).

`task.evaluation_summary(TimeMoeModel(forecaster).fit_predict(task), model_name="time-moe")`
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from timemoe_jax.forecasting.adapters.loading import forecaster_of, require

_fev: Any = require("fev", "fev")
_datasets: Any = require("datasets", "fev")


class TimeMoeModel(_fev.ForecastingModel):
    """Forecasts every window of a task, each target column by itself.

    `fit_predict(task)` returns a `datasets.DatasetDict` per window: for each target the point
    forecast as "predictions", and a column for each quantile level that the task asks for.

    Args:
      model: a Forecaster, or the path of a checkpoint.
      trained_on_datasets: the names of fev's datasets that the model was trained on, which fev
        marks as leaked. A checkpoint does not tell them: the caller has to.
      **options: of `Forecaster.forecast`, such as `context_length` or `intervals`.

    Raises:
      ConfigError: `model` is neither.
    """

    model_name = "time-moe"

    def __init__(
        self,
        model: Any,
        trained_on_datasets: Sequence[str] = (),
        **options: Any,
    ):
        super().__init__()
        self.options = options
        self.trained_on_datasets = list(trained_on_datasets)
        self._forecaster = forecaster_of(model)

    def _fit_predict(self, task: Any) -> list[Any]:
        unused = [*task.dynamic_columns, *task.static_columns]
        if unused:
            warnings.warn(
                f"the covariates of the task {task.task_name!r} are not used: {', '.join(unused)}",
                stacklevel=2,
            )
        # Without worker processes: JAX has started threads, and a fork of such a process can hang.
        windows = task.iter_windows(num_proc=0)
        return [self._predict_window(task, window) for window in windows]

    def _predict_window(self, task: Any, window: Any) -> Any:
        past, _ = window.get_input_data()
        columns = list(task.target_columns)
        items = list(past[task.id_column])
        inputs = [np.asarray(x, np.float64) for column in columns for x in past[column]]
        names = [f"{column} of {item}" for column in columns for item in items]
        levels = sorted(task.quantile_levels)
        with self._record_inference_time():
            out = self._forecaster.forecast(
                inputs,
                task.horizon,
                quantile_levels=levels or None,
                names=names,
                **self.options,
            )
        forecasts = {"predictions": out.point}
        forecasts |= {str(level): out.quantiles[:, :, i] for i, level in enumerate(levels)}
        return _datasets.DatasetDict(
            {
                column: _datasets.Dataset.from_dict(
                    {
                        key: values[i * len(items) : (i + 1) * len(items)].tolist()
                        for key, values in forecasts.items()
                    },
                    features=task.predictions_schema,
                )
                for i, column in enumerate(columns)
            }
        )
