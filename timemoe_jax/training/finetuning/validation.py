"""Forecasts of what is held out, scored: by these alone it is decided what is kept."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float64, Int64

from timemoe_jax.models.base import ModelConfig, abstract_model, family_of
from timemoe_jax.models.decoding import decode_as
from timemoe_jax.runtime import partitioning
from timemoe_jax.training.finetuning.config import FinetuneConfig
from timemoe_jax.training.finetuning.start import loss_of
from timemoe_jax.training.finetuning.trainable import assemble
from timemoe_jax.training.finetuning.windows import Validation

BATCH = 32  # forecasts at a time
LEAST_GROUPS = 4  # that a standard error is taken of
NO_HARM = 0.005  # a change up to this does no harm that anybody would see
_CERTAIN = 2.0  # doubts by which a change is rarely worse than it seems: 1 time of 44, if normal
_COMMON = 0.1  # of the mean square of changes, the share that all have in common at a time


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors of forecasts, in units of each series' deviation."""

    mse: float
    mae: float
    pinball: float | None = None  # of the quantile heads, where they are what is trained
    # The mean over the forecasts of how the errors of each have changed: see `changes_of`. A few
    # with large errors do not decide.
    change: float = 0.0
    doubt: float = 0.0  # of that mean: see `doubt_of`

    @property
    def values(self) -> tuple[float | None, ...]:
        """The errors themselves."""
        return self.mse, self.mae, self.pinball

    @property
    def finite(self) -> bool:
        """Whether every error is a number."""
        return all(math.isfinite(v) for v in self.values if v is not None)

    def relative_to(self, start: "Errors") -> float:
        """The mean ratio of the errors to those of the start; infinite where one is no number."""
        if not self.finite:
            return math.inf
        return float(np.mean([_ratio(a, b) for a, b in self._beside(start)]))

    @property
    def beside_zero_shot(self) -> str:
        """The change of a forecast, in words."""
        return f"a forecast {self.change:+.1%} ± {self.doubt:.1%} beside zero-shot"

    @property
    def at_worst(self) -> float:
        """The change if the doubt goes against it twice over."""
        return self.change + _CERTAIN * self.doubt

    @property
    def surely_better(self) -> bool:
        """Whether the change is a gain beyond doubt."""
        return self.at_worst < 0

    def safely_better_than(self, start: "Errors") -> bool:
        """Whether no error is larger than that of the start, and the change a gain.

        If the doubt goes against it, the change must still do next to no harm.
        """
        return self.change < 0 and self.at_worst <= NO_HARM and not self.worse_than(start)

    def preferred_to(self, other: "Errors") -> bool:
        """Whether it gains more: at worst, where either is a gain beyond doubt."""
        if self.surely_better or other.surely_better:
            return self.at_worst < other.at_worst
        return self.change < other.change

    def worse_than(self, start: "Errors") -> bool:
        """Whether any of the errors is larger than that of the start, or no number."""
        return not self.finite or any(a > b for a, b in self._beside(start))

    def _beside(self, start: "Errors") -> list[tuple[float, float]]:
        pairs = zip(self.values, start.values, strict=True)
        return [(a, b) for a, b in pairs if a is not None and b is not None]

    def __str__(self) -> str:
        quantiles = "" if self.pinball is None else f", pinball {self.pinball:.4f}"
        return f"MSE {self.mse:.4f}, MAE {self.mae:.4f}{quantiles}"


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else (1.0 if a == b else math.inf)


