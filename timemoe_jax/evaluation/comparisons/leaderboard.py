"""A leaderboard of methods on the same series, and whether its differences could be chance."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import listed
from timemoe_jax.evaluation.comparisons.paired import Paired, compare_paired, holm
from timemoe_jax.evaluation.scores import WindowScores, geometric_mean
from timemoe_jax.evaluation.tables import markdown_table
from timemoe_jax.evaluation.tasks import Task

REFERENCE = "seasonal_naive"
CERTAIN = 0.05  # a p-value below it is called significant


class Result(Protocol):
    """What a method did on all tasks: see `frame.MethodResult`."""

    name: str
    seconds: float
    scores: dict[str, WindowScores]
    failures: Any
    failed: list[str]


@dataclasses.dataclass(frozen=True)
class Row:
    """A method on all series."""

    name: str
    mase: float  # the mean over series
    wql: float  # the mean over tasks of the weighted quantile loss
    relative: float  # the geometric mean over series of MASE / seasonal naive's; NaN without it
    coverage: float  # of the 80% interval, over all points
    best: float  # the share of series on which it is best of all, in MASE
    seconds: float
    failures: int  # windows that it did not forecast by itself
    reasons: dict[str, int]
    failed: tuple[str, ...]  # the first series of them
    versus_best: Paired | None  # against the method with the least MASE; None for that itself
    p_holm: float  # of that, adjusted for the number of methods


@dataclasses.dataclass(frozen=True, eq=False)
class Leaderboard:
    """Methods from the best to the worst, by MASE; scores by series beside them."""

    rows: tuple[Row, ...]
    names: tuple[tuple[str, str], ...]  # task and series
    mase: dict[str, Float64[np.ndarray, " N"]]  # of each method by series; NaN without a scale
    wql: dict[str, Float64[np.ndarray, " N"]]
    coverage: dict[str, Float64[np.ndarray, " N"]]

    @property
    def scored(self) -> int:
        """The series that have a MASE of every method."""
        return int(self._have_scale().sum())

    def _have_scale(self) -> np.ndarray:
        return np.isfinite(np.stack(list(self.mase.values()))).all(axis=0)

    def summary(self) -> str:
        """A sentence: which method is best, by how much, and whether that could be chance."""
        best = self.rows[0]
        if not self.scored:
            return "No series has a MASE, since the past of each repeats itself exactly."
        text = f"{best.name} has the least mean MASE, {best.mase:.3f}, on {self.scored:,} series"
        if len(self.rows) == 1:
            return text + "."
        close = [row.name for row in self.rows[1:] if not row.p_holm < CERTAIN]
        worse = len(self.rows) - 1 - len(close)
        if any(row.p_holm != row.p_holm for row in self.rows[1:]):
            return f"{text}; that is too few to tell chance from a difference."
        if not close:
            return f"{text}, significantly less than each of the {worse} others."
        less = f"significantly less than {worse} of the {len(self.rows) - 1} others, " * bool(worse)
        return f"{text}, {less}but not significantly less than {listed(close)}."

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of the leaderboard, as text."""
        header = ["method", "MASE", "vs seasonal naive", "WQL", "coverage of 80%"]
        header += ["best on", "seconds", "failures"]
        rows = [
            [
                *(row.name, number(row.mase), number(row.relative), number(row.wql)),
                *(share(row.coverage), share(row.best), f"{row.seconds:.1f}", f"{row.failures:,}"),
            ]
            for row in self.rows
        ]
        return header, rows

    def significance(self) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of the differences to the best method."""
        header = [f"{self.rows[0].name} against", "MASE ratio [95%]", "MASE difference [95%]"]
        header += ["wins by series", "p (Holm)", "significant"]
        rows = []
        for row in self.rows[1:]:
            pair = row.versus_best
            if pair is None:
                rows.append([row.name, "", "", "", "", "no pair"])
                continue
            verdict = "yes" if row.p_holm < CERTAIN else "no"
            verdict = "too few series" if row.p_holm != row.p_holm else verdict
            p = "" if row.p_holm != row.p_holm else f"{row.p_holm:.2g}"
            cells = [str(pair.ratio), str(pair.difference), share(pair.series_wins), p, verdict]
            rows.append([row.name, *cells])
        return header, rows

    def to_markdown(self) -> str:
        """The leaderboard as Markdown, with what the columns mean."""
        return f"{markdown_table(*self.table())}\n{COLUMNS}"

    def significance_to_markdown(self) -> str:
        """The differences to the best method as Markdown; nothing for a single method."""
        return f"{markdown_table(*self.significance())}\n{TEST}" if len(self.rows) > 1 else ""

    def failure_lines(self) -> list[str]:
        """A sentence for each method that did not forecast some windows."""
        return [
            f"{row.name} did not forecast {_windows(row.failures)} by itself: "
            f"{listed([f'{reason} ({n:,})' for reason, n in row.reasons.items()], 4, '; ')}; "
            f"of {listed(row.failed)}."
            for row in self.rows
            if row.failures
        ]

    def as_dict(self) -> list[dict[str, Any]]:
        """The rows, as JSON takes them but for NaN."""
        return [dataclasses.asdict(row) for row in self.rows]


COLUMNS = (
    "MASE is the mean over series, of all windows of each; the median is scored where a method has "
    "one. `vs seasonal naive` is the geometric mean over series of the ratio of MASE. WQL is the "
    "weighted quantile loss of all series of a file, a mean over files. `failures` are windows "
    "that the method did not forecast by itself: where a reason says nothing else, seasonal naive "
    "counts there."
)
TEST = (
    "Intervals are bootstrapped over series; p is of Wilcoxon's signed-rank test of the series' "
    "MASE, adjusted for the number of methods (Holm). Below 0.05 a difference is significant."
)


def make_leaderboard(tasks: Sequence[Task], results: Sequence[Result]) -> Leaderboard:
    """Ranks methods by their mean MASE over the series on which all of them have one."""
    names = tuple((task.name, name) for task in tasks for name in task.names)
    mase = {r.name: _by_series(tasks, r, _mase) for r in results}
    wql = {r.name: _by_series(tasks, r, _wql) for r in results}
    coverage = {r.name: _by_series(tasks, r, _coverage) for r in results}
    known = np.isfinite(np.stack(list(mase.values()))).all(axis=0)
    least = np.min(np.stack(list(mase.values())), axis=0)
    means = {name: _mean(values[known]) for name, values in mase.items()}
    order = sorted(results, key=lambda r: (np.isnan(means[r.name]), means[r.name]))
    best = order[0].name
    pairs = [
        compare_paired(mase[best][known], mase[r.name][known], np.arange(int(known.sum())))
        if known.any() and r.name != best
        else None
        for r in order
    ]
    adjusted = holm([float("nan") if pair is None else pair.p for pair in pairs])
    rows = []
    for result, pair, p in zip(order, pairs, adjusted, strict=True):
        own, name = mase[result.name], result.name
        rows.append(
            Row(
                name=name,
                mase=means[name],
                wql=_mean(np.array([_task_wql(each) for each in result.scores.values()])),
                relative=_relative(own, mase.get(REFERENCE)),
                coverage=_overall_coverage(result),
                best=_mean((own == least)[known].astype(np.float64)),
                seconds=result.seconds,
                failures=sum(result.failures.values()),
                reasons=dict(result.failures.most_common()),
                failed=tuple(result.failed),
                versus_best=pair,
                p_holm=p,
            )
        )
    return Leaderboard(tuple(rows), names, mase, wql, coverage)


def _windows(count: int) -> str:
    return f"{count:,} window{'' if count == 1 else 's'}"


def _mase(scores: WindowScores) -> tuple[np.ndarray, np.ndarray]:
    there = np.isfinite(scores.scale) & (scores.points > 0)
    return np.where(there, scores.absolute / np.where(there, scores.scale, 1), 0), np.where(
        there, scores.points, 0
    )


def _wql(scores: WindowScores) -> tuple[np.ndarray, np.ndarray]:
    return scores.quantile_loss.mean(axis=1), scores.target


def _coverage(scores: WindowScores) -> tuple[np.ndarray, np.ndarray]:
    return scores.covered, scores.points


def _by_series(tasks: Sequence[Task], result: Result, parts: Any) -> Float64[np.ndarray, " N"]:
    """Of every series: the sum over its windows of what is above, over that of what is below."""
    columns = []
    for task in tasks:
        owner = np.array([i for i, _ in task.windows()])
        above, below = (
            np.bincount(owner, each, minlength=len(task.series))
            for each in parts(result.scores[task.name])
        )
        columns.append(np.where(below > 0, above / np.where(below > 0, below, 1), np.nan))
    return np.concatenate(columns)


def _overall_coverage(result: Result) -> float:
    covered = sum(float(scores.covered.sum()) for scores in result.scores.values())
    points = sum(int(scores.points.sum()) for scores in result.scores.values())
    return covered / points if points else float("nan")


def _task_wql(scores: WindowScores) -> float:
    total = float(scores.target.sum())
    return float(scores.quantile_loss.mean(axis=1).sum()) / total if total else float("nan")


def _relative(own: Float64[np.ndarray, " N"], reference: Float64[np.ndarray, " N"] | None) -> float:
    if reference is None:
        return float("nan")
    usable = np.isfinite(own) & (reference > 0)
    # An error of 0 would make the mean 0, whatever the others are.
    ratios = np.maximum(own[usable] / reference[usable], 1e-3)
    return geometric_mean(ratios.tolist())


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def number(value: float) -> str:
    """Three decimals; nothing for NaN."""
    return "" if value != value else f"{value:.3f}"


def share(value: float) -> str:
    """Percent; nothing for NaN."""
    return "" if value != value else f"{100 * value:.0f}%"
