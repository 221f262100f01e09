"""A model beside other methods on the last horizons of held-out series.

timemoe score --checkpoint=RUN --path=CORPUS --selection=configs/mini_measured.csv \\
    --methods=ets,theta,arima,ets+theta+arima

Every series gives one window: its last horizon, with all that comes before it as the context. A
name with `+` is the mean of several methods, of their points and of each quantile, as combinations
won the M4 competition (Petropoulos and Svetunkov, 2020).
"""

from collections.abc import Sequence

import numpy as np

from timemoe_jax.evaluation.held_out.selection import SelectionResult
from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.methods.registry import get_methods
from timemoe_jax.evaluation.methods.running import run_method
from timemoe_jax.evaluation.tables import markdown_table
from timemoe_jax.evaluation.tasks import Task


def method_forecasts(
    names: str, tasks: Sequence[Task], progress: bool = False
) -> dict[str, list[MethodForecast]]:
    """Forecasts of every task by each method.

    Args:
      names: of `get_methods`, with commas between; `a+b` is the mean of a and b. A method that is
        only a part of a mean is run, too, and once.
      tasks: what is forecast, at their levels.
      progress: whether to show a bar for each task.

    Returns:
      a list over the tasks for each name, in the order of the names. What a method cannot forecast
      is forecast by seasonal naive, and named in `failures`.

    Raises:
      ConfigError: a name is unknown.
      MissingMethodError: a method needs a package that is not installed.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    single = get_methods([part for name in wanted for part in name.split("+")])
    made = {
        method.name: [
            run_method(
                method, task.contexts(), task.horizon, task.season, task.levels, progress=progress
            ).forecast
            for task in tasks
        ]
        for method in single
    }
    return {name: _mean_of([made[part.strip()] for part in name.split("+")]) for name in wanted}


def _mean_of(parts: Sequence[list[MethodForecast]]) -> list[MethodForecast]:
    if len(parts) == 1:
        return parts[0]
    return [
        MethodForecast(
            np.mean([p.point for p in each], axis=0),
            np.mean([p.quantiles for p in each], axis=0),
            {i: why for p in each for i, why in p.failures.items()},
        )
        for each in zip(*parts, strict=True)
    ]


def beside_markdown(results: dict[str, SelectionResult], failures: dict[str, int]) -> str:
    """A table of MASE and WQL over seasonal naive's: rows are methods, columns are classes.

    Args:
      results: of each method, on the same tasks.
      failures: how many windows seasonal naive forecast in place of a method.
    """
    some = next(iter(results.values()))
    frequencies = [*dict.fromkeys(entry.frequency for entry in some.entries), None]
    rows = [
        [
            name,
            *(f"{r.relative('mase', f):.3f} / {r.relative('crps', f):.3f}" for f in frequencies),
            f"{failures.get(name, 0)}",
        ]
        for name, r in results.items()
    ]
    header = ["MASE / WQL", *(f or "all" for f in frequencies), "failures"]
    return markdown_table(header, rows)
