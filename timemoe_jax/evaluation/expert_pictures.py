"""A picture of which experts a model uses."""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from timemoe_jax import plotting
from timemoe_jax.errors import DataError


def plot_expert_usage(
    path: str | os.PathLike[str], usage: Mapping[str, Float[np.ndarray, "L E"]]
) -> Path:
    """Writes a heat map per dataset: how much of each layer's work each expert does.

    All maps share one scale of colors, on which the even share 1/E is marked (compare
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
    """The scale of colors beside the maps, with a line where the load is even."""
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
