"""How well a model forecasts series that were held out, source by source.

timemoe score --checkpoint=RUN --path=DIRS --horizons=96,336,720 --context=512

Every model is scored on the same windows: a context, standardized by its own statistics, and what
follows it, in the same units. So a score does not depend on a model's heads, loss or way of
standardizing, and models that differ in those can be compared.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.held_out.windows import Chunk, HeldOut, SourceWindows, read_windows
from timemoe_jax.evaluation.tables import error_pair, markdown_table
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.forecasting.scoring.metrics import ErrorSums, without_nan
from timemoe_jax.models.decoding import horizon_plan
from timemoe_jax.runtime.progress import progress_bar

METHODS = ("model", "naive", "context_mean")
# In deviations of the context, as in training with data.clip: one window that leaves its context
# far behind would otherwise decide the score of its source.
CLIP = 10.0


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors at one horizon, in units of each context's deviation; NaN without a window."""

    mse: float
    mae: float

    def __str__(self) -> str:
        return error_pair(self.mse, self.mae)


@dataclasses.dataclass(frozen=True)
class SourceScore:
    """The scores of a model on one source."""

    name: str  # domain and name of the source
    num_series: int
    too_short: int  # series without room for a context and the shortest horizon
    unusable: int  # windows not scored: their context is flat, or its last point is missing
    windows: dict[int, int]  # by horizon, how many were scored
    clipped: dict[int, float]  # by horizon, the share of the true values that were clipped
    errors: dict[int, dict[str, Errors]]  # by horizon and method


