"""One call of a forecaster: its series, its settings, and what is computed of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.contexts import Context, Inputs
from timemoe_jax.forecasting.engine import Engine, Forecasts, Settings
from timemoe_jax.forecasting.intervals.along import Along, Wanted
from timemoe_jax.forecasting.intervals.conformal import (
    Calibrated,
    calibrated_quantiles,
    conformal_offsets,
)
from timemoe_jax.forecasting.intervals.quantiles import at_levels
from timemoe_jax.forecasting.intervals.rolling import Together
from timemoe_jax.forecasting.result import Forecast


class Call(NamedTuple):
    """The series of a call and what all their forecasts have in common."""

    engine: Engine
    inputs: Inputs
    settings: Settings
    marks: Any = None  # of the calendar [N, M, S], for a model that reads them

    def with_marks(self, marks: Any, source: str | None) -> "Call":
        """The same with marks, which are checked beside the series that they are of."""
        variates = self.engine.family.covariate_variates(self.engine.config)
        inputs, horizon = self.inputs, self.settings.horizon
        if not variates:
            raise DataError("marks are given, but the model has no covariates; leave them out")
        if source is not None:
            raise DataError(
                "marks are given together with quantile_levels, but the errors that make quantiles "
                "would be of forecasts without them; give one of the two"
            )
        if inputs.channels != variates:
            raise DataError(
                f"marks are given, but inputs is not [N, {variates}, T]: with marks the model "
                f"reads its {variates} variates together, in the order of its training"
            )
        array = np.asarray(marks, np.float32)
        array = array[None] if array.ndim == 2 else array
        items, length = len(inputs.series) // variates, len(inputs.series[0])
        shapes = [(items, rows, length + horizon) for rows in (4, 5)]
        if array.shape not in shapes or not np.isfinite(array).all():
            raise DataError(
                f"marks must be finite numbers [N, M, T + horizon], which is {shapes[1]} or, of "
                f"hours, {shapes[0]}, but is {array.shape}"
            )
        return self._replace(marks=array)

    @property
    def contexts(self) -> list[Context]:
        """What is read of each series."""
        return self.inputs.contexts(self.settings.context_length, self.marks)

    def forecast(self) -> Forecasts:
        """Forecasts the horizon after each series."""
        found, count = self.engine.run(self.contexts, self.settings), len(self.inputs.series)
        quantiles = None if found.quantiles is None else found.quantiles[:count]
        return Forecasts(found.point[:count], quantiles)

    def predict(self, contexts: list[Context], horizon: int) -> Float64[np.ndarray, "N H"]:
        """Point forecasts from earlier contexts, a `Predict`; the horizon is that of the call."""
        return self.engine.run(contexts, self.settings).point

    def predict_quantiles(self, contexts: list[Context], horizon: int) -> Any:
        """As `predict`, but [N, H, Q] at the levels of the model's heads."""
        return self.engine.run(contexts, self.settings).quantiles

    def quantiles(
        self, forecasts: Forecasts, source: str | None, levels: tuple[float, ...], others: Any
    ) -> Float64[np.ndarray, "N H Q"] | None:
        """Quantiles from where `source` says, calibrated by `others` if given; None without one."""
        if source is None:
            return None
        if source == "conformal":
            given = None if others is None else Inputs.parse(others)
            return self.calibrate(levels, given).quantiles(forecasts.point)
        return self.head_quantiles(forecasts, levels, source == "calibrated")

    def result(
        self,
        point: Float64[np.ndarray, "N H"],
        quantiles: Float64[np.ndarray, "N H Q"] | None,
        levels: tuple[float, ...],
        source: str | None,
        non_negative: bool,
    ) -> Forecast:
        """What the caller gets, in the shape of the input."""
        least = 0.0 if non_negative else -np.inf
        shaped, several = self.inputs.shaped, self.inputs.channels is not None
        joint = self.engine.joint and (several or self.inputs.items is not None)
        return Forecast(
            point=shaped(np.maximum(point, least)),
            context_length=self.settings.context_length,
            missing=self.inputs.missing(self.settings.context_length),
            quantiles=None if quantiles is None else shaped(np.maximum(quantiles, least)),
            quantile_levels=levels,
            intervals=source,
            channelwise=several and not joint,
            joint=joint,
            names=tuple(self.inputs.names),
            filled=self._filled(),
        )

    def _filled(self) -> Any:
        """How many points the model read that were filled in, where it has no mask for them."""
        family, config = self.engine.family, self.engine.config
        if not family.encoder:
            return None
        shortest = family.shortest_context(config)
        counts = [
            int(np.isnan(c.values).sum()) + max(0, shortest - len(c.values)) for c in self.contexts
        ]
        return self.inputs.shaped(np.array(counts))

    def calibrate(self, levels: Sequence[float], others: Inputs | None = None) -> Calibrated:
        """Calibrates on earlier errors of each series, or on those of other series."""
        return conformal_offsets(
            self.inputs.series,
            self.settings.horizon,
            levels,
            self.predict,
            self.settings.context_length,
            None if others is None else others.series,
            self.inputs.names,
            along=self.along(lambda said: said.point),
            together=self.together(others),
        )

    def together(self, others: Inputs | None = None) -> Together | None:
        """Which series of the call, or which others, the model reads at once; None: no two."""
        inputs = self.inputs if others is None else others
        items = inputs.item_numbers if self.engine.joint else None
        return None if items is None else Together(items, inputs.beside)

    def along(self, of: Callable[[Forecasts], Any]) -> Along | None:
        """How to read all origins of a series in few passes, if the model can."""
        horizon = self.settings.horizon
        if not self.engine.reads_along(0, horizon):
            return None

        def read(contexts: list[Context], wanted: list[Wanted]) -> list[np.ndarray]:
            return [of(said) for said in self.engine.along(contexts, wanted, self.settings)]

        return Along(read, lambda gap: self.engine.reads_along(gap, horizon))

    def head_quantiles(
        self, forecasts: Forecasts, levels: tuple[float, ...], calibrated: bool
    ) -> Float64[np.ndarray, "N H Q"]:
        """Quantiles of the model's heads at some levels, calibrated by earlier errors or not."""
        assert forecasts.quantiles is not None
        model_levels = self.engine.config.quantile_levels
        if not calibrated:
            return at_levels(forecasts.quantiles, model_levels, levels)
        return calibrated_quantiles(
            forecasts.quantiles,
            model_levels,
            levels,
            self.inputs.series,
            self.predict_quantiles,
            self.settings.context_length,
            self.inputs.names,
            self.along(lambda said: said.quantiles),
            self.together(),
        )
