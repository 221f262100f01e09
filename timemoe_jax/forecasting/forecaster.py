"""`Forecaster`: any series in, forecasts out, in the units of the input."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float64, Int

from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.config import NORMALIZATIONS
from timemoe_jax.data.series import check_levels, positive_int
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.contexts import Inputs
from timemoe_jax.forecasting.engine import Engine, Forecasts
from timemoe_jax.forecasting.frames.prepare import prepare_frame
from timemoe_jax.forecasting.intervals.conformal import Calibrated, conformal_offsets
from timemoe_jax.forecasting.intervals.heads import at_levels, calibrated
from timemoe_jax.forecasting.intervals.paths import SAMPLING_LEVELS, sample_paths
from timemoe_jax.forecasting.scoring.backtest import Backtest, backtest
from timemoe_jax.models.base import ModelConfig
from timemoe_jax.plotting import MAX_PANELS

INTERVALS = ("auto", "heads", "calibrated", "conformal")


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast:
    """What `Forecaster.forecast` returns.

    Attributes:
      point: the forecasts, in the units of the input; [N, C, H] where that was [N, C, T].
      context_length: at most so many of each series' last points were read.
      missing: missing values among them.
      quantiles: in the same units; None unless asked for.
      quantile_levels: of the quantiles [Q].
      intervals: where the quantiles are from: "heads", "calibrated" or "conformal".
      channelwise: whether the input was multivariate, and each channel was forecast by itself.
    """

    point: Float64[np.ndarray, "N *C H"]
    context_length: int
    missing: Int[np.ndarray, "N *C"]
    quantiles: Float64[np.ndarray, "N *C H Q"] | None = None
    quantile_levels: tuple[float, ...] = ()
    intervals: str | None = None
    channelwise: bool = False


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What all forecasts of a call have in common."""

    context_length: int
    normalize: str
    batch_size: int | str
    progress: bool


