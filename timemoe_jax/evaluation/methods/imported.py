"""Predictors of GluonTS and models of fev as methods, by where they are imported from."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import ConfigError
from timemoe_jax.evaluation.methods.base import MethodForecast

START = "2000-01-01"  # of every context, for libraries that ask for a time


@dataclasses.dataclass(frozen=True)
class ImportedMethod:
    """What "module:function" gives, called with those of these arguments that it names.

    They are horizon (or prediction_length), season (or season_length, seasonality), levels (or
    quantile_levels) and freq. It gives a predictor of GluonTS, an estimator of GluonTS, which is
    trained on the context alone, a model of fev, or a `Method` of this library. A module of the
    working directory counts, too.
    """

    name: str  # "module:function"
    isolated: bool = True

    def checked(self) -> "ImportedMethod":
        """The method itself, if its module can be there; else a ConfigError."""
        module, _, function = self.name.partition(":")
        _see_working_directory()
        top = module.split(".")[0]
        if not top.isidentifier() or not function or importlib.util.find_spec(top) is None:
            raise ConfigError(
                f"the method {self.name!r} must be module:function, but there is no module {top!r}"
                if function
                else f"the method {self.name!r} must be module:function"
            )
        return self

    def prepare(self) -> None:
        """Imports the function, before any time is counted."""
        _function(self.name)

    def predict(
        self,
        contexts: Sequence[Float64[np.ndarray, " _"]],
        horizon: int,
        season: int,
        levels: Sequence[float],
        freq: str | None = None,
    ) -> MethodForecast:
        """Forecasts each context; what the other library raises is raised."""
        model = _made(self.name, horizon, season, tuple(levels), freq)
        if hasattr(model, "fit_predict"):
            return _of_fev(model, contexts, horizon, season, levels, freq)
        if hasattr(model, "train"):
            return _of_gluonts(model.train(_entries(contexts, freq)), contexts, levels, freq)
        if "contexts" in inspect.signature(model.predict).parameters:
            return model.predict(contexts, horizon, season, levels, freq)
        return _of_gluonts(model, contexts, levels, freq)


@functools.lru_cache(maxsize=8)
def _made(name: str, horizon: int, season: int, levels: tuple[float, ...], freq: str | None) -> Any:
    """What the function gives for these arguments: made once, since it may load weights."""
    function = _function(name)
    known = {
        **dict.fromkeys(("horizon", "prediction_length"), horizon),
        **dict.fromkeys(("season", "season_length", "seasonality"), season),
        **{key: list(levels) for key in ("levels", "quantile_levels")},
        "freq": _period_freq(freq),
    }
    takes = inspect.signature(function).parameters
    model = function(**{key: value for key, value in known.items() if key in takes})
    if not any(hasattr(model, each) for each in ("predict", "train", "fit_predict")):
        raise ConfigError(
            f"{name} gives a {type(model).__name__}, which has none of predict, train and "
            "fit_predict: no predictor of GluonTS or fev"
        )
    return model


def _see_working_directory() -> None:
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    _see_working_directory()
    found = importlib.import_module(module)
    if not hasattr(found, function):
        raise ConfigError(f"the module {module!r} has no {function!r}")
    return getattr(found, function)


def _period_freq(freq: str | None) -> str:
    """The step as pandas Periods name it; days where it is not known or has no such name."""
    import pandas as pd

    for alias in (freq, (freq or "").replace("S", "").replace("E", "")):
        try:
            return pd.Period(START, freq=alias or "D").freqstr
        except (ValueError, AttributeError):
            continue
    return "D"


def _entries(contexts: Sequence[Float64[np.ndarray, " _"]], freq: str | None) -> list[Any]:
    """The contexts as a dataset of GluonTS."""
    import pandas as pd

    start = pd.Period(START, freq=_period_freq(freq))
    return [
        {"start": start, "target": context.astype(np.float32), "item_id": str(i)}
        for i, context in enumerate(contexts)
    ]


def _of_gluonts(
    predictor: Any, contexts: Sequence[Any], levels: Sequence[float], freq: str | None
) -> MethodForecast:
    forecasts = list(predictor.predict(_entries(contexts, freq)))
    point = np.stack([np.asarray(each.quantile(0.5), np.float64) for each in forecasts])
    columns = [[np.asarray(each.quantile(q), np.float64) for q in levels] for each in forecasts]
    return MethodForecast(point, np.array(columns).swapaxes(1, 2))


def _of_fev(
    model: Any,
    contexts: Sequence[Any],
    horizon: int,
    season: int,
    levels: Sequence[float],
    freq: str | None,
) -> MethodForecast:
    """Through a file, since a task of fev reads one; what is to be forecast holds zeros in it."""
    import pandas as pd

    fev = importlib.import_module("fev")
    step = _period_freq(freq)
    rows = []
    for i, context in enumerate(contexts):
        times = pd.period_range(START, periods=len(context) + horizon, freq=step).to_timestamp()
        values = np.concatenate([context, np.zeros(horizon)]).astype(np.float32)
        rows.append({"id": str(i), "timestamp": times.to_numpy(), "target": values})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contexts.parquet"
        pd.DataFrame(rows).to_parquet(path)
        task = fev.Task(
            dataset_path=str(path),
            horizon=horizon,
            seasonality=season,
            quantile_levels=list(levels),
            target="target",
        )
        (window,) = model.fit_predict(task)
    table = window["target"] if "target" in window else next(iter(window.values()))
    point = np.array(table["predictions"], np.float64)
    return MethodForecast(point, np.stack([np.array(table[str(q)]) for q in levels], axis=2))
