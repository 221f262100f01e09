"""A small task and a forecaster of known answers, for the tests of evaluations."""

import types

import numpy as np
from fake_forecaster import FakeForecaster

from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.tasks import Task

SIMPLE = Task(
    name="simple",
    series=(np.array([0.0, 1, 3, 6, 10, 15]), np.array([2.0, 2, 4, 4, np.nan, 8])),
    names=("a", "b"),
    origins=(np.array([2, 4]), np.array([4])),
    horizon=2,
    season=1,
    levels=(0.1, 0.5, 0.9),
)


def forecast_of(task: Task, width: float = 1.0, off: float = 0.0) -> MethodForecast:
    """The last value of each context, and quantiles around it."""
    last = [context[~np.isnan(context)][-1] for context in task.contexts()]
    point = np.tile(np.array(last)[:, None], (1, task.horizon)) + off
    return MethodForecast(point, point[..., None] + width * (np.array(task.levels) - 0.5))


class KnownModel(FakeForecaster):
    """A fake forecaster that can be evaluated: its quantiles count as earlier errors'."""

    def __init__(self, quantile_levels=()):
        super().__init__()
        self.config = types.SimpleNamespace(quantile_levels=quantile_levels, dtype="float32")
        self.digest = "0123"

    def usable_context(self, context_length, horizon):
        return context_length or 24