class Validator:
    """Scores parameters by the forecasts that `Forecaster.forecast` would make with them.

    The first call is of the start, and what later ones score is compared with it. The program is
    compiled once; the trained part of the parameters is its argument.

    Args:
      model: how the parameters are read.
      config: of the run.
      windows: the forecasts to make.
      mesh: devices.
      start: how those of the first call are read, if in another way.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: FinetuneConfig,
        windows: Validation,
        mesh: jax.sharding.Mesh,
        start: ModelConfig | None = None,
    ):
        self._windows, self._config, self._mesh = windows, config, mesh
        self._start: list[np.ndarray] | None = None  # errors of each forecast
        self._levels = model.quantile_levels if loss_of(model, config) == "pinball" else ()
        parts = partitioning.batch_parts(mesh)
        rows = min(BATCH, 1 << (len(windows) - 1).bit_length())
        self._rows = -(-rows // parts) * parts

        self._decode = _decoder(model, config)
        same = start is None or start == model
        self._decode_start = self._decode if same else _decoder(start or model, config)

    def __call__(self, trained: nnx.State, frozen: nnx.State) -> Errors:
        """The errors of the parameters."""
        points, quantiles = [], []
        decode = self._decode_start if self._start is None else self._decode
        place = partitioning.batch_sharding(self._mesh)
        for begin in range(0, len(self._windows), self._rows):
            part = slice(begin, begin + self._rows)
            arrays = (self._windows.x[part], self._windows.mask[part])
            kept = len(arrays[0])
            filled = (np.pad(a, [(0, self._rows - kept), *[(0, 0)] * (a.ndim - 1)]) for a in arrays)
            x, mask = (jax.device_put(a, place) for a in filled)
            decoded = decode(trained, frozen, x, mask)
            points.append(np.asarray(decoded.point)[:kept].astype(np.float64))
            if self._levels:
                quantiles.append(np.asarray(decoded.quantiles)[:kept].astype(np.float64))
        return self._score(np.concatenate(points), np.concatenate(quantiles) if quantiles else None)

    def _score(self, point: np.ndarray, quantiles: np.ndarray | None) -> Errors:
        w = self._windows
        observed = np.isfinite(w.targets)

        def errors(said: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore", invalid="ignore"):
                forecast = w.location[..., None] + w.scale[..., None] * said
                return np.where(observed, (w.targets - forecast) / w.unit[..., None], 0.0)

        count, error = np.count_nonzero(observed), errors(point)
        with np.errstate(over="ignore"):
            squares, sizes = (e.reshape(len(e), -1).sum(axis=1) for e in (error**2, np.abs(error)))
        of_each, mean_pinball = [squares, sizes], None
        if quantiles is not None:
            each = [errors(quantiles[..., i]) for i in range(len(self._levels))]
            pairs = zip(self._levels, each, strict=True)
            losses = [np.maximum(level * e, (level - 1) * e) for level, e in pairs]
            pinball = np.mean(losses, axis=0).reshape(len(each[0]), -1).sum(axis=1)
            of_each.append(pinball)
            mean_pinball = float(pinball.sum() / count)
        mse, mae = float(squares.sum() / count), float(sizes.sum() / count)
        return Errors(mse, mae, mean_pinball, *self._beside_start(of_each))

    def _beside_start(self, errors: list[np.ndarray]) -> tuple[float, float]:
        """The change of the errors beside the first that were scored, and the doubt of it.

        Of the first itself there is none.
        """
        if self._start is None:
            self._start = errors
            return 0.0, 0.0
        pairs = zip(errors, self._start, strict=True)
        change = np.mean([changes_of(now, then) for now, then in pairs], axis=0)
        windows = self._windows
        return float(change.mean()), doubt_of(change, windows.series, windows.period, windows.times)


def changes_of(
    errors: Float64[np.ndarray, " W"], start: Float64[np.ndarray, " W"]
) -> Float64[np.ndarray, " W"]:
    """The change of each forecast, (e - s) / ((e + s) / 2), the divisor at least the median of s.

    It lies between -2 and 2, which is also that of an error that is no number.
    """
    least = max(float(np.median(start)), 1e-30)
    with np.errstate(over="ignore", invalid="ignore"):
        change = (errors - start) / np.maximum((errors + start) / 2, least)
    return np.where(np.isfinite(change), change, 2.0)


def doubt_of(
    changes: Float64[np.ndarray, " W"],
    series: Int64[np.ndarray, " W"],
    period: Int64[np.ndarray, " W"],
    times: float,
) -> float:
    """How far the mean change of forecasts may be from that of forecasts to come.

    One part is the standard error of the mean over series. The other is that over times: markets
    fall together, and what helps in one year may harm in the next. Forecasts that begin within a
    horizon of one another are of one time, since what they forecast overlaps (Diebold and Mariano,
    1995). Too few times are held out to estimate it where series are short, so that it is at least
    what it were if all series had a tenth of the mean square of the changes in common at a time
    (as an intraclass correlation; Kish, Survey Sampling, 1965).

    Args:
      changes: of each forecast.
      series, period: which forecasts are of one series, and which of one time.
      times: horizons that are held out.
    """
    of_series = max(standard_error(changes, group) for group in (np.arange(len(changes)), series))
    assumed = math.sqrt(_COMMON * float(np.mean(changes**2)) / times)
    return math.hypot(of_series, max(standard_error(changes, period), assumed))


def standard_error(values: Float64[np.ndarray, " W"], group: Int64[np.ndarray, " W"]) -> float:
    """The standard error of a mean of values that only differ by chance from group to group.

    Forecasts of one series have its nature in common, and those of one time what came then. As many
    of them say less than as many that are independent (Liang and Zeger 1986,
    doi:10.1093/biomet/73.1.13). It is 0 of fewer than `LEAST_GROUPS`, which tell nothing of others.
    """
    of_group = np.bincount(group, values - values.mean())
    count = len(np.unique(group))
    if count < LEAST_GROUPS:
        return 0.0
    return float(np.sqrt(np.sum(of_group**2) * count / (count - 1)) / len(values))


def _decoder(model: ModelConfig, config: FinetuneConfig) -> Callable[..., Any]:
    """The program that forecasts with the two parts of the parameters of a model."""
    family = family_of(model)
    graph, _ = abstract_model(family.for_inference(model, "float32"))

    def decode(trained: nnx.State, frozen: nnx.State, x: Any, mask: Any) -> Any:
        # Rows that only fill the batch need a last point to read.
        mask |= ~mask.any(axis=tuple(range(1, mask.ndim)), keepdims=True)
        merged = nnx.merge(graph, assemble(trained, frozen, config))
        # A start that reads variates apart says the same with what is known of others.
        how = family.decode_known if config.known_variates else family.decode

        def forecast(x: Any, mask: Any) -> Any:
            return how(merged, x, mask, config.horizon)

        return decode_as(model, forecast, x, mask)

    return jax.jit(decode)
