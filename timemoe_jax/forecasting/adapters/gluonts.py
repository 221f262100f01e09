"""A forecaster as a GluonTS predictor, which GluonTS can evaluate.

`evaluate_model(TimeMoePredictor(forecaster, 24), test_data=..., metrics=[...])`
"""

import itertools
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from timemoe_jax.errors import ConfigError, DataError
from timemoe_jax.forecasting.adapters.loading import forecaster_of, require

_predictor: Any = require("gluonts.model.predictor", "gluonts")
_forecast: Any = require("gluonts.model.forecast", "gluonts")

# Entries that are forecast at once: among so many, several have the same length.
ENTRIES_AT_ONCE = 1024
ARGUMENTS_FILE = "time_moe.json"


class TimeMoePredictor(_predictor.Predictor):
    """Forecasts univariate entries of a GluonTS dataset, many at a time.

    Args:
      model: a Forecaster, or the path of a checkpoint.
      prediction_length: points to forecast.
      lead_time: points between the end of an entry and the first one of its forecast.
      quantile_levels: of the forecasts, between 0 and 1. By default there are none: the point
        forecast then stands as the mean and as the median, and any other quantile is NaN, which
        GluonTS refuses to evaluate.
      **options: of `Forecaster.forecast`, such as `context_length` or `intervals`.

    Raises:
      ConfigError: `model` is neither, or a length is no possible number.
    """

    def __init__(
        self,
        model: Any,
        prediction_length: int,
        lead_time: int = 0,
        quantile_levels: Sequence[float] | None = None,
        **options: Any,
    ):
        _check_at_least("prediction_length", prediction_length, 1)
        _check_at_least("lead_time", lead_time, 0)
        super().__init__(int(prediction_length), int(lead_time))
        self.model = model
        self.quantile_levels = None if quantile_levels is None else tuple(quantile_levels)
        self.options = options
        self._forecaster = forecaster_of(model)

    def predict(
        self, dataset: Iterable[Mapping[str, Any]], num_samples: int | None = None
    ) -> Iterator[Any]:
        """Forecasts every entry.

        Args:
          dataset: entries with "start", a pandas Period, and "target" [T], NaN where a value is
            missing; "item_id" and "info" are passed on. A warning names covariates, which are not
            used.
          num_samples: has no effect; GluonTS's helpers pass it to every predictor.

        Yields:
          a QuantileForecast per entry, in order. Its key "mean" is the point forecast.

        Raises:
          DataError: an entry cannot be forecast; the message names it.
        """
        entries = iter(dataset)
        for first in itertools.count(step=ENTRIES_AT_ONCE):
            part = list(itertools.islice(entries, ENTRIES_AT_ONCE))
            if not part:
                return
            yield from self._predict_part(part, first)

    def _predict_part(self, entries: list[Mapping[str, Any]], first: int) -> Iterator[Any]:
        labels = [_label(entry, first + i) for i, entry in enumerate(entries)]
        _warn_of_covariates(entries)
        targets = [_target(*pair) for pair in zip(entries, labels, strict=True)]
        starts = [_start(*pair) for pair in zip(entries, labels, strict=True)]
        out = self._forecaster.forecast(
            targets,
            self.lead_time + self.prediction_length,
            quantile_levels=self.quantile_levels,
            names=labels,
            **self.options,
        )
        for i, entry in enumerate(entries):
            point = out.point[i, self.lead_time :]
            if self.quantile_levels is None:
                arrays, keys = [point, point], ["mean", "0.5"]
            else:
                arrays = [point, *out.quantiles[i, self.lead_time :].T]
                keys = ["mean", *(str(float(level)) for level in out.quantile_levels)]
            yield _forecast.QuantileForecast(
                forecast_arrays=np.stack(arrays),
                start_date=starts[i] + len(targets[i]) + self.lead_time,
                forecast_keys=keys,
                item_id=entry.get("item_id"),
                info=entry.get("info"),
            )

    def serialize(self, path: Path) -> None:
        """Writes the arguments from which `Predictor.deserialize` makes the same predictor.

        Args:
          path: a folder that exists. The checkpoint stays where it is: its path is written.

        Raises:
          ConfigError: the predictor was not made from a path, or JSON cannot hold an option.
        """
        if not isinstance(self.model, str | os.PathLike):
            raise ConfigError(
                "a predictor can only be written if its model is the path of a checkpoint, but it "
                f"is a {type(self.model).__name__}"
            )
        names = ("prediction_length", "lead_time", "quantile_levels")
        arguments = {name: getattr(self, name) for name in names} | self.options
        try:
            text = json.dumps(arguments | {"model": os.path.abspath(self.model)}, indent=2)
        except TypeError as error:
            raise ConfigError(f"an option of the predictor cannot be written: {error}") from None
        super().serialize(path)
        (path / ARGUMENTS_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def deserialize(cls, path: Path, **kwargs: Any) -> "TimeMoePredictor":
        """Makes the predictor that `serialize` wrote; `kwargs` replace its arguments."""
        return cls(**json.loads((path / ARGUMENTS_FILE).read_text(encoding="utf-8")) | kwargs)


def _check_at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} must be an integer of at least {least}, but is {value!r}")


def _label(entry: Mapping[str, Any], index: int) -> str:
    item = entry.get("item_id")
    return f"entry {index}" if item is None else f"entry {index} (item_id {item!r:.40})"


def _warn_of_covariates(entries: list[Mapping[str, Any]]) -> None:
    keys = {key for entry in entries for key in entry}
    unused = sorted(key for key in keys if key.startswith(("feat_", "past_feat_")))
    if unused:
        warnings.warn(
            f"the covariates of the entries are not used: {', '.join(unused)}", stacklevel=3
        )


def _target(entry: Mapping[str, Any], label: str) -> Shaped[np.ndarray, " T"]:
    if "target" not in entry:
        raise DataError(f"{label} has no 'target'; it has {', '.join(map(repr, entry))}")
    target = np.asarray(entry["target"])
    if target.ndim != 1:
        raise DataError(
            f"{label} has a target of shape {target.shape}, but only univariate entries [T] can be "
            "forecast; give each variate as an entry of its own"
        )
    return target


def _start(entry: Mapping[str, Any], label: str) -> Any:
    import pandas as pd

    start = entry.get("start")
    if not isinstance(start, pd.Period):
        raise DataError(
            f"{label} must have a pandas Period as its 'start', but has {start!r}; a ListDataset "
            "or a PandasDataset of GluonTS makes one"
        )
    return start
