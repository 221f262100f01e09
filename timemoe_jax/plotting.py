"""Pictures: context, truth and forecast, one panel a series."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

CONTEXT_COLOR, TRUTH_COLOR, FORECAST_COLOR = "#555555", "#1b7837", "#c2410c"


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
