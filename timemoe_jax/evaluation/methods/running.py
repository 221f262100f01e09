"""The one place that runs methods: in this process, or in workers that are killed at a limit."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.series import check_levels, positive_int
from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.methods.base import Method, MethodForecast
from timemoe_jax.evaluation.methods.simple import last_resort
from timemoe_jax.evaluation.methods.workers import Answer, Task, Workers, check_shapes
from timemoe_jax.runtime.progress import progress_bar

LIMIT_S = 30.0  # of one context


@dataclasses.dataclass(frozen=True, eq=False)
class MethodRun:
    """The result of `run_method`."""

    forecast: MethodForecast  # every value is finite: seasonal naive where the method failed
    seconds: float  # of wall time, the start of workers included


def run_method(
    method: Method,
    contexts: Sequence[Float64[np.ndarray, " _"]],
    horizon: int,
    season: int,
    levels: Sequence[float],
    freq: str | None = None,
    *,
    limit_s: float | None = LIMIT_S,
    processes: int | None = None,
    workers: Workers | None = None,
    progress: bool = False,
) -> MethodRun:
    """Forecasts N contexts by a method; what it cannot forecast is forecast by seasonal naive.

    Args:
      method: what forecasts. An isolated one gets its contexts one by one, in worker processes that
        are spawned, since a process that was forked could not use JAX.
      contexts: NaN where a value is missing.
      horizon, season, levels, freq: as for `Method.predict`.
      limit_s: the seconds of computing after which the worker of an isolated method is killed, for
        each context, or five times as many by the clock; None for no limit.
      processes: the workers; by default the cores that this process may use.
      workers: those of `workers_of`, where several calls share them; the caller's to close.
      progress: whether to show a bar.

    Returns:
      the forecasts, whose `failures` say for which contexts the method raised, gave NaN, passed its
      limit or ended its process, and the seconds that all of it took.

    Raises:
      DataError: the limit is not positive, or the method gives arrays of another shape.
    """
    check_levels(levels)
    positive_int("horizon", horizon)
    if limit_s is not None and not limit_s > 0:
        raise DataError(f"limit_s must be positive, or None, but is {limit_s}")
    task = (horizon, season, tuple(levels), freq)
    start = time.perf_counter()
    with progress_bar(
        total=len(contexts), desc=method.name, unit="window", leave=False, disable=not progress
    ) as bar:
        if method.isolated:
            with contextlib.ExitStack() as stack:
                shared = workers or stack.enter_context(workers_of(method, processes))
                forecast = _gather(shared.answers(contexts, task, limit_s, bar.update), task)
        else:
            forecast = _in_this_process(method, contexts, task)
            bar.update(len(contexts))
    filled = _filled(forecast, contexts, horizon, season, levels)
    return MethodRun(filled, time.perf_counter() - start)


def workers_of(method: Method, processes: int | None = None) -> Workers:
    """The workers of a method, for a `with` block around calls of `run_method`.

    They are at most so many processes, by default the cores that this process may use; none is
    started before a method that is isolated needs it.
    """
    return Workers(method, processes or usable_cores())


def usable_cores() -> int:
    """The cores that this process may use."""
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def _in_this_process(method: Method, contexts: Sequence[Any], task: Task) -> MethodForecast:
    forecast = method.predict(contexts, *task)
    shape = (len(contexts), task[0])
    check_shapes(method.name, forecast, shape, len(task[2]))
    return forecast


def _gather(answers: list[Answer], task: Task) -> MethodForecast:
    """One forecast of the answers of workers; NaN where there is none."""
    horizon, _, levels, _ = task
    point = np.full((len(answers), horizon), np.nan)
    quantiles = np.full((len(answers), horizon, len(levels)), np.nan)
    failures = {}
    for i, answer in enumerate(answers):
        if isinstance(answer, str):
            failures[i] = answer
        else:
            point[i], quantiles[i] = answer
    return MethodForecast(point, quantiles, failures)


def _filled(
    forecast: MethodForecast,
    contexts: Sequence[Any],
    horizon: int,
    season: int,
    levels: Sequence[float],
) -> MethodForecast:
    """The forecast with seasonal naive wherever it is not finite."""
    point, quantiles = forecast.point.copy(), forecast.quantiles.copy()
    failures = dict(forecast.failures)
    finite = np.isfinite(point).all(axis=1) & np.isfinite(quantiles).all(axis=(1, 2))
    for i in np.flatnonzero(~finite).tolist():
        failures.setdefault(i, "the forecast is NaN or infinite somewhere")
        point[i], quantiles[i], _ = last_resort(contexts[i], horizon, season, levels)
    return MethodForecast(point, quantiles, dict(sorted(failures.items())))
