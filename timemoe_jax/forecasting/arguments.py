"""What all methods for users do: know the names that other libraries have for their arguments."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from timemoe_jax.errors import DataError
from timemoe_jax.training.finetuning.config import FinetuneConfig

Given = ParamSpec("Given")
Result = TypeVar("Result")

_OPTIONS = (
    *("context_length", "normalize", "quantile_levels", "batch_size", "progress", "names"),
    *("intervals", "calibration", "non_negative"),
)

TUNING = frozenset(field.name for field in dataclasses.fields(FinetuneConfig)) - {"horizon"}

# What other libraries (Nixtla's, GluonTS, Darts, AutoGluon, sktime, Chronos, TimesFM) call what.
_NAMES = {
    ("horizon=",): "prediction_length h fh n steps n_steps horizon_len forecast_horizon periods "
    "max_horizon forecast_length pred_len n_ahead output_chunk_length horizons",
    (
        "quantile_levels=, such as [0.1, 0.9] for an interval of 80%",
    ): "levels level quantiles quantile coverage alpha confidence prediction_intervals",
    ("num_samples=", "sample(num_samples=...)"): "num_samples n_samples nsamples samples "
    "num_parallel_samples",
    ("id_column=",): "id_col item_id unique_id id group_ids id_name series_id",
    ("timestamp_column=",): "time_col timestamp time_column time_name time ds date_column "
    "datetime_column",
    ("target=",): "target_col target_column target_columns target_name value_col y targets",
    ("freq=",): "frequency freq_str",
    ("future_df=",): "X_df X future_covariates known_covariates exog futr_df dynamic_covariates",
    ("context_length=",): "context_len context_size input_size max_context input_chunk_length",
    ("inputs=", "df="): "series context x past_values data train_data frame inputs df",
    ("date_format=, such as '%d/%m/%Y'",): "dayfirst day_first time_format",
    ("normalize=",): "scale scaling normalization normalise",
    ("seed=",): "random_state random_seed",
    ("folds=",): "n_windows num_folds windows",
    ("season=",): "season_length seasonality sp",
    ("past_covariates=",): "past_covariate observed_covariates hist_exog",
}
# What other libraries call the methods of a model that forecasts.
_METHODS = dict.fromkeys(
    ("predict", "predict_proba", "fit", "fit_predict", "fit_forecast", "generate"),
    "forecast(series, horizon=...), or predict_df(frame, horizon=...) for a data frame",
)
_METHODS |= {
    "predict_quantiles": "forecast(series, horizon=..., quantile_levels=...)",
    "predict_interval": "forecast(series, horizon=..., quantile_levels=...)",
    "historical_forecasts": "backtest(series, horizon=..., folds=...)",
    "cross_validation": "backtest(series, horizon=..., folds=...)",
}
_HERE = {other: here for here, others in _NAMES.items() for other in others.split()}


def whole_number(name: str, value: Any) -> int:
    """Returns `value` if it is an integer of at least 0, and raises a DataError if not."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise DataError(f"{name} must be an integer of at least 0, but is {value!r}")
    return int(value)


class UnknownArgumentError(DataError, TypeError):
    """An argument that a method does not have; the message says which one it has."""


def for_users(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """Has a method refuse a keyword that it does not have, and say which one it has for that.

    Where it takes further `options`, they are those of `Forecaster.forecast`; further `tuning` are
    fields of `FinetuneConfig`. It runs under NumPy's
    own handling of floating-point errors.
    """
    parameters = inspect.signature(method).parameters
    known = {name for name in parameters if name not in ("self", "options", "tuning")}
    known |= {*_OPTIONS} if "options" in parameters else set()
    known |= {*TUNING} if "tuning" in parameters else set()

    @functools.wraps(method)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        unknown = next((name for name in kwargs if name not in known), None)
        if unknown is not None:
            raise UnknownArgumentError(_unknown(method.__name__, unknown, known))
        # Whatever the caller has set: numbers that vanish beside others are no error here.
        with np.errstate(under="ignore", over="warn", divide="warn", invalid="warn"):
            return method(*args, **kwargs)

    return checked


def _unknown(method: str, name: str, known: set[str]) -> str:
    title = f"{method}() has no argument {name!r}"
    for here in _HERE.get(name, ()):
        if here.split("=")[0] in known or "(" in here.split("=")[0]:
            return f"{title}; use {here}"
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"{title}; did you mean {near[0]!r}?"
    return f"{title}; it has {', '.join(sorted(known))}"


def unknown_attribute(owner: str, name: str) -> AttributeError:
    """What to raise for an attribute that there is not; of other libraries' methods, with ours."""
    hint = f"; use {_METHODS[name]}" if name in _METHODS else ""
    return AttributeError(f"{owner!r} object has no attribute {name!r}{hint}")
