"""The tables of a leaderboard: scores relative to seasonal naive, and those of each task."""

from collections.abc import Mapping, Sequence
from typing import Any

from timemoe_jax.evaluation.leaderboards.published import (
    REFERENCE,
    exposure_of,
    published,
    relative,
)
from timemoe_jax.evaluation.scores import geometric_mean
from timemoe_jax.evaluation.tables import markdown_table

TITLES = {"gift": "GIFT-Eval", "fev": "fev-bench"}
# The two scores of each leaderboard, and what they are called.
METRICS = {
    "gift": {"mase": "MASE", "crps": "CRPS"},
    "fev": {"sql": "SQL", "mase": "MASE"},
}
# Those of our own methods that no leaderboard has.
FURTHER = {"gift": {"sql": "SQL"}, "fev": {"crps": "WQL"}}
# Published models that have a column in the tables of tasks.
DETAILED = {
    "gift": ("Chronos-2", "TiRex-2", "TimesFM-2.5", "goia-nano"),
    "fev": ("Chronos-2", "TiRex-2", "TimesFM-2.5", "Toto-2"),
}

Cells = Mapping[str, Mapping[str, Mapping[str, Any]]]  # of a method and a task


def report(manifest: Mapping[str, Any]) -> str:
    """All tables of a manifest, and what its numbers are, as Markdown."""
    benchmark = manifest["benchmark"]
    cells = _cells(manifest)
    tasks = list(next(iter(cells.values()), {}))
    parts = [f"# {TITLES[benchmark]}: {len(tasks)} tasks\n"]
    parts.append(_summary(manifest, cells, tasks))
    for metric, title in METRICS[benchmark].items():
        parts.append(f"{title} by task\n\n{_by_task(benchmark, cells, tasks, metric)}")
    parts.append(_notes(manifest, cells, tasks))
    return "\n".join(parts)


def _cells(manifest: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    cells: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in manifest["results"]:
        cells.setdefault(cell["method"], {})[cell["task"]] = cell
    return cells


def relative_scores(manifest: Mapping[str, Any], metric: str) -> dict[str, float]:
    """{method: geometric mean over tasks of its score over the reference's}."""
    cells = _cells(manifest)
    reference = cells[manifest["reference"]]
    return {
        method: geometric_mean([of[task][metric] / reference[task][metric] for task in reference])
        for method, of in cells.items()
    }


def _summary(manifest: Mapping[str, Any], cells: Cells, tasks: Sequence[str]) -> str:
    benchmark = manifest["benchmark"]
    shown, further = METRICS[benchmark], FURTHER[benchmark]
    header = ["method", *(f"{title}, relative" for title in (*shown.values(), *further.values()))]
    header += ["held by the 80% interval", "seconds", "failures", "exposure"]
    ratios = {name: relative_scores(manifest, name) for name in (*shown, *further)}
    rows = []
    for method, of in cells.items():
        failures = sum(sum(cell["failures"].values()) for cell in of.values())
        exposures = dict.fromkeys(cell["exposure"] for cell in of.values() if "exposure" in cell)
        points = sum(cell["points"] for cell in of.values())
        held = sum(cell["coverage"] * cell["points"] for cell in of.values()) / max(points, 1)
        numbers = [_three(ratios[name][method]) for name in ratios]
        seconds = f"{sum(cell['seconds'] for cell in of.values()):,.1f}"
        row = [_name(manifest, method), *numbers, f"{held:.1%}", seconds]
        rows.append([*row, str(failures), ", ".join(exposures) or "none"])
    first = next(iter(shown))
    leaders = [name for name in published(benchmark) if name != REFERENCE]
    leaders.sort(key=lambda name: relative(benchmark, name, tasks, first))
    for name in leaders:
        numbers = [_three(relative(benchmark, name, tasks, metric)) for metric in shown]
        if any(numbers):
            exposure = exposure_of(benchmark, name)
            rows.append([f"*{name}*", *numbers, *[""] * (len(further) + 3), exposure])
    return markdown_table(header, rows)


def _by_task(benchmark: str, cells: Cells, tasks: Sequence[str], metric: str) -> str:
    table = published(benchmark)
    of_tasks = {(task, metric) for task in tasks}
    leaders = [name for name in DETAILED[benchmark] if of_tasks & table[name].keys()]
    header = ["task", "windows", *cells, *(f"*{name}*" for name in leaders)]
    rows = []
    for task in tasks:
        windows = next(iter(cells.values()))[task]["windows_in_task"]
        ours = [_three(of[task][metric]) for of in cells.values()]
        rows.append([task, str(windows), *ours])
        rows[-1] += [_three(table[name].get((task, metric))) for name in leaders]
    return markdown_table(header, rows)


def _notes(manifest: Mapping[str, Any], cells: Cells, tasks: Sequence[str]) -> str:
    lines = [
        "Relative: the geometric mean over tasks of the score over that of "
        f"`{manifest['reference']}`, seasonal naive as the leaderboard runs it. Names in italics "
        "are published results; of them exposure is what their authors state.",
        "The point forecast of every method is its median, which is best for MASE"
        + (
            "; of the model it is what it forecasts without quantiles, and its quantiles are from "
            "the errors of its forecasts at earlier points of the same context."
            if manifest["quantiles"] == "earlier errors"
            else "."
        ),
        f"Checkpoint {manifest['checkpoint'] or 'none'}.",
    ]
    of_tasks = next(iter(cells.values()), {})
    for task in tasks:
        lines += [f"{task}: {note}." for note in of_tasks[task].get("notes", ())]
    for method, of in cells.items():
        for task, cell in of.items():
            lines += [f"{method} on {task}: {n} x {why}." for why, n in cell["failures"].items()]
    lines += [f"{task} is left out: {reason}." for task, reason in manifest["skipped"].items()]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _name(manifest: Mapping[str, Any], method: str) -> str:
    return f"**{method}**" if method == manifest["model"] else method


def _three(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"
