"""Pictures: forecasts, one panel a series, and sheets of many series."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

CONTEXT_COLOR, TRUTH_COLOR, FORECAST_COLOR = "#555555", "#1b7837", "#c2410c"
SHEET_COLOR = "#1f5f8b"


class Panel(NamedTuple):
    """One series to draw; the forecast starts where the context ends."""

    title: str
    context: Float[np.ndarray, " T"]
    forecast: Float[np.ndarray, " H"]
    truth: Float[np.ndarray, " H"] | None = None


def plot_forecasts(path: str | os.PathLike[str], panels: Sequence[Panel], tail: int = 256) -> Path:
    """Writes a PNG with a panel for each series.

    Args:
      path: of the picture; its folder is made if needed.
      panels: what to draw, from top to bottom.
      tail: how much of each context to show.
    """
    # The object interface: it draws without a display, and touches no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.4 * len(panels) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        context = panel.context[-tail:]
        ahead = np.arange(len(panel.forecast))
        ax.plot(np.arange(-len(context), 0), context, color=CONTEXT_COLOR, lw=1, label="context")
        if panel.truth is not None:
            ax.plot(ahead, panel.truth, color=TRUTH_COLOR, lw=1, label="truth")
        ax.plot(ahead, panel.forecast, color=FORECAST_COLOR, lw=1.4, label="forecast")
        ax.axvline(-0.5, color="#bbbbbb", lw=0.8)
        ax.set_title(panel.title, loc="left", fontsize=10)
        ax.margins(x=0.01)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False)
    axes[-1].set_xlabel("steps from the end of the context")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return Path(path)


class Thumbnail(NamedTuple):
    """One of many small series on a sheet."""

    title: str
    positions: Float[np.ndarray, " P"]
    values: Float[np.ndarray, " P"]


def plot_sheet(
    path: str | os.PathLike[str],
    thumbnails: Sequence[Thumbnail],
    *,
    title: str = "",
    columns: int = 4,
) -> Path:
    """Writes a PNG of many small series in rows and columns.

    Args:
      path: of the picture; its folder is made if needed.
      thumbnails: what to draw, row by row; a gap where a value is NaN.
      title: above all of them.
      columns: how many stand side by side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter

    rows = max(1, -(-len(thumbnails) // columns))
    figure = Figure(figsize=(3.9 * columns, 1.65 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(thumbnails) :]:
        ax.set_axis_off()
    for ax, item in zip(axes, thumbnails, strict=False):
        marker = "." if len(item.values) < 3 else None  # a line needs points to join
        ax.plot(item.positions, item.values, color=SHEET_COLOR, lw=0.7, marker=marker)
        ax.set_title(item.title, loc="left", fontsize=7.5, pad=3)
        ax.margins(x=0)
        for axis, bins in ((ax.xaxis, 5), (ax.yaxis, 3)):
            axis.set_major_locator(MaxNLocator(bins))
            largest = max(map(abs, axis.get_view_interval()))
            plain = ScalarFormatter(useOffset=False)
            axis.set_major_formatter(plain if 1e-3 < largest < 1e4 else EngFormatter(sep=""))
        ax.tick_params(labelsize=6.5, length=2, color="#bbbbbb", labelcolor="#555555")
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["bottom", "left"]].set_color("#bbbbbb")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return Path(path)
