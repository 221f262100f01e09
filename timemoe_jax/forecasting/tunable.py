"""The part of `Forecaster` that fine-tunes it, and that saves what came of it."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from flax import nnx

from timemoe_jax.checkpoints.adapters import (
    Adapter,
    check_base,
    merge,
    read_adapter,
    write_adapter,
)
from timemoe_jax.checkpoints.checksums import weights_digest
from timemoe_jax.checkpoints.load import save_model
from timemoe_jax.checkpoints.step import new_folder
from timemoe_jax.forecasting.arguments import for_users
from timemoe_jax.forecasting.engine import Engine
from timemoe_jax.models.base import ModelConfig

if TYPE_CHECKING:
    from timemoe_jax.training.finetuning.report import TuningReport


class Tunable:
    """What a forecaster has for fine-tuning; `Forecaster` says what its attributes are."""

    engine: Engine
    config: ModelConfig
    digest: str | None
    optimizer: Mapping[str, Any] | None
    tuning: "TuningReport | None" = None
    _disk_cache: bool
    _adapter: Adapter | None = None

    @for_users
    def fit(
        self,
        data: Any,
        horizon: int,
        learning_rate: float | str = "auto",
        names: Sequence[str] | None = None,
        id_column: Any = None,
        timestamp_column: Any = None,
        target: Any = None,
        freq: Any = None,
        covariates: Any = (),
        date_format: str | None = None,
        past_covariates: Any = (),
        known_covariates: Any = (),
        workdir: str | os.PathLike[str] | None = None,
        progress: bool = True,
        **tuning: Any,
    ) -> Self:
        """Fine-tunes on series; the result never forecasts their held-out ends worse than this.

        The last fifth of each series, at least a horizon, is held out. Before the first update and
        regularly afterwards it is forecast, and the best parameters are kept, those of the start
        included. This forecaster is left as it is.

        Args:
          data: whatever `forecast` and `predict_df` take: arrays, lists, a data frame; or the path
            of a file or a folder.
          horizon: points to forecast.
          learning_rate: the largest, or "auto": the largest of a few that does no harm in a trial.
          names: as for `forecast`.
          id_column, timestamp_column, target, freq, date_format: as for `predict_df`.
          covariates: columns of a data frame that are left out.
          past_covariates: columns, or one, that a joint model which mixes learns to read beside the
            targets of their id, and that are not scored.
          known_covariates: the same of columns that are known ahead, as those of `future_df` are to
            `predict_df`; the held-out forecasts read them over the horizon.
          workdir: a folder for the log, the report and the result, in which the same call goes on
            where it was stopped; None writes nothing.
          progress: whether to print what is done.
          tuning: fields of `FinetuneConfig`, such as `mode="lora"` and `num_steps=100`. Of arrays
            [N, C, T], `known_variates=1` says that the last channel is known ahead.

        Returns:
          a new forecaster, whose `tuning` is the report.

        Raises:
          DataError: the data cannot be read, or are too few or too short to learn from.
          ConfigError: a field is not known or not possible.
        """
        from timemoe_jax.forecasting import fitting

        columns = fitting.Columns(
            id_column,
            timestamp_column,
            target,
            freq,
            covariates,
            date_format,
            past_covariates,
            known_covariates,
        )
        config = fitting.tuning_config(horizon, learning_rate, tuning)
        tuned = fitting.fit(
            self, data, config, names=names, columns=columns, workdir=workdir, quiet=not progress
        )
        model = dataclasses.replace(tuned.config, dtype=self.config.dtype)
        return self._with(model, tuned.params, tuned.adapter, tuned.report)

    def adapted(self, folder: str | os.PathLike[str]) -> Self:
        """This model with an adapter that was saved in a folder.

        Raises:
          CheckpointError: there is none, it is damaged, or it belongs to another model.
        """
        adapter = read_adapter(folder)
        check_base(adapter, self.digest or weights_digest(self.engine.params), "this model")
        return self._with(self.config, merge(self.engine.params, adapter), adapter, None)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes what `from_pretrained` reads: an adapter by itself, else all parameters.

        Raises:
          CheckpointError: the folder holds a model, or cannot be written.
        """
        if self._adapter is None:
            self.merge(folder)
        else:
            write_adapter(new_folder(folder), self._adapter)

    def merge(self, folder: str | os.PathLike[str]) -> None:
        """Writes plain parameters, an adapter merged into them, as a checkpoint.

        Raises:
          CheckpointError: the folder holds a model, or cannot be written.
        """
        save_model(folder, self.config, self.engine.params)

    def _with(
        self,
        config: ModelConfig,
        params: nnx.State,
        adapter: Adapter | None,
        report: "TuningReport | None",
    ) -> Self:
        other: Any = cast(Any, type(self))(
            config, params, self.config.dtype, self.engine.mesh, self._disk_cache
        )
        other.digest, other.optimizer = weights_digest(params), self.optimizer
        other.tuning, other._adapter = report, adapter
        return other
