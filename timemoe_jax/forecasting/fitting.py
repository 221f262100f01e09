"""`Forecaster.fit`: whatever a forecast takes, as series to fine-tune on."""

import dataclasses
import os
from collections.abc import Sequence
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
from timemoe_jax.forecasting.frames.frames import series_of
from timemoe_jax.forecasting.frames.given import given_frame
from timemoe_jax.runtime.progress import say
from timemoe_jax.training.finetuning.config import FinetuneConfig
from timemoe_jax.training.finetuning.start import Start
from timemoe_jax.training.finetuning.tune import Tuned, fine_tune


class Columns(NamedTuple):
    """Which columns of a data frame are which, as `Forecaster.predict_df` takes them."""

    id_column: Any = None
    timestamp_column: Any = None
    target: Any = None
    freq: Any = None
    covariates: Any = ()  # columns that are no series; fine-tuning learns nothing of them
    date_format: str | None = None


class ItemSource(ArraySource):
    """Series in memory, of which `channels` at a time are aligned."""

    def __init__(
        self, series: Sequence[Float64[np.ndarray, " _"]], names: Sequence[str], channels: int = 1
    ):
        super().__init__(series, names)
        self._channels = channels

    def groups(self) -> Int64[np.ndarray, " num_sequences"]:
        """The number of the item that each series is a channel of."""
        return np.arange(len(self), dtype=np.int64) // self._channels


def source_of(
    data: Any, names: Sequence[str] | None, columns: Columns, quiet: bool = True
) -> SequenceSource:
    """The series of arrays, lists, a data frame, or files and folders.

    Series without a value are left out later, and counted, rather than refused.

    Raises:
      DataError: as `forecast` and `predict_df` do.
    """
    if isinstance(data, SequenceSource):
        return data
    if isinstance(data, str | Path):
        path = os.fspath(data)
        if Path(path).suffix.lower() not in SUFFIXES or not os.path.isfile(path):
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
    return ItemSource(inputs.series, inputs.names, inputs.channels or 1)


def _filled(data: Any) -> Any:
    """A series without any value as zeros, which are constant and so left out and counted."""
    if isinstance(data, np.ndarray) and data.ndim in (2, 3) and data.dtype.kind == "f":
        empty = np.isnan(data).all(axis=-1, keepdims=True)
        return np.where(empty, 0.0, data) if empty.any() else data
    if isinstance(data, list | tuple) and any(np.ndim(each) for each in data):
        return [_filled(np.asarray(each)[None])[0] if np.ndim(each) == 1 else each for each in data]
    return data


def _of_frame(frame: Any, where: str, columns: Columns, quiet: bool) -> SequenceSource:
    given = given_frame(
        frame,
        where,
        columns.id_column,
        columns.timestamp_column,
        columns.target,
        columns.covariates,
    )
    left_out = given.past_covariates
    timed = series_of(given.frame, given.names, columns.freq, left_out, where, columns.date_format)
    if left_out and not quiet:
        say(f"covariates left out, of which fine-tuning learns nothing yet: {listed(left_out)}")
    values = [each.values for each in timed.series]
    wide = len({len(each) for each in values}) == 1 and timed.id_column is None
    names = [each.name for each in timed.series]
    return ItemSource(values, names, len(values) if wide else 1)


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
    folder = None if workdir is None else Path(workdir)
    return fine_tune(start_of(forecaster), source, config, folder, forecaster.engine.mesh, quiet)
