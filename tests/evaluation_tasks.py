"""A small task of known answers, for the tests of scores and of what is written of them."""

import numpy as np

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
