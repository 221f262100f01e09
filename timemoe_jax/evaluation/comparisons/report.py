"""The report of a comparison: one HTML file that holds its pictures and needs no network."""

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from timemoe_jax.evaluation.comparisons.frame_tasks import FrameTasks
from timemoe_jax.evaluation.comparisons.leaderboard import (
    COLUMNS,
    TEST,
    Leaderboard,
    number,
    share,
)
from timemoe_jax.evaluation.comparisons.pictures import plot_ratios
from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.tasks import Task
from timemoe_jax.files import write_text
from timemoe_jax.plotting import Panel, plot_forecasts

MOST_SERIES = 200  # rows of the table of series; of more, the best and the worst half
CONTEXT_SHOWN = 4  # horizons of a context in a picture, at least
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
p.summary { font-size: 1.1rem; background: #f3f6fa; border-left: 4px solid #1f5f8b;
  padding: .7rem 1rem; }
p.note, figcaption { color: #444; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e2e2e2; text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
th { background: #f6f6f6; text-align: right; }
td.best { font-weight: 700; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; overflow-wrap: anywhere; }
code { font-size: .88rem; }
"""


class Result(Protocol):
    """What is drawn of a method: see `frame.MethodResult`."""

    name: str
    last: dict[str, MethodForecast]


def write_report(
    path: Path,
    board: Leaderboard,
    data: FrameTasks,
    results: Sequence[Result],
    manifest: Mapping[str, Any],
) -> None:
    """Writes the report. Forecasts of the model are drawn, without one those of the best method."""
    title = "Forecasts of " + ", ".join(each.name for each in data.files[:3])
    title += " and more" if len(data.files) > 3 else ""
    sections = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="summary">{_text(board.summary())}</p>',
        _leaderboard(board),
        _significance(board),
        _forecasts(board, data, results, manifest),
        _series(board),
        _made(data, manifest),
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing is ever fetched, whatever names of series may hold.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>\n"
    )
    write_text(path, head + "\n".join(filter(None, sections)) + "\n</body></html>\n")


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(
    name: str, header: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[int] = ()
) -> str:
    """A table; the columns in `best` have their least number in bold."""
    least = {}
    for column in best:
        values = {float(row[column]) for row in rows if row[column]}
        if values:
            least[column] = min(values)
    lines = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            bold = i in least and cell and float(cell) == least[i]
            cells.append(f"<td{' class=best' if bold else ''}>{_text(cell)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    titles = "".join(f'<th scope="col">{_text(each)}</th>' for each in header)
    return (
        f'<div class="scroll"><table id="{name}"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _leaderboard(board: Leaderboard) -> str:
    failures = "".join(map(_note, board.failure_lines()))
    table = _table("leaderboard", *board.table(), best=(1, 2, 3))
    return f"<h2>Leaderboard</h2>{table}{_note(COLUMNS.replace('`', ''))}{failures}"


def _significance(board: Leaderboard) -> str:
    others = [row for row in board.rows[1:] if row.versus_best is not None]
    if not others:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        best = board.rows[0].name
        ratios = [row.versus_best.ratio for row in others if row.versus_best is not None]
        path = plot_ratios(
            Path(folder) / "ratios.png",
            [row.name for row in others],
            ratios,
            f"MASE of {best} over that of each method",
            f"{best} is better",
            f"{best} is worse",
        )
        figure = _figure(path, f"{best} beside each method, with intervals of 95%", "")
    table = _table("significance", *board.significance())
    return f"<h2>Could it be chance?</h2>{table}{_note(TEST)}{figure}"


def _figure(path: Path, alternative: str, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    picture = f'<img alt="{_text(alternative)}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}{below}</figure>"


def _forecasts(
    board: Leaderboard, data: FrameTasks, results: Sequence[Result], manifest: Mapping[str, Any]
) -> str:
    """Pictures of the series on which a method is best, in the middle, and worst."""
    drawn = manifest["model"] or board.rows[0].name
    result = next(each for each in results if each.name == drawn)
    scores = board.mase[result.name]
    order = [int(i) for i in np.argsort(scores, kind="stable") if np.isfinite(scores[i])]
    if not order:
        return ""
    places = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    shown: dict[int, list[str]] = {}
    for word, i in places.items():
        shown.setdefault(i, []).append(word)
    tasks = {task.name: task for task in data.tasks}
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for i, words in shown.items():
            task, name = tasks[board.names[i][0]], board.names[i][1]
            path = Path(folder) / f"{i}.png"
            plot_forecasts(path, [_panel(task, name, data, result)], CONTEXT_SHOWN * task.horizon)
            mase = ", ".join(f"{m} {number(values[i])}" for m, values in board.mase.items())
            title = f"The {' and '.join(words)} series of {result.name}: {name}"
            figures.append(_figure(path, title, f"{title}. MASE over all folds: {mase}."))
    heading = f"Forecasts of {_text(result.name)}, best to worst"
    last = _note("The last fold of each series: what came, the forecast, and its intervals.")
    return f"<h2>{heading}</h2>{last}{''.join(figures)}"


def _panel(task: Task, name: str, data: FrameTasks, result: Result) -> Panel:
    i = task.names.index(name)
    origin, end = int(task.origins[i][-1]), int(task.origins[i][-1]) + task.horizon
    forecast, times = result.last[task.name], data.times.get((task.name, name))
    return Panel(
        title=name,
        context=task.series[i][:origin],
        forecast=forecast.point[i],
        truth=task.series[i][origin:end],
        quantiles=forecast.quantiles[i],
        levels=task.levels,
        times_context=None if times is None else times[:origin],
        times_forecast=None if times is None else times[origin:end],
    )


def _series(board: Leaderboard) -> str:
    """MASE by series and method, and WQL and coverage of the best; from best to worst."""
    best = board.rows[0].name
    methods = [row.name for row in board.rows]
    several = len({task for task, _ in board.names}) > 1
    header = ["series", *(f"MASE {m}" for m in methods), f"WQL {best}", f"coverage {best}"]
    order = np.argsort(board.mase[best], kind="stable").tolist()  # NaN last
    left_out = max(0, len(order) - MOST_SERIES)
    if left_out:
        order = order[: MOST_SERIES // 2] + order[-MOST_SERIES // 2 :]
    rows = []
    for i in order:
        task, name = board.names[i]
        title = f"{task}: {name}" if several and not name.startswith(task) else name
        cells = [number(board.mase[m][i]) for m in methods]
        rows.append([title, *cells, number(board.wql[best][i]), share(board.coverage[best][i])])
    note = f"From the best series of {best} to its worst, by MASE."
    note += f" {left_out:,} series between them are left out." if left_out else ""
    if board.scored < len(board.names):
        without = len(board.names) - board.scored
        note += f" {without:,} series have no MASE, since their past repeats itself exactly."
    return f"<h2>By series</h2>{_note(note)}{_table('series', header, rows)}"


def _made(data: FrameTasks, manifest: Mapping[str, Any]) -> str:
    """How the numbers were obtained."""
    tasks = [
        f"{name}: {task['series']:,} series, {task['windows']:,} windows of {task['horizon']:,} "
        f"steps, season {task['season']} ({task['season_origin']})"
        for name, task in manifest["tasks"].items()
    ]
    entries = [
        ("Command", manifest["command"]),
        ("Date", manifest["date"]),
        *(("Task", task) for task in tasks),
        *(("Left out", note) for note in data.notes()),
        *((f"File {name}", f"SHA-256 {digest}") for name, digest in manifest["files"].items()),
        ("Versions", ", ".join(f"{k} {v}" for k, v in manifest["versions"].items())),
        ("Config", ", ".join(f"{k}={v!r}" for k, v in manifest["config"].items())),
    ]
    items = "".join(f"<dt>{_text(k)}</dt><dd><code>{_text(v)}</code></dd>" for k, v in entries)
    return f'<h2>How this was made</h2><dl id="made">{items}</dl>'
