"""`Forecaster`: from any series to forecasts in their units."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float64

from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.data.series import check_levels, positive_int
from timemoe_jax.errors import DataError, listed
from timemoe_jax.forecasting.arguments import for_users, unknown_attribute, whole_number
from timemoe_jax.forecasting.call import Call
from timemoe_jax.forecasting.contexts import Inputs
from timemoe_jax.forecasting.engine import Engine
from timemoe_jax.forecasting.frame_forecast import forecast_frame
from timemoe_jax.forecasting.frames.prepare import prepare_frame
from timemoe_jax.forecasting.intervals.paths import SAMPLING_LEVELS, sample_paths
from timemoe_jax.forecasting.result import Forecast
from timemoe_jax.forecasting.scoring.backtest import Backtest, backtest
from timemoe_jax.forecasting.tunable import Tunable
from timemoe_jax.models.base import ModelConfig
from timemoe_jax.runtime import compilation_cache
from timemoe_jax.runtime.progress import watched

INTERVALS = ("auto", "heads", "calibrated", "conformal")
COVARIATES = ("auto", "adjustment", "variates")


class Forecaster(Tunable):
    """A model that forecasts series of any length over any horizon.

    The forecast of a series does not depend on the others in the call, on their order or on the
    batch size, beyond rounding. Inputs are never modified.

    Attributes:
      engine: the compiled programs.
      config: of the model, in the dtype that it computes in.
      digest: of the stored parameters, where they were loaded.
      origin: the path or the name that they were loaded by; "" where they were not.
      optimizer: what trained them, where that is known.
      tuning: what `fit` has found, of a forecaster that it has made; else None.

    Args:
      config: of the model.
      params: its parameters.
      dtype: to compute in: "float32", "bfloat16", or "auto": bfloat16 where the parameters are
        stored in it and the backend is an accelerator, else float32.
      mesh: devices to spread parameters and batches over, of `partitioning.make_mesh`; None is
        one device.
      disk_cache: whether compiled programs are kept on disk for later processes, where that folder
        can be written and JAX has none: see `runtime.compilation_cache`. TIMEMOE_CACHE=off says no
        for all.

    Raises:
      ConfigError: the dtype is not known.
      ForkError: the process was forked from one that had used JAX.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: nnx.State,
        dtype: str = "auto",
        mesh: jax.sharding.Mesh | None = None,
        disk_cache: bool = True,
    ):
        self._disk_cache = disk_cache
        if disk_cache:
            compilation_cache.use_by_default()
        self.engine = Engine(config, params, dtype, mesh)
        self.config = self.engine.config
        self.digest: str | None = None
        self.origin = ""
        self.optimizer: Mapping[str, Any] | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        dtype: str = "auto",
        mesh: jax.sharding.Mesh | None = None,
        disk_cache: bool = True,
    ) -> "Forecaster":
        """Loads a bundled model, a training run, an Orbax checkpoint or a published folder.

        Args:
          path: "mini" or "nano", the workdir of a run (its newest checkpoint), a folder of
            checkpoints, one checkpoint, or a folder with `config.json` and safetensors.
          dtype, mesh, disk_cache: see the class.

        Raises:
          CheckpointError: it is none of these, or is damaged.
        """
        loaded = load_model(path)
        forecaster = cls(loaded.config, loaded.params, dtype, mesh, disk_cache)
        forecaster.digest, forecaster.optimizer = loaded.digest, loaded.optimizer
        forecaster.origin = os.fspath(path)
        return forecaster

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In the process that a forecaster was sent to: programs are found on disk there, too."""
        self.__dict__.update(state)
        if self._disk_cache:
            compilation_cache.use_by_default()

    if not TYPE_CHECKING:  # a type checker would take any name for one that is there

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there: says which method takes the place of another's."""
            raise unknown_attribute(type(self).__name__, name)

    def __repr__(self) -> str:
        """The size of the model, what it computes in, and how far it sees and forecasts."""
        config, size = self.config, sum(p.size for p in jax.tree.leaves(self.engine.params))
        heads = ", ".join(map(str, config.horizon_lengths))
        quantiles = (
            f", quantiles {listed(config.quantile_levels)}" if config.quantile_levels else ""
        )
        return (
            f"<Forecaster: {config.family}, {size:,} parameters in {config.dtype}, context at most "
            f"{config.longest_context or config.max_position_embeddings} points, heads of {heads} "
            f"points{quantiles}>"
        )

    @property
    def model(self) -> Any:
        """The model itself: `model(x [B, T]).predictions[P]` is [B, T, P]."""
        return nnx.merge(self.engine.graph, self.engine.params)

    @property
    def joint(self) -> bool:
        """Whether the model reads the series of an item together."""
        return self.engine.joint

    @property
    def num_programs(self) -> int:
        """How many programs were compiled, or loaded from a cache, so far."""
        return self.engine.num_programs

    @for_users
    @watched
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
        non_negative: bool = False,
        marks: Any = None,
    ) -> Forecast:
        """Forecasts each series from its own last points.

        A missing value (NaN) is masked, never imputed, and keeps its place in time; where the last
        values of a series are missing, they are forecast too, so that the result always follows
        the end of the input. A model without masks (Seg-MoE, MoHETS) reads missing values as the
        line between their neighbors, and `filled` of the result counts them.

        Args:
          inputs: one series [T], several [N, T], a list of series of different lengths, or
            multivariate series [N, C, T]. A joint model, such as a Time Tracker, forecasts each
            channel from all of its series; any other forecasts every channel by itself.
          horizon: points to forecast.
          context_length: read at most so many last points; by default as many as the model's
            positions hold beside the horizon.
          normalize: "instance" standardizes each context (population deviation; a constant series
            is forecast as that constant); "none" feeds the values as they are.
          quantile_levels: rising, between 0 and 1; also returns these quantiles.
          batch_size: series per step, or "auto": what fits in memory. Halved where it does not.
          progress: whether to show a progress bar.
          names: what to call each series in an error.
          intervals: where quantiles come from. "heads": the model's own, of levels within those
            that it was trained with. "calibrated": the same, widened or narrowed by how they did at
            earlier points of each series. "conformal": the errors of earlier forecasts within each
            series (`forecasting.intervals`), which needs longer series and takes longer. "auto":
            heads if the model has them.
          calibration: series, as `inputs`, whose errors calibrate instead of each series' own; only
            with "conformal".
          non_negative: of values that cannot be below 0: points and quantiles below it become 0.
          marks: of a model with covariates, the calendar of the T points of each item and of the
            `horizon` after them, [N, M, T + horizon] (`data.calendar.calendar_marks`); its variates
            are then read together. Without marks it forecasts every series by itself.

        Returns:
          point forecasts and quantiles, float64, in the shape of the input.

        Raises:
          DataError: a series, the horizon or an option cannot be used.
        """
        call = self._call(inputs, names, horizon, context_length, normalize, batch_size, progress)
        source = self._intervals(intervals, quantile_levels, calibration)
        if marks is not None:
            call = call.with_marks(marks, source)
        levels = () if source is None else tuple(check_levels(quantile_levels).tolist())
        forecasts = call.forecast()
        quantiles = call.quantiles(forecasts, source, levels, calibration)
        return call.result(forecasts.point, quantiles, levels, source, non_negative)

    @for_users
    @watched
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
        non_negative: bool = False,
    ) -> Float64[np.ndarray, "N *C S H"]:
        """Draws sample paths, whose sums and maxima over time have honest intervals.

        The draws of a step follow its quantiles. The errors of earlier forecasts within the series
        decide which draws make a path: see `forecasting.intervals.paths`.

        Args:
          inputs: as for `forecast`.
          horizon: points to forecast.
          num_samples: paths of each series.
          seed: not negative; with a series' values it determines its paths.
          context_length, normalize, batch_size, progress, names, intervals: as for `forecast`.
          non_negative: as for `forecast`.

        Returns:
          paths [N, num_samples, horizon], or [N, C, num_samples, horizon], in the units of the
          input.

        Raises:
          DataError: as `forecast` does, or a series is too short to have earlier forecasts.
        """
        num_samples = positive_int("num_samples", num_samples)
        seed = whole_number("seed", seed)
        call = self._call(inputs, names, horizon, context_length, normalize, batch_size, progress)
        source = self._intervals(intervals, SAMPLING_LEVELS, None)
        forecasts = call.forecast()
        calibration = call.calibrate(SAMPLING_LEVELS)
        if source == "conformal":
            quantiles, levels = calibration.quantiles(forecasts.point), SAMPLING_LEVELS
        else:
            levels = self.config.quantile_levels
            quantiles = call.head_quantiles(forecasts, levels, source == "calibrated")
        errors, series, labels = calibration.residuals, call.inputs.series, call.inputs.names
        paths = sample_paths(quantiles, levels, errors, num_samples, seed, series, labels)
        return call.inputs.shaped(np.maximum(paths, 0.0) if non_negative else paths)

    @for_users
    @watched
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
        folds = positive_int("folds", folds)
        season = None if season is None else positive_int("season", season)
        call = self._call(inputs, names, horizon, context_length, normalize, batch_size, progress)
        series, labels, length = call.inputs.series, call.inputs.names, call.settings.context_length
        predict, together = call.predict, call.together()
        return backtest(series, horizon, folds, predict, length, season, labels, together)

    @for_users
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
          holdout: forecast the last horizon of each series, and draw it too.
          names: titles.
          options: of `forecast`, such as `context_length`.

        Returns:
          the path.

        Raises:
          DataError: as `forecast` does, or a series is no longer than a horizon to hold out.
        """
        from timemoe_jax.forecasting.pictures import plot_series

        horizon, parsed = positive_int("horizon", horizon), Inputs.parse(inputs, names)
        context = self.usable_context(options.get("context_length"), horizon)
        options["quantile_levels"] = quantile_levels
        return plot_series(
            path,
            functools.partial(self.forecast, horizon=horizon, **options),
            parsed.series,
            parsed.names,
            horizon if holdout else 0,
            context_length=context,
            items=parsed.item_numbers if self.joint else None,
        )

    @for_users
    @watched
    def predict_df(
        self,
        df: Any,
        horizon: int,
        id_column: Any = None,
        timestamp_column: Any = None,
        target: Any = None,
        freq: Any = None,
        quantile_levels: Sequence[float] | None = None,
        future_df: Any = None,
        past_covariates: Any = (),
        date_format: str | None = None,
        covariates_as: str = "auto",
        **options: Any,
    ) -> Any:
        """Forecasts the series of a data frame, on their own calendar.

        Args:
          df: a pandas DataFrame, long or wide: see `forecasting.frames.frames.series_of`.
          horizon: points to forecast.
          id_column, timestamp_column, target: which columns are which, by their names, which need
            not be text; by default found by name. `target` may be a list.
          freq: the step between times, such as "h", "MS" or `pandas.DateOffset(months=1)`; by
            default found for each series.
          quantile_levels: also forecast these quantiles.
          future_df: covariates that are known for the times to forecast. Its columns besides ids
            and times are covariates, of which `df` holds the past.
          past_covariates: columns of `df`, or one, that are covariates without a known future.
          date_format: the layout of dates that are text or whole numbers, such as "%d/%m/%Y" or
            "%Y%m%d"; or "s", "ms", "us", "ns" for numbers since 1970, "excel" for serial numbers.
          covariates_as: "adjustment": what they contribute to each series is estimated from it, and
            taken out before the forecast; "variates", of a joint model: it reads them beside the
            targets of their id, and those with a future ahead of them; "auto": variates if the
            model is joint.
          options: of `forecast`, such as `context_length` and `non_negative`.

        A model with covariates reads the calendar of the times, where the frame holds its variates,
        as columns or as ids with the same times, and no quantiles are asked for; else it forecasts
        every series by itself, without the calendar. `attrs["calendar"]` says which.

        Returns:
          a pandas DataFrame with columns id, time, "target_name", "predictions" and a level each;
          ids and times are of the types that they came in. Its `attrs` hold the frequency ("freq",
          of each series where they differ), and count what was filled, missing and out of order;
          "joint" is there, and True, if the targets of an id were read together.

        Raises:
          DataError: the frame, a covariate or an option cannot be used, or the dates can be read in
            more than one way.
        """
        joint = self.joint
        prepared = prepare_frame(
            df,
            positive_int("horizon", horizon),
            as_variates=_as_variates(covariates_as, joint),
            future_df=future_df,
            past_covariates=past_covariates,
            freq=freq,
            id_column=id_column,
            timestamp_column=timestamp_column,
            target=target,
            date_format=date_format,
        )
        options["quantile_levels"] = quantile_levels
        variates = self.engine.family.covariate_variates(self.config)
        options |= {"joint": joint, "variates": variates}
        return forecast_frame(self.forecast, prepared, **options).frame

    def warmup(
        self,
        horizons: Sequence[int],
        context_lengths: Sequence[int],
        batch_sizes: Sequence[int] = (1,),
    ) -> int:
        """Compiles the programs of later calls, so that these need not wait for them.

        Args:
          horizons: of those calls.
          context_lengths: of their series, as far as the model reads them.
          batch_sizes: how many series they hold.

        Returns:
          how many programs were compiled.
        """
        before = self.engine.num_programs
        for horizon in horizons:
            for length in context_lengths:
                usable = self.usable_context(None, positive_int("horizon", horizon))
                length = min(positive_int("context_length", length), usable)
                for count in batch_sizes:
                    self.engine.warmup(length, horizon, positive_int("batch_size", count))
        return self.engine.num_programs - before

    def usable_context(self, context_length: int | None, horizon: int) -> int:
        """The context that a forecast reads: the one given, or what the positions have room for.

        Raises:
          DataError: context and horizon together exceed `max_position_embeddings`.
        """
        return self.engine.usable_context(context_length, horizon)

    def _call(self, inputs: Any, names: Sequence[str] | None, horizon: int, *options: Any) -> Call:
        """Checks the arguments that `forecast`, `sample` and `backtest` share."""
        parsed = Inputs.parse(inputs, names)
        horizon = positive_int("horizon", horizon)
        parsed.warn_if_short(horizon)
        settings = self.engine.settings(horizon, *options)
        return Call(self.engine, parsed, settings)

    def _intervals(
        self, asked: str, levels: Sequence[float] | None, calibration: Any
    ) -> str | None:
        """Where quantiles come from, if any are asked for."""
        if asked not in INTERVALS:
            names = f"{', '.join(INTERVALS[:-1])} or {INTERVALS[-1]}"
            raise DataError(f"intervals must be {names}, but is {asked!r}")
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
        return source if levels is not None else None


def _as_variates(asked: str, joint: bool) -> bool:
    """Whether covariates are read as variates."""
    if asked not in COVARIATES:
        raise DataError(f"covariates_as must be one of {', '.join(COVARIATES)}, but is {asked!r}")
    if asked == "variates" and not joint:
        raise DataError(
            "covariates_as is 'variates', but the model reads each series by itself; give "
            "'adjustment', or a joint model"
        )
    return joint if asked == "auto" else asked == "variates"
