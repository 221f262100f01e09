"""Pictures of comparisons: ratios of errors with their intervals."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.comparisons.paired import Interval
from timemoe_jax.plotting import CONTEXT_COLOR, FORECAST_COLOR, TRUTH_COLOR, new_figure, save_figure

MOST_ROWS = 60


def plot_ratios(
    path: str | os.PathLike[str],
    names: Sequence[str],
    ratios: Sequence[Interval],
    title: str,
    left: str,
    right: str,
) -> Path:
    """Draws a row for each ratio with its interval, beside the line of equal errors.

    Of more than 60 rows the first are drawn, and the title says so.

    Args:
      path: of the picture; its folder is made if needed.
      names: of the rows.
      ratios: one for each; those that are not finite are drawn as a note.
      title: of the picture.
      left, right: what a ratio below 1, and one above 1, means.

    Raises:
      DataError: there is nothing to draw, or no such kind of picture.
    """
    if not names:
        raise DataError("there is no ratio to draw")
    shown = len(names[:MOST_ROWS])
    figure = new_figure(path, 8, 0.28 * shown + 1.5)
    ax = figure.subplots()
    for row, (ratio, name) in enumerate(zip(ratios[:shown], names[:shown], strict=True)):
        if not np.isfinite(ratio.value):
            ax.annotate(f"{name}: no ratio", (1, row), fontsize=8, color=CONTEXT_COLOR)
            continue
        color = CONTEXT_COLOR
        if ratio.high < 1 or ratio.low > 1:  # neither of NaN
            color = TRUTH_COLOR if ratio.high < 1 else FORECAST_COLOR
        if np.isfinite(ratio.low):
            ax.plot([ratio.low, ratio.high], [row, row], color=color, lw=2)
        ax.plot([ratio.value], [row], "o", color=color, ms=5)
    ax.axvline(1, color="#888888", lw=0.8, zorder=0)
    ax.set_yticks(range(shown), [_short(name) for name in names[:shown]], fontsize=8)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
    ax.set_ylim(shown - 0.5, -0.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(f"\N{LEFTWARDS ARROW} {left}        {right} \N{RIGHTWARDS ARROW}", fontsize=9)
    more = f" (the first {shown} of {len(names)})" if len(names) > shown else ""
    ax.set_title(title + more, loc="left", fontsize=10, parse_math=False)
    return save_figure(figure, path, 110)


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"
