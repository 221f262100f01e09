"""Pictures of studies: losses against points with the fitted law, ablations with their spread."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.studies.run import measured
from timemoe_jax.evaluation.studies.scaling_law import ScalingFit
from timemoe_jax.plotting import FORECAST_COLOR, TRUTH_COLOR, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"sparse": FORECAST_COLOR, "dense": TRUTH_COLOR}
MARKERS = {"sparse": "o", "dense": "s"}


def plot_scaling(
    path: str | os.PathLike[str],
    measure: str,
    results: Sequence[Mapping[str, Any]],
    fits: Mapping[str, ScalingFit],
) -> Path:
    """Writes a panel for each size: the loss against points, sparse and dense, with the laws.

    The measure is that of `measured`; curves and bands are drawn for the kinds that have a fit.
    """
    if not results:
        raise DataError("results is empty; a picture needs at least one run")
    by_size: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for result in results:
        by_size.setdefault((result["hidden_size"], result["layers"]), []).append(result)
    sizes = sorted(by_size)
    figure = new_figure(path, 2.9 * len(sizes) + 0.6, 3.4)
    axes = figure.subplots(1, len(sizes), squeeze=False, sharex=True, sharey=True)[0]
    for ax, size in zip(axes, sizes, strict=True):
        for kind in COLORS:
            if runs := [r for r in by_size[size] if r["kind"] == kind]:
                _draw_kind(ax, kind, measure, runs, fits.get(kind), results)
        most = max(r["activated_parameters"] for r in by_size[size])
        title = f"hidden {size[0]}, {size[1]} layers:\n{most:,} activated"
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("points")
        ax.spines[["top", "right"]].set_visible(False)
        _plain_losses(ax)
    axes[0].set_ylabel(measure.replace("_", " "))
    axes[0].legend(fontsize=8, frameon=False)
    return save_figure(figure, path, 130)


def _draw_kind(
    ax: "Axes",
    kind: str,
    measure: str,
    runs: Sequence[Mapping[str, Any]],
    fit: ScalingFit | None,
    results: Sequence[Mapping[str, Any]],
) -> None:
    """The runs of one kind and size, and what the law says of that size."""
    losses = [measured(dict(r), measure) for r in runs]
    activated = runs[0]["activated_parameters"]
    ax.plot(
        [r["points"] for r in runs], losses, MARKERS[kind], color=COLORS[kind], ms=4, label=kind
    )
    if fit is None:
        return
    every = [r["points"] for r in results]
    points = np.geomspace(min(every), max(every), 60)
    n = np.full(len(points), float(activated))
    low, high = fit.predict_interval(n, points)
    ax.fill_between(points, low, high, color=COLORS[kind], alpha=0.15, lw=0)
    ax.plot(points, fit.law.predict(n, points), color=COLORS[kind], lw=1)


def _plain_losses(ax: "Axes") -> None:
    """Labels losses as decimals: a logarithmic axis would have one tick in a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.yaxis.set_major_locator(
        LogLocator(subs=(1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0))
    )
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def plot_ablations(
    path: str | os.PathLike[str], title: str, summary: Mapping[str, tuple[float, float, int]]
) -> Path:
    """Writes a row for each variant: the mean over its seeds, and their deviation.

    The title says what was measured; the summary of a variant is its mean, its deviation (NaN for
    one seed), and the number of its seeds.
    """
    if not summary:
        raise DataError("summary is empty; a picture needs at least one variant")
    figure = new_figure(path, 6.5, 0.3 * len(summary) + 1.0)
    ax = figure.subplots()
    for row, (name, (mean, deviation, _)) in enumerate(summary.items()):
        bar = 0.0 if np.isnan(deviation) else deviation
        color = FORECAST_COLOR if name == "full" else TRUTH_COLOR
        ax.errorbar(mean, row, xerr=bar, fmt="o", color=color, ms=4, capsize=3, lw=1)
    if "full" in summary:
        ax.axvline(summary["full"][0], color="#bbbbbb", lw=0.8, zorder=0)
    ax.set_yticks(range(len(summary)), labels=list(summary), fontsize=9)
    ax.set_ylim(len(summary) - 0.5, -0.5)
    ax.set_xlabel(f"{title}: mean and deviation over seeds")
    ax.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path, 130)


def plot_differences(
    path: str | os.PathLike[str], studies: Mapping[str, Mapping[str, Sequence[float]]]
) -> Path:
    """Writes a row for each control of each study: by how many percent it lies above "full".

    Gray dots are seeds, the bar is their mean and deviation.

    Args:
      path: of the picture.
      studies: of each study its controls, of each control the share of each seed.
    """
    rows = [(s, name, v) for s, controls in studies.items() for name, v in controls.items() if v]
    if not rows:
        raise DataError("studies holds no control with a seed; a picture needs at least one")
    alone = len({name for _, name, _ in rows}) == 1
    figure = new_figure(path, 6.5, 0.3 * len(rows) + 1.0)
    ax = figure.subplots()
    for row, (_, _, values) in enumerate(rows):
        percent = 100 * np.asarray(values)
        ax.plot(percent, np.full(len(percent), row), ".", color="#aaaaaa", ms=4, zorder=1)
        bar = float(np.std(percent, ddof=1)) if len(percent) > 1 else 0.0
        ax.errorbar(
            percent.mean(), row, xerr=bar, fmt="o", color=TRUTH_COLOR, ms=4, capsize=3, lw=1
        )
    ax.axvline(0, color="#bbbbbb", lw=0.8, zorder=0)
    labels = [study if alone else f"{study}: {name}" for study, name, _ in rows]
    ax.set_yticks(range(len(rows)), labels=labels, fontsize=9)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    what = f"{rows[0][1]}: " if alone else ""
    ax.set_xlabel(f"{what}% of MSE above full, seeds, mean and deviation")
    ax.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path, 130)