@dataclasses.dataclass(frozen=True)
class HeldOutScores:
    """The result of `score`: what was asked for, and each source by itself."""

    context_length: int
    horizons: tuple[int, ...]
    max_windows: int
    clip: float  # how far from its context's mean a value counts, in deviations
    num_read: int  # how many of a context's last points the model read
    sources: tuple[SourceScore, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """What was scored: the model, if there was one, and the baselines."""
        return tuple(
            m for m in METHODS if any(m in s.errors[self.horizons[0]] for s in self.sources)
        )

    def average(self, horizon: int, method: str = "model") -> Errors:
        """The mean over the sources that have a window at a horizon, each counting the same."""
        errors = [s.errors[horizon][method] for s in self.sources if s.windows[horizon]]
        if not errors:
            return Errors(float("nan"), float("nan"))
        return Errors(*np.mean([(e.mse, e.mae) for e in errors], axis=0).tolist())

    def relative_mse(self, horizon: int, method: str = "model") -> float:
        """The geometric mean over sources of the MSE divided by that of the context's mean.

        So no source outweighs the others by being hard to forecast. NaN where no source has a
        window, or an error is 0.
        """
        errors = [s.errors[horizon] for s in self.sources if s.windows[horizon]]
        pairs = np.array([(e[method].mse, e["context_mean"].mse) for e in errors])
        if not pairs.size or (pairs == 0).any():
            return float("nan")
        return float(np.exp(np.mean(np.log(pairs[:, 0] / pairs[:, 1]))))

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: None in place of NaN."""
        averages = {
            str(h): {
                m: dataclasses.asdict(self.average(h, m))
                | {"relative_mse": self.relative_mse(h, m)}
                for m in self.methods
            }
            for h in self.horizons
        }
        return without_nan({**dataclasses.asdict(self), "average": averages})

    def to_markdown(self) -> str:
        """A table with a row for each source and horizon, the averages, and what was left out."""
        header = ["source", "horizon", "windows", *(m.replace("_", " ") for m in self.methods)]
        rows = [
            [s.name, str(h), f"{s.windows[h]:,}", *(str(s.errors[h][m]) for m in self.methods)]
            for s in self.sources
            for h in self.horizons
            if s.windows[h]
        ]
        for h in self.horizons:
            count = sum(s.windows[h] > 0 for s in self.sources)
            averages = [str(self.average(h, m)) for m in self.methods]
            rows.append([f"mean of {count} sources", str(h), "", *averages])
        for h in self.horizons:
            relative = [f"{self.relative_mse(h, m):.4f}" for m in self.methods]
            rows.append(["MSE over context mean's", str(h), "", *relative])
        return f"{markdown_table(header, rows)}\n{self._notes()}\n"

    def _notes(self) -> str:
        without = [s.name for s in self.sources if not any(s.windows.values())]
        share = max((c for s in self.sources for c in s.clipped.values()), default=0.0)
        notes = [
            f"MSE / MAE in units of each context's deviation, context {self.context_length}, of "
            f"which the model reads the last {self.num_read}, "
            f"clipped at {self.clip:g} (at most {share:.2%} of a source's true values); the last "
            "rows are geometric means over sources.",
            f"At most {self.max_windows:,} windows of each source, evenly spaced. Series too "
            f"short: {sum(s.too_short for s in self.sources):,} of "
            f"{sum(s.num_series for s in self.sources):,}; windows with a flat context or a "
            f"missing last point, not scored: {sum(s.unusable for s in self.sources):,}.",
        ]
        if without:
            notes.append(f"Sources without a window: {', '.join(without)}.")
        return "\n".join(notes)


def score(
    forecaster: Forecaster | None,
    held_out: HeldOut,
    *,
    clip: float = CLIP,
    num_read: int | None = None,
    batch_size: int | str = "auto",
    progress: bool = False,
) -> HeldOutScores:
    """Scores a model (None: none), the last value and the context's mean on the same windows.

    Forecasts are made with normalize="instance". Contexts, truths and forecasts are standardized by
    the context (population deviation); truths and forecasts are clipped to +-`clip`, in deviations
    of the context. A missing truth counts for nothing; a window whose context is flat or ends with
    a missing point is not scored, but counted. The model reads the last `num_read` points of each
    context (None: all), so that lengths can be compared on the same windows and in the same units.

    Raises:
      DataError: clip is not above 0, num_read is not from 1 to the context's length, or the model
        has no room for what it reads and the horizon.
    """
    if not clip > 0:
        raise DataError(f"clip must be above 0, but is {clip}")
    length = held_out.context_length
    num_read = length if num_read is None else num_read
    if not 1 <= num_read <= length:
        raise DataError(f"num_read must be from 1 to the context's {length}, but is {num_read}")
    if forecaster is not None:
        forecaster.usable_context(num_read, held_out.horizons[-1])
    total = sum(len(w.sequence) for w in held_out.windows)
    with progress_bar(total=total, unit="window", disable=not progress) as bar:
        scores = []
        for windows in held_out.windows:
            tally = _Tally(held_out.horizons, clip, forecaster is not None)
            for chunk in read_windows(held_out, windows):
                tally.add(
                    chunk, _forecast(forecaster, chunk, held_out.horizons, num_read, batch_size)
                )
                bar.update(chunk.num_windows)
            scores.append(tally.finish(windows))
    return HeldOutScores(
        length, held_out.horizons, held_out.max_windows, clip, num_read, tuple(scores)
    )


def _forecast(
    forecaster: Forecaster | None,
    chunk: Chunk,
    horizons: Sequence[int],
    num_read: int,
    batch_size: int | str,
) -> dict[int, Float64[np.ndarray, "W H"]]:
    """The model's forecasts of each horizon that there is room for.

    A longer forecast serves a shorter horizon where it begins with the same heads.
    """
    forecasts: dict[int, Float64[np.ndarray, "W H"]] = {}
    if forecaster is None or not len(chunk.contexts):
        return forecasts
    plans = {
        h: horizon_plan(h, forecaster.config.horizon_lengths, forecaster.config.forecast_plan)
        for h in horizons
        if h <= chunk.truths.shape[1]
    }
    for h in sorted(plans, reverse=True):
        longer = [other for other in forecasts if plans[other][: len(plans[h])] == plans[h]]
        if longer:
            forecasts[h] = forecasts[longer[0]][:, :h]
        else:
            forecasts[h] = forecaster.forecast(
                chunk.contexts[:, -num_read:],
                h,
                context_length=num_read,
                normalize="instance",
                batch_size=batch_size,
            ).point
    return forecasts


class _Tally:
    """The running sums of one source."""

    def __init__(self, horizons: tuple[int, ...], clip: float, model: bool):
        methods = METHODS if model else METHODS[1:]
        self._clip = clip
        self._sums = {h: {m: ErrorSums() for m in methods} for h in horizons}
        self._windows = dict.fromkeys(horizons, 0)
        self._clipped = dict.fromkeys(horizons, 0)
        self._unusable = 0

    def add(self, chunk: Chunk, by_model: Mapping[int, Float64[np.ndarray, "W H"]]) -> None:
        """Adds the errors of a chunk of windows; the model's forecasts come by horizon."""
        self._unusable += chunk.num_windows - len(chunk.contexts)

        def scaled(values: Float64[np.ndarray, "W H"]) -> Float64[np.ndarray, "W H"]:
            return (values - chunk.mean[:, None]) / chunk.deviation[:, None]

        def clipped(values: Float64[np.ndarray, "W H"]) -> Float64[np.ndarray, "W H"]:
            return np.clip(values, -self._clip, self._clip)

        all_truths, last = scaled(chunk.truths), clipped(scaled(chunk.contexts[:, -1:]))
        for h, sums in self._sums.items():
            if h > chunk.truths.shape[1]:
                continue
            truths = all_truths[:, :h]
            seen: Bool[np.ndarray, "W H"] = ~np.isnan(truths)
            self._windows[h] += int(np.count_nonzero(seen.any(axis=1)))
            self._clipped[h] += int(np.count_nonzero(np.abs(truths[seen]) > self._clip))
            truths = clipped(truths)
            naive = np.broadcast_to(last, truths.shape)
            forecasts = {"naive": naive, "context_mean": np.zeros(truths.shape)}
            if h in by_model:
                forecasts["model"] = clipped(scaled(by_model[h]))
            for method, forecast in forecasts.items():
                sums[method].update(forecast[seen], truths[seen])

    def finish(self, windows: SourceWindows) -> SourceScore:
        """The mean errors."""
        scored = {h: max(sums["naive"].count, 1) for h, sums in self._sums.items()}
        return SourceScore(
            windows.name,
            windows.num_series,
            windows.too_short,
            self._unusable,
            dict(self._windows),
            {h: self._clipped[h] / scored[h] for h in scored},
            {
                h: {m: Errors(each.mse, each.mae) for m, each in sums.items()}
                for h, sums in self._sums.items()
            },
        )
