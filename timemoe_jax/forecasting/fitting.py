"""`Forecaster.fit`: whatever a forecast takes, as series to fine-tune on."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from timemoe_jax.checkpoints.checksums import weights_digest
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.data.pipeline.gaps import FilledSource
from timemoe_jax.data.series import positive_int
from timemoe_jax.data.series_source import ArraySource, SequenceSource
from timemoe_jax.errors import DataError, listed
from timemoe_jax.forecasting.contexts import Inputs
from timemoe_jax.forecasting.frames.files import SUFFIXES, read_frame_file, with_steps
from timemoe_jax.forecasting.frames.given import column_names, text_frame
from timemoe_jax.forecasting.frames.prepare import FrameInputs, prepare_frame
from timemoe_jax.runtime.progress import say
from timemoe_jax.training.finetuning.config import FinetuneConfig
from timemoe_jax.training.finetuning.start import Start
from timemoe_jax.training.finetuning.tune import Tuned, fine_tune


class Columns(NamedTuple):
    """Which columns of a data frame are which, as `Forecaster.fit` takes them."""

    id_column: Any = None
    timestamp_column: Any = None
    target: Any = None
    freq: Any = None
    covariates: Any = ()  # that are left out
    date_format: str | None = None
    past_covariates: Any = ()
    known_covariates: Any = ()


class ItemSource(ArraySource):
    """Series in memory, of which those of an item are aligned.

    Args:
      series: those of an item follow one another.
      names: what to call each in a message.
      items: the item of each, rising; None: each is one by itself.
      tuning: fields of `FinetuneConfig` that follow from what the series are.
    """

    def __init__(
        self,
        series: Sequence[Float64[np.ndarray, " _"]],
        names: Sequence[str],
        items: Sequence[int] | None = None,
        tuning: Mapping[str, Any] | None = None,
    ):
        super().__init__(series, names)
        self._items = range(len(series)) if items is None else items
        self.tuning = dict(tuning or {})

    def groups(self) -> Int64[np.ndarray, " num_sequences"]:
        """The number of the item that each series is of."""
        return np.asarray(self._items, np.int64)


def items_of(
    prepared: FrameInputs, past: Sequence[str] = (), known: Sequence[str] = ()
) -> ItemSource:
    """The targets of each id, and after them its covariates: those `past`, then those `known`.

    Every id has the variates of all: a category that it never has is a series without a value.
    """
    beside, timed = prepared.beside, prepared.timed
    held = {(each.item, each.variate): each.values for each in beside}
    of_past, of_known = (
        list(dict.fromkeys(each.variate for each in beside if each.column in columns))
        for columns in (past, known)
    )
    variates = [*of_past, *of_known]
    series: list[np.ndarray] = []
    names: list[str] = []
    items: list[int] = []
    size = len(timed.targets)
    for code in range(len(timed.series) // size):
        own = timed.series[code * size : (code + 1) * size]
        absent = np.full(len(own[0].values), np.nan)
        series += [each.values for each in own]
        series += [held.get((code, variate), absent) for variate in variates]
        names += [each.name for each in own]
        names += [f"covariate {variate} of {own[0].name}" for variate in variates]
        items += [code] * (size + len(variates))
    counts = {"past_variates": len(of_past), "known_variates": len(of_known)}
    return ItemSource(series, names, items, counts if past or known else None)


def source_of(
    data: Any, names: Sequence[str] | None, columns: Columns, quiet: bool = True
) -> SequenceSource:
    """The series of arrays, lists, a data frame, or files and folders; see `items_of`.

    Series without a value are left out later, and counted, rather than refused.

    Raises:
      DataError: as `forecast` and `predict_df` do.
    """
    if isinstance(data, SequenceSource):
        return data
    if isinstance(data, str | Path):
        path = os.fspath(data)
        if Path(path).suffix.lower() not in SUFFIXES or not os.path.isfile(path):
            for name in ("past_covariates", "known_covariates"):
                if getattr(columns, name):
                    raise DataError(
                        f"{name} is {getattr(columns, name)!r}, but {path} is no CSV or Parquet "
                        "file, whose columns have names; give one, or a data frame"
                    )
            return FilledSource(open_source(path))
        ids, times = (c if isinstance(c, str) else None for c in columns[:2])
        frame = with_steps(read_frame_file(path, ColumnNames(ids, times)), ids)
        return _of_frame(frame, path, columns, quiet)
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "columns"):
        return _of_frame(data, "data", columns, quiet)
    given = [name for name, value in columns._asdict().items() if value not in (None, (), [])]
    if given:
        raise DataError(
            f"{' and '.join(given)} are for data frames, but data is an array or a list"
        )
    inputs = Inputs.parse(_filled(data), names)
    return ItemSource(inputs.series, inputs.names, inputs.item_numbers)


def _filled(data: Any) -> Any:
    """A series without any value as zeros, which are constant and so left out and counted."""
    if isinstance(data, np.ndarray) and data.ndim in (2, 3) and data.dtype.kind == "f":
        empty = np.isnan(data).all(axis=-1, keepdims=True)
        return np.where(empty, 0.0, data) if empty.any() else data
    if isinstance(data, list | tuple) and any(np.ndim(each) for each in data):
        return [_filled(np.asarray(each)[None])[0] if np.ndim(each) == 1 else each for each in data]
    return data


def _of_frame(frame: Any, where: str, columns: Columns, quiet: bool) -> SequenceSource:
    frame, _ = text_frame(frame, where)
    left_out, past, known = (
        column_names(name, getattr(columns, name), frame.columns)
        for name in ("covariates", "past_covariates", "known_covariates")
    )
    prepared = prepare_frame(
        frame,
        1,
        past_covariates=once(past, known),
        freq=columns.freq,
        where=where,
        id_column=columns.id_column,
        timestamp_column=columns.timestamp_column,
        target=columns.target,
        date_format=columns.date_format,
        as_variates=True,
        left_out=left_out,
    )
    if left_out and not quiet:
        say(f"columns left out, of which nothing is learned: {listed(left_out)}")
    return items_of(prepared, past, known)


def once(past: Sequence[str], known: Sequence[str]) -> list[str]:
    """The covariates of both kinds; refuses one that is named twice."""
    both = [*past, *known]
    for name in both:
        if both.count(name) > 1:
            raise DataError(
                f"the covariate {name!r} is named twice; name it once, as one that is known ahead "
                "or as one that is not"
            )
    return both


def tuning_config(horizon: Any, learning_rate: Any, options: dict[str, Any]) -> FinetuneConfig:
    """The config of a call.

    Raises:
      DataError: the horizon is no whole number from 1, or the learning rate is none.
      ConfigError: a value is not possible.
    """
    if learning_rate == "auto":
        rate = 0.0
    elif isinstance(learning_rate, int | float) and learning_rate > 0:
        rate = float(learning_rate)
    else:
        raise DataError(f"learning_rate must be positive or 'auto', but is {learning_rate!r}")
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in options.items()
    }
    if isinstance(values.get("lora_targets"), str):
        values["lora_targets"] = (values["lora_targets"],)
    return FinetuneConfig(horizon=positive_int("horizon", horizon), learning_rate=rate, **values)


def start_of(forecaster: Any) -> Start:
    """The model of a forecaster, in the precision that it was stored in."""
    config = dataclasses.replace(forecaster.config, dtype="float32")
    origin = forecaster.origin
    if forecaster.config.dtype != "float32" and origin:
        return Start.of(load_model(origin), origin)
    params = forecaster.engine.params
    digest = forecaster.digest or weights_digest(params)
    return Start(config, params, digest, origin, forecaster.optimizer)


def fit(
    forecaster: Any,
    data: Any,
    config: FinetuneConfig,
    *,
    names: Sequence[str] | None,
    columns: Columns,
    workdir: str | os.PathLike[str] | None,
    quiet: bool,
) -> Tuned:
    """Fine-tunes the model of a forecaster: see `Forecaster.fit`."""
    source = source_of(data, names, columns, quiet)
    if isinstance(source, ItemSource):
        config = dataclasses.replace(config, **source.tuning)
    folder = None if workdir is None else Path(workdir)
    return fine_tune(start_of(forecaster), source, config, folder, forecaster.engine.mesh, quiet)
