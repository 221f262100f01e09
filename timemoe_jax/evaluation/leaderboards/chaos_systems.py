"""Chaotic systems to forecast: three of the library's own, and those of the package dysts.

A series is the first coordinate of a system, without noise, from a state on its attractor. Its
points are so far apart that a turn, the dominant period, has a given number of them.
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.generators.families.chaos import (
    NODES,
    integrate,
    lorenz,
    mackey_glass,
    rossler,
)
from timemoe_jax.errors import ConfigError, TimeMoeError, listed
from timemoe_jax.evaluation.leaderboards.config import SYSTEMS

ALL_OF_DYSTS = "dysts"
# Lorenz (10, 28, 8/3), Roessler (0.2, 0.2, 5.7), Mackey-Glass (delay 17): the time of a turn, and
# the largest Lyapunov exponent (Sprott, Chaos and Time-Series Analysis, 2003).
TURNS = {"Lorenz": 0.75, "Roessler": 6.0, "Mackey-Glass": 47.8}
EXPONENTS = {"Lorenz": 0.9056, "Roessler": 0.0714, "Mackey-Glass": 0.0058}
DELAY = 17.0
WARM_UP_STEPS = 3000
WARM_UP_DELAYS = 40
# dysts integrates with the tolerance 1e-12 by default, which takes a hundred times as long.
_TOLERANCE = 1e-9


class MissingDystsError(TimeMoeError, ImportError):
    """The package dysts is not installed."""


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """Trajectories of a system; an empty array and a reason where it cannot be integrated."""

    name: str
    series: Float64[np.ndarray, "N T"]
    exponent: float  # largest Lyapunov exponent, per point
    reason: str | None = None


def own_systems(count: int, length: int, seed: int, points_per_turn: int = 30) -> dict[str, System]:
    """Integrates the library's own systems, each from `count` states, by their names.

    Args:
      count: trajectories of each.
      length: points of each trajectory.
      seed: of the states.
      points_per_turn: points of a turn; for Mackey-Glass as near to it as the nodes of its
        integration allow.
    """
    rng = np.random.default_rng(seed)

    def all_of(value: float) -> np.ndarray:
        return np.full(count, value)

    flows = {
        "Lorenz": lorenz(*map(all_of, (10.0, 28.0, 8 / 3))),
        "Roessler": rossler(*map(all_of, (0.2, 0.2, 5.7))),
    }
    found = {}
    for name, flow in flows.items():
        step = TURNS[name] / points_per_turn
        start = rng.uniform(0.5, 3.0, (3, count))
        # So many Runge-Kutta steps whatever the points: at 30 a turn, a third of a point each.
        warm_up = round(WARM_UP_STEPS * points_per_turn / 30)
        path = integrate(flow, start, all_of(step), length, warm_up)
        found[name] = System(name, path[:, 0].T.copy(), EXPONENTS[name] * step)
    # From constant pasts that differ, and from different points of what they come to.
    node = DELAY / NODES
    stride = max(1, round(TURNS["Mackey-Glass"] / points_per_turn / node))
    first = WARM_UP_DELAYS * NODES + rng.integers(0, 4 * NODES, count)
    path = mackey_glass(all_of(DELAY), rng.uniform(0.5, 1.3, count), first.max() + stride * length)
    at = first[:, None] + stride * np.arange(length)
    series = np.take_along_axis(path, at, axis=1)
    exponent = EXPONENTS["Mackey-Glass"] * stride * node
    return {**found, "Mackey-Glass": System("Mackey-Glass", series, exponent)}


def check_systems(names: Sequence[str]) -> list[str]:
    """The systems of some names, with those of dysts by their own names, each once.

    Raises:
      ConfigError: there is no such system.
      MissingDystsError: one is of dysts, which is not installed.
    """
    others = [name for name in names if name not in SYSTEMS]
    if not others:
        return list(dict.fromkeys(names))
    known = _import("dysts.systems").get_attractor_list()
    unknown = [name for name in others if name not in (ALL_OF_DYSTS, *known)]
    if unknown:
        raise ConfigError(
            f"systems: there is no {', '.join(unknown)}; the library has {', '.join(SYSTEMS)}, and "
            f"dysts {listed(known)}"
        )
    found: list[str] = []
    for name in names:
        found += known if name == ALL_OF_DYSTS else [name]
    return list(dict.fromkeys(found))


def trajectories(
    names: Sequence[str],
    count: int,
    length: int,
    seed: int,
    points_per_turn: int,
    processes: int | None = None,
    done: Callable[[], Any] = lambda: None,
) -> list[System]:
    """Integrates systems; those of dysts in processes of their own.

    Args:
      names: as `check_systems` returns them.
      count: trajectories of each.
      length: points of each trajectory.
      seed: of their states.
      points_per_turn: points of a dominant period.
      processes: at most; None for one a core.
      done: called after each system.
    """
    found: dict[str, System] = {}
    own = [name for name in names if name in SYSTEMS]
    if own:
        every = own_systems(count, length, seed, points_per_turn)
        for name in own:
            found[name] = every[name]
            done()
    others = [name for name in names if name not in SYSTEMS]
    if others:
        # A process that was forked could not use JAX.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            jobs = [
                pool.submit(dysts_system, name, count, length, seed, points_per_turn)
                for name in others
            ]
            for name, job in zip(others, jobs, strict=True):
                found[name] = job.result()
                done()
    return [found[name] for name in names]


def dysts_system(
    name: str, count: int, length: int, seed: int, points_per_turn: int = 30
) -> System:
    """Integrates a system of dysts: pieces of one trajectory, one after the other.

    The points between two pieces are drawn from 0 to two turns, so that the pieces begin anywhere
    of a turn. Where the integration fails or a value is not finite there are no series.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    gaps = rng.integers(0, 2 * points_per_turn + 1, count)
    starts = np.cumsum(gaps + length) - length
    total = int(starts[-1]) + length
    nothing = np.zeros((0, length))
    try:
        flow = getattr(_import("dysts.flows"), name)()
        path = flow.make_trajectory(
            total,
            pts_per_period=points_per_turn,
            method="LSODA",
            rtol=_TOLERANCE,
            atol=_TOLERANCE,
        )
    except (ArithmeticError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        return System(name, nothing, float("nan"), f"dysts fails: {error}")
    if path is None or not np.isfinite(path).all():
        return System(name, nothing, float("nan"), "its integration does not reach the end")
    exponent = float(flow.maximum_lyapunov_estimated or 0) * float(flow.period) / points_per_turn
    if not exponent > 0:
        return System(name, nothing, exponent, "dysts knows no positive Lyapunov exponent of it")
    return System(name, path[starts[:, None] + np.arange(length), 0], exponent)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDystsError(
            f"systems beside {', '.join(SYSTEMS)} need dysts, which cannot be imported ({error}); "
            "install it with: pip install 'dysts>=0.96'"
        ) from error
