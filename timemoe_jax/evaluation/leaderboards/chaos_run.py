"""Evaluates methods on chaotic systems: sMAPE, and for how long a forecast is valid.

sMAPE is 200 |f - y| / (|f| + |y|), in percent, a mean over steps. A forecast is valid until the
sMAPE of its steps so far first exceeds 30 percent, in Lyapunov times of the system, the time in
which errors grow by a factor e (Zhang and Gilpin, arXiv 2409.15771 and 2505.11349).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from timemoe_jax.evaluation.leaderboards import scoring
from timemoe_jax.evaluation.leaderboards.chaos_systems import System, check_systems, trajectories
from timemoe_jax.evaluation.leaderboards.config import ChaosConfig
from timemoe_jax.evaluation.leaderboards.scoring import Outcome, Scored, Skipped
from timemoe_jax.evaluation.scores import seasonal_scales
from timemoe_jax.evaluation.tables import markdown_table
from timemoe_jax.evaluation.tasks import Task
from timemoe_jax.runtime.progress import progress_bar

SOURCE = ("chaos",)  # as `bundled.NEVER_SEEN` names what no chaotic system was part of
VALID = 30.0  # percent: the sMAPE up to which a forecast is valid


def run(config: ChaosConfig) -> dict[str, Any]:
    """Scores methods on chaotic systems; returns the manifest, which is written too.

    The output folder takes `results.md` and `manifest.json`.

    Raises:
      TimeMoeError: a system, the checkpoint or a method cannot be used.
    """
    names = check_systems(config.systems)
    compared = scoring.compared_methods(config)
    length = config.context + config.horizon
    with progress_bar(total=len(names), desc="systems", unit="system") as bar:
        systems = trajectories(
            names,
            config.starts,
            length,
            config.seed,
            config.points_per_turn,
            config.processes,
            bar.update,
        )
    exponents = {system.name: system.exponent for system in systems}

    def tasks() -> Iterator[Scored | Skipped]:
        for system in systems:
            if system.reason is not None:
                yield Skipped(system.name, system.reason)
            else:
                task = task_of(system, config.context, config.points_per_turn)
                yield Scored(task, seasonal_scales(task), SOURCE)

    def keep(scored: Scored, outcomes: list[Outcome]) -> list[Outcome]:
        exponent = exponents[scored.task.name]
        return [_with_validity(scored.task, outcome, exponent) for outcome in outcomes]

    return scoring.evaluate_tasks(config, compared, tasks(), keep, report)


def task_of(system: System, context: int, points_per_turn: int) -> Task:
    """The task of a system: each trajectory is forecast from its first `context` points."""
    count, length = system.series.shape
    return Task(
        name=system.name,
        series=tuple(system.series),
        names=tuple(f"start {i}" for i in range(count)),
        origins=(np.array([context]),) * count,
        horizon=length - context,
        season=points_per_turn,
        levels=(0.5,),  # points alone
    )


def smape_so_far(
    target: Float64[np.ndarray, "W H"], forecast: Float64[np.ndarray, "W H"]
) -> Float64[np.ndarray, "W H"]:
    """The sMAPE of the first steps of each forecast, up to each step, in percent."""
    both = np.abs(forecast) + np.abs(target)
    off = np.abs(forecast - target)
    share = np.divide(off, both, out=np.zeros_like(off), where=both > 0)
    return 200 * np.cumsum(share, axis=1) / np.arange(1, target.shape[1] + 1)


def valid_steps(smape: Float64[np.ndarray, "W H"]) -> Int64[np.ndarray, " W"]:
    """How many steps pass until `smape_so_far` first exceeds `VALID`; all where it never does."""
    above = smape > VALID
    return np.where(above.any(axis=1), above.argmax(axis=1), smape.shape[1])


def _with_validity(task: Task, outcome: Outcome, exponent: float) -> Outcome:
    smape = smape_so_far(task.targets(), outcome.forecast.point)
    times = valid_steps(smape) * exponent
    extra = {
        "smape": float(smape[:, -1].mean()),
        "smape_standard_error": _standard_error(smape[:, -1]),
        "valid_time": float(times.mean()),
        "valid_time_standard_error": _standard_error(times),
        "lyapunov_times_per_step": exponent,
    }
    return dataclasses.replace(outcome, extra=extra)


def _standard_error(values: np.ndarray) -> float:
    """Of a mean; NaN of a single value."""
    count = len(values)
    return float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


def report(manifest: Mapping[str, Any]) -> str:
    """The tables of a manifest as Markdown: means over systems, and each system."""
    cells: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in manifest["results"]:
        cells.setdefault(cell["method"], {})[cell["task"]] = cell
    systems = list(next(iter(cells.values()), {}))
    config = manifest["config"]
    header = ["method", "sMAPE, %", "valid time, Lyapunov times", "median", "seconds", "failures"]
    rows = []
    for method, of in cells.items():
        found = list(of.values())
        smape, valid = ([cell[name] for cell in found] for name in ("smape", "valid_time"))
        failures = sum(sum(cell["failures"].values()) for cell in found)
        rows.append(
            [
                f"**{method}**" if method == manifest["model"] else method,
                f"{np.mean(smape):.1f}",
                f"{np.mean(valid):.2f}",
                f"{np.median(valid):.2f}",
                f"{sum(cell['seconds'] for cell in found):,.1f}",
                str(failures),
            ]
        )
    by_system = [
        [system]
        + [
            f"{of[system]['smape']:.1f}, {of[system]['valid_time']:.2f} ± "
            f"{of[system]['valid_time_standard_error']:.2f}"
            for of in cells.values()
        ]
        for system in systems
    ]
    exposures = dict.fromkeys(c["exposure"] for c in manifest["results"] if "exposure" in c)
    notes = [
        f"{config['starts']} starts of each system, context {config['context']}, horizon "
        f"{config['horizon']}, {config['points_per_turn']} points a turn. The valid time lasts "
        f"until the sMAPE of the steps so far exceeds {VALID:g}%.",
        f"Checkpoint {manifest['checkpoint'] or 'none'}; exposure to these systems: "
        f"{', '.join(exposures) or 'none'}.",
    ]
    notes += [f"{name} is left out: {reason}." for name, reason in manifest["skipped"].items()]
    parts = [f"# Chaos: {len(systems)} systems\n", markdown_table(header, rows)]
    parts.append("sMAPE in % and valid time in Lyapunov times of each system\n")
    parts.append(markdown_table(["system", *cells], by_system))
    return "\n".join([*parts, *(f"- {note}" for note in notes)]) + "\n"
