"""Pictures of which experts a model uses."""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from timemoe_jax import plotting
from timemoe_jax.errors import DataError

# Okabe and Ito's palette, which a colour-blind reader tells apart, with grey for black.
EXPERT_COLORS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7"),
    *("#56b4e9", "#d55e00", "#f0e442", "#444444"),
)


def plot_expert_usage(
    path: str | os.PathLike[str], usage: Mapping[str, Float[np.ndarray, "L E"]]
) -> Path:
    """Writes a heat map per dataset: how much of each layer's work each expert does.

    All maps share one scale of colours, on which the even share 1/E is marked (compare
    arXiv 2409.16040, Figure 4).

    Args:
      path: of the picture; its folder is made if needed.
      usage: by the name of the dataset, the shares that `expert_usage` returns.

    Raises:
      DataError: there is none, or one is no table of shares of the others' shape.
    """
    if not usage:
        raise DataError("usage is empty; a picture needs at least one dataset")
    shape = np.shape(next(iter(usage.values())))
    for name, shares in usage.items():
        if np.ndim(shares) != 2 or np.shape(shares) != shape or not np.size(shares):
            raise DataError(
                f"usage of {name!r} must be shares [L, E] {'' if len(shape) != 2 else shape}, "
                f"but has shape {np.shape(shares)}"
            )
        if not ((np.asarray(shares) >= 0) & (np.asarray(shares) <= 1)).all():
            raise DataError(f"usage of {name!r} must hold shares from 0 to 1, but holds others")
    layers, experts = shape
    rows = -(-len(usage) // 4)
    columns = -(-len(usage) // rows)
    cell = 0.26 if experts <= 16 else 0.13
    width, height = max(1.5, cell * experts) + 0.35, max(0.8, 0.2 * layers) + 0.45
    figure = plotting.new_figure(path, width * columns + 1.6, height * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    top = max(2 / experts, *(float(np.max(shares)) for shares in usage.values()))
    for ax in axes[len(usage) :]:
        ax.set_axis_off()
    for i, (ax, (name, shares)) in enumerate(zip(axes, usage.items(), strict=False)):
        image = ax.imshow(shares, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        title = textwrap.fill(name, int(13 * width))
        ax.set_title(title, loc="left", fontsize=9, parse_math=False)
        ax.tick_params(length=0, labelsize=7, labelbottom=i + columns >= len(usage))
        ax.spines[:].set_visible(False)
        for axis, count in ((ax.xaxis, experts), (ax.yaxis, layers)):
            axis.set_ticks(range(0, count, -(-count // 16)))
        if i % columns == 0:
            ax.set_ylabel("layer", fontsize=8)
        if i + columns >= len(usage):
            ax.set_xlabel("expert", fontsize=8)
    _share_scale(figure, image, axes, top, 1 / experts)
    return plotting.save_figure(figure, path, 130)


def _share_scale(figure: "Figure", image: Any, axes: Any, top: float, even: float) -> None:
    """The scale of colours beside the maps, with a line where the load is even."""
    bar = figure.colorbar(image, ax=axes, aspect=25, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.axhline(even, color="white", lw=2.5)
    bar.ax.axhline(even, color="black", lw=1)
    ticks: list[float] = []
    for tick in (even, top, 0.0, top / 2, top / 4, 3 * top / 4):
        if all(abs(tick - other) > 0.12 * top for other in ticks):
            ticks.append(tick)
    labels = [f"{100 * tick:.3g}%" + " (even)" * (tick == even) for tick in ticks]
    bar.set_ticks(ticks, labels=labels, fontsize=7)
    bar.ax.tick_params(length=2)
    bar.set_label("share of choices", fontsize=8)


def plot_expert_path(
    path: str | os.PathLike[str],
    series: Float[np.ndarray, " T"],
    chosen: Int[np.ndarray, "L T K"],
    *,
    num_experts: int | None = None,
    title: str = "",
) -> Path:
    """Writes a series and, below it, the expert that each layer chose first at every point.

    Up to eight experts have colours that a colour-blind reader tells apart; more are shades. Of a
    series longer than the picture is wide (1600 pixels), the strips show evenly spaced points.

    Args:
      path: of the picture; its folder is made if needed.
      series: NaN where missing: a gap.
      chosen: the experts that `expert_path` returns, best first; -1 where missing.
      num_experts: E; by default as many as the highest number chosen asks for.
      title: above the series.

    Raises:
      DataError: series and choices do not fit each other, or there are more experts than E.
    """
    chosen, series = np.asarray(chosen), np.asarray(series)
    if chosen.ndim != 3 or series.shape != chosen.shape[1:2] or not chosen.size:
        raise DataError(
            f"chosen must be [L, T, K] for a series [T], but has shape {chosen.shape} beside a "
            f"series of shape {series.shape}"
        )
    experts = int(chosen.max()) + 1 if num_experts is None else num_experts
    if chosen.max() >= experts or chosen.min() < -1 or experts < 1:
        raise DataError(
            f"chosen must hold experts from 0 to num_experts - 1 = {experts - 1}, and -1, but "
            f"holds {chosen.min()} to {chosen.max()}"
        )
    layers = len(chosen)
    strips = max(0.9, 0.24 * layers)
    figure = plotting.new_figure(path, 10, 2.1 + strips + 0.5)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.1, strips))
    plotting.draw_line(top, np.arange(float(len(series))), series, plotting.CONTEXT_COLOR, lw=1)
    top.set_title(title, loc="left", fontsize=10, parse_math=False)
    top.spines[["top", "right"]].set_visible(False)
    top.tick_params(labelbottom=False)
    plotting.plain_numbers(top.yaxis)
    _draw_strips(figure, below, chosen[..., 0], experts)
    top.set_xlim(-0.5, len(series) - 0.5)
    return plotting.save_figure(figure, path, 180)


def _draw_strips(figure: "Figure", ax: "Axes", first: Int[np.ndarray, "L T"], experts: int) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    few = experts <= len(EXPERT_COLORS)
    shades = EXPERT_COLORS[:experts] if few else colormaps["viridis"](np.linspace(0, 1, experts))
    colors = ListedColormap(list(shades))
    norm = BoundaryNorm(np.arange(experts + 1) - 0.5, experts)
    image = ax.imshow(
        np.ma.masked_less(first, 0), cmap=colors, norm=norm, aspect="auto", interpolation="nearest"
    )
    layers = len(first)
    for border in np.arange(layers - 1) + 0.5:
        ax.axhline(border, color="white", lw=2)
    ax.set_yticks(range(0, layers, -(-layers // 16)))
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("layer")
    ax.set_xlabel("point")
    if few:
        patches = [Patch(color=color, label=str(i)) for i, color in enumerate(shades)]
        figure.legend(
            handles=patches,
            title="first choice:\nexpert",
            loc="outside right center",
            fontsize=8,
            title_fontsize=8,
            frameon=False,
        )
    else:
        bar = figure.colorbar(image, ax=figure.axes, aspect=40, pad=0.01)
        bar.set_ticks(range(0, experts, -(-experts // 16)))
        bar.minorticks_off()
        bar.ax.tick_params(labelsize=8)
        bar.set_label("first choice: expert", fontsize=8)