class Forecaster:
    """A model that forecasts any series, any horizon.

    The forecast of a series does not depend on the others in the call, on their order or on the
    batch size, beyond rounding. Inputs are never modified.

    Attributes:
      config: of the model, in the dtype that it computes in.
      digest: of the stored parameters, where they were loaded.

    Args:
      config: of the model.
      params: its parameters.
      dtype: to compute in: "float32", "bfloat16", or "auto": bfloat16 where the parameters are
        stored in it and the backend is an accelerator, else float32.
      mesh: devices to spread parameters and batches over, of `partitioning.make_mesh`; None is
        one device.

    Raises:
      ConfigError: the dtype is not known.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: nnx.State,
        dtype: str = "auto",
        mesh: jax.sharding.Mesh | None = None,
    ):
        self._engine = Engine(config, params, dtype, mesh)
        self.config = self._engine.config
        self.digest: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        dtype: str = "auto",
        mesh: jax.sharding.Mesh | None = None,
    ) -> "Forecaster":
        """Loads a bundled model, a training run, an Orbax checkpoint or a published folder.

        Args:
          path: "nano", the workdir of a run (its newest checkpoint), a folder of checkpoints, one
            checkpoint, or a folder with `config.json` and safetensors.
          dtype: see the class.
          mesh: see the class.

        Raises:
          CheckpointError: it is none of these, or is damaged.
        """
        loaded = load_model(path)
        forecaster = cls(loaded.config, loaded.params, dtype, mesh)
        forecaster.digest = loaded.digest
        return forecaster

    @property
    def model(self) -> Any:
        """The model itself: `model(x [B, T]).predictions[P]` is [B, T, P]."""
        return nnx.merge(self._engine.graph, self._engine.params)

    @property
    def num_programs(self) -> int:
        """How many programs were compiled, or loaded from a cache, so far."""
        return self._engine.num_programs

    def forecast(
        self,
        inputs: Any,
        horizon: int,
        context_length: int | None = None,
        normalize: str = "instance",
        quantile_levels: Sequence[float] | None = None,
        batch_size: int | str = "auto",
        progress: bool = False,
        names: Sequence[str] | None = None,
        intervals: str = "auto",
        calibration: Any = None,
    ) -> Forecast:
        """Forecasts each series from its own last points.

        A missing value (NaN) is masked, never imputed, and keeps its place in time; where the last
        values of a series are missing, they are forecast too, so that the result always follows
        the end of the input.

        Args:
          inputs: one series [T], several [N, T], a list of series of different lengths, or
            multivariate series [N, C, T], of which every channel is forecast by itself.
          horizon: points to forecast.
          context_length: read at most so many last points; by default as many as the model's
            positions hold beside the horizon.
          normalize: "instance" z-scores each context (population deviation; a constant series is
            forecast as that constant); "none" feeds the values as they are.
          quantile_levels: rising, between 0 and 1; also returns these quantiles.
          batch_size: series per step, or "auto": what fits in memory. Halved where it does not.
          progress: whether to show a progress bar.
          names: what to call each series in an error.
          intervals: where quantiles come from. "heads": the model's own, of levels within those
            that it was trained with. "calibrated": the same, widened or narrowed by how they did at
            earlier points of each series. "conformal": the errors of earlier forecasts within each
            series (`forecasting.intervals`), which needs longer series and takes longer. "auto":
            heads if the model has them.
          calibration: series, as `inputs`, whose errors are taken instead of each series' own; for
            "conformal" alone.

        Returns:
          point forecasts and quantiles, float64, in the shape of the input.

        Raises:
          DataError: a series, the horizon or an option cannot be used.
        """
        given = Inputs.parse(inputs, names)
        horizon = positive_int("horizon", horizon)
        settings = self._settings(horizon, context_length, normalize, batch_size, progress)
        source = self._intervals(intervals, quantile_levels, calibration)
        made = self._run(given, horizon, settings)
        quantiles, levels = None, ()
        if quantile_levels is not None:
            levels = tuple(check_levels(quantile_levels).tolist())
            if source == "conformal":
                found = self._calibrated(given, horizon, levels, settings, calibration)
                quantiles = found.quantiles(made.point)
            else:
                quantiles = self._of_heads(given, made, levels, settings, source == "calibrated")
        return Forecast(
            point=given.shaped(made.point),
            context_length=settings.context_length,
            missing=given.missing(settings.context_length),
            quantiles=given.shaped(quantiles),
            quantile_levels=levels,
            intervals=source if quantile_levels is not None else None,
            channelwise=given.channels is not None,
        )

    def sample(
        self,
        inputs: Any,
        horizon: int,
        num_samples: int = 100,
        seed: int = 0,
        context_length: int | None = None,
        normalize: str = "instance",
        batch_size: int | str = "auto",
        progress: bool = False,
        names: Sequence[str] | None = None,
        intervals: str = "auto",
    ) -> Float64[np.ndarray, "N *C S H"]:
        """Draws sample paths, whose sums and maxima over time have honest intervals.

        Each step's draws follow its quantiles; which go together is taken from the errors of
        earlier forecasts within the series: see `forecasting.sample_paths`.

        Args:
          inputs: as for `forecast`.
          horizon: points to forecast.
          num_samples: paths of each series.
          seed: not negative; with a series' values it determines its paths.
          context_length, normalize, batch_size, progress, names, intervals: as for `forecast`.

        Returns:
          paths [N, num_samples, horizon], or [N, C, num_samples, horizon], in the units of the
          input.

        Raises:
          DataError: as `forecast` does, or a series is too short to have earlier forecasts.
        """
        given = Inputs.parse(inputs, names)
        horizon = positive_int("horizon", horizon)
        settings = self._settings(horizon, context_length, normalize, batch_size, progress)
        source = self._intervals(intervals, SAMPLING_LEVELS, None)
        made = self._run(given, horizon, settings)
        found = self._calibrated(given, horizon, SAMPLING_LEVELS, settings, None)
        if source == "conformal":
            quantiles, levels = found.quantiles(made.point), SAMPLING_LEVELS
        else:
            levels = self.config.quantile_levels
            quantiles = self._of_heads(given, made, levels, settings, source == "calibrated")
        errors = found.residuals
        return given.shaped(
            sample_paths(quantiles, levels, errors, num_samples, seed, given.series, given.names)
        )

    def backtest(
        self,
        inputs: Any,
        horizon: int,
        folds: int = 3,
        season: int | None = None,
        context_length: int | None = None,
        normalize: str = "instance",
        batch_size: int | str = "auto",
        progress: bool = False,
        names: Sequence[str] | None = None,
    ) -> Backtest:
        """Scores the model on the last `folds` horizons of each series, beside seasonal naive.

        Args:
          inputs: as for `forecast`.
          horizon: points of a fold.
          folds: of each series; they do not overlap.
          season: the steps of a season; None finds it in each series.
          context_length, normalize, batch_size, progress, names: as for `forecast`.

        Raises:
          DataError: as `forecast` does, or a series is too short.
        """
        given = Inputs.parse(inputs, names)
        horizon = positive_int("horizon", horizon)
        settings = self._settings(horizon, context_length, normalize, batch_size, progress)
        predict = functools.partial(self._predict, settings)
        length = settings.context_length
        return backtest(given.series, horizon, folds, predict, length, season, given.names)

    def plot(
        self,
        path: str | os.PathLike[str],
        inputs: Any,
        horizon: int,
        quantile_levels: Sequence[float] | None = None,
        holdout: bool = False,
        names: Sequence[str] | None = None,
        **options: Any,
    ) -> Path:
        """Draws forecasts of the first twelve series: context, forecast, bands.

        Args:
          path: of the picture, such as a .png or .svg.
          inputs: as for `forecast`.
          horizon: points to forecast.
          quantile_levels: levels to draw as bands, such as 0.1 and 0.9 for one of 80%.
          holdout: forecast the last horizon of each series, and draw what came.
          names: titles.
          options: of `forecast`, such as `context_length`.

        Returns:
          the path.

        Raises:
          DataError: as `forecast` does, or a series is no longer than a horizon to hold out.
        """
        from timemoe_jax.forecasting.pictures import draw_forecasts, hold_out

        given, truths = Inputs.parse(inputs, names), None
        series = given.series
        if holdout:
            series, truths = hold_out(series, positive_int("horizon", horizon), given.names)
        series, titles = series[:MAX_PANELS], given.names[:MAX_PANELS]
        options = {**options, "quantile_levels": quantile_levels, "names": titles}
        out = self.forecast(series, horizon, **options)
        contexts = [each[-out.context_length :] for each in series]
        levels = out.quantile_levels
        return draw_forecasts(path, titles, contexts, out.point, out.quantiles, levels, truths)

    def predict_df(
        self,
        df: Any,
        horizon: int,
        id_column: str | None = None,
        timestamp_column: str | None = None,
        target: str | Sequence[str] | None = None,
        freq: Any = None,
        quantile_levels: Sequence[float] | None = None,
        future_df: Any = None,
        past_covariates: Sequence[str] = (),
        **options: Any,
    ) -> Any:
        """Forecasts the series of a data frame, on their own calendar.

        Args:
          df: a pandas DataFrame, long or wide: see `forecasting.time_frames.read_frame`.
          horizon: points to forecast.
          id_column, timestamp_column, target: which columns are which; by default found by name.
          freq: the step between times; by default found for each series.
          quantile_levels: also forecast these quantiles.
          future_df: covariates that are known for the times to forecast. Its columns besides ids
            and times are covariates, of which `df` holds the past.
          past_covariates: columns of `df` that are covariates without a known future.
          options: of `forecast`, such as `context_length`.

        Returns:
          a pandas DataFrame with columns id, time, "target_name", "predictions" and a level each;
          its `attrs` count what was filled, missing and out of order.

        Raises:
          DataError: the frame, a covariate or an option cannot be used.
        """
        given = prepare_frame(
            df,
            positive_int("horizon", horizon),
            future_df=future_df,
            past_covariates=past_covariates,
            freq=freq,
            id_column=id_column,
            timestamp_column=timestamp_column,
            target=target,
        )
        options = {"names": given.names, **options}
        out = self.forecast(given.series, horizon, quantile_levels=quantile_levels, **options)
        quantiles = None if out.quantiles is None else given.complete(out.quantiles)
        return given.to_frame(given.complete(out.point), quantiles, out.quantile_levels)

    def warmup(
        self,
        horizons: Sequence[int],
        context_lengths: Sequence[int],
        batch_sizes: Sequence[int] = (1,),
    ) -> int:
        """Compiles what later calls will need, so that none of them waits for it.

        Args:
          horizons: that will be forecast.
          context_lengths: of the series, as far as the model reads them.
          batch_sizes: how many series calls will hold.

        Returns:
          how many programs were compiled.
        """
        before = self._engine.num_programs
        for horizon in horizons:
            for length in context_lengths:
                usable = self.usable_context(None, positive_int("horizon", horizon))
                length = min(positive_int("context_length", length), usable)
                for count in batch_sizes:
                    count = positive_int("batch_size", count)
                    self._engine.warmup(length, horizon, "auto", count)
        return self._engine.num_programs - before

    def usable_context(self, context_length: int | None, horizon: int) -> int:
        """The context that a forecast reads: the one given, or what the positions have room for.

        Raises:
          DataError: context and horizon together exceed `max_position_embeddings`.
        """
        limit = self.config.max_position_embeddings
        if context_length is None:
            context_length = min(limit - horizon, self.config.default_context or limit)
            if context_length < 1:
                raise DataError(
                    f"horizon {horizon} leaves no room for a context within "
                    f"max_position_embeddings {limit}"
                )
            return context_length
        context_length = positive_int("context_length", context_length)
        if context_length + horizon > limit:
            raise DataError(
                f"context_length {context_length} + horizon {horizon} exceeds "
                f"max_position_embeddings {limit}"
            )
        return context_length

    def _settings(
        self,
        horizon: int,
        context_length: int | None,
        normalize: str,
        batch_size: int | str,
        progress: bool,
    ) -> _Settings:
        if normalize not in NORMALIZATIONS:
            raise DataError(
                f"normalize must be {' or '.join(NORMALIZATIONS)}, but is {normalize!r}"
            )
        if batch_size != "auto":
            batch_size = positive_int("batch_size", batch_size)
        usable = self.usable_context(context_length, horizon)
        return _Settings(usable, normalize, batch_size, progress)

    def _intervals(
        self, asked: str, levels: Sequence[float] | None, calibration: Any
    ) -> str | None:
        """Where quantiles come from, where any are asked for."""
        if asked not in INTERVALS:
            raise DataError(f"intervals must be {', '.join(INTERVALS)}, but is {asked!r}")
        has_heads = bool(self.config.quantile_levels)
        if asked in ("heads", "calibrated") and not has_heads:
            raise DataError(
                f"intervals is {asked!r}, but the model was trained without quantile_levels; "
                "'conformal' needs none"
            )
        source = asked if asked != "auto" else "heads" if has_heads else "conformal"
        if calibration is not None and asked == "auto":
            source = "conformal"
        if calibration is not None and (source != "conformal" or levels is None):
            raise DataError(
                "calibration is given, but nothing is calibrated: it is for quantile_levels with "
                "intervals 'conformal'"
            )
        return source

    def _run(self, given: Inputs, horizon: int, settings: _Settings) -> Forecasts:
        contexts = given.contexts(settings.context_length)
        return self._engine.run(
            contexts, horizon, settings.normalize, settings.batch_size, settings.progress
        )

    def _predict(
        self, settings: _Settings, contexts: list[np.ndarray], horizon: int
    ) -> Float64[np.ndarray, "N H"]:
        """Point forecasts from rolling contexts, as `forecasting.rolling_origins` asks for them."""
        return self._run(Inputs.parse(contexts), horizon, settings).point

    def _of_heads(
        self,
        given: Inputs,
        made: Forecasts,
        levels: tuple[float, ...],
        settings: _Settings,
        calibrate: bool,
    ) -> Float64[np.ndarray, "N H Q"]:
        assert made.quantiles is not None
        own = self.config.quantile_levels
        if not calibrate:
            return at_levels(made.quantiles, own, levels)

        def predict(contexts: list[np.ndarray], horizon: int) -> Any:
            return self._run(Inputs.parse(contexts), horizon, settings).quantiles

        length = settings.context_length
        return calibrated(made.quantiles, own, levels, given.series, predict, length, given.names)

    def _calibrated(
        self,
        given: Inputs,
        horizon: int,
        levels: Sequence[float],
        settings: _Settings,
        calibration: Any,
    ) -> Calibrated:
        others = None if calibration is None else Inputs.parse(calibration).series
        predict = functools.partial(self._predict, settings)
        length = settings.context_length
        return conformal_offsets(
            given.series, horizon, levels, predict, length, others, given.names
        )
