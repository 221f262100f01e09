"""Which variates a joint model links, and a picture of it."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Float64

from timemoe_jax import plotting
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.contexts import Inputs
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import family_of

MOST_LABELS = 60  # of an axis; of more variates only every so many-th has its name


def link_probabilities(
    forecaster: Forecaster,
    inputs: Any,
    context_length: int | None = None,
    normalize: str = "instance",
    names: Sequence[str] | None = None,
) -> dict[int, tuple[Float64[np.ndarray, "C C"], list[str]]]:
    """How probable it is that each variate m reads variate n, by the contexts of a forecast.

    Args:
      forecaster: of a joint model with a graph.
      inputs: multivariate series, as `Forecaster.forecast` takes them.
      context_length, normalize, names: as `forecast` takes them.

    Returns:
      by the number of the item the probabilities [m, n], of which those above the threshold are
      links in use, and the names of its variates.

    Raises:
      ConfigError: the model has no graph.
      DataError: a series or an argument cannot be used.
    """
    engine = forecaster.engine
    family_of(engine.config).link_threshold(engine.config)  # an error where there are no links
    settings = engine.settings(0, context_length, normalize, "auto", False)
    parsed = Inputs.parse(inputs, names)
    contexts = [c._replace(gap=0, ahead=None) for c in parsed.contexts(settings.context_length)]
    found: dict[int, tuple[np.ndarray, list[str]]] = {}

    def compute(params: nnx.State, x: Any, mask: Any, steps: int) -> Any:
        return _of_batch(engine.graph, params, x, mask)

    for rows, _, matrices in engine.batches(contexts, settings, compute):
        by_window = np.reshape(rows, (-1, matrices.shape[-1])).tolist()
        for window, matrix in zip(by_window, matrices, strict=False):
            labels = [contexts[i].label for i in window if i >= 0]
            size = len(labels)
            found[contexts[window[0]].item or 0] = (
                np.asarray(matrix, np.float64)[:size, :size],
                labels,
            )
    return found


@functools.partial(jax.jit, static_argnames="graph")
def _of_batch(graph: nnx.GraphDef, params: nnx.State, x: Any, mask: Any) -> Any:
    model = nnx.merge(graph, params)
    return family_of(model.config).link_probability(model, x, mask)


def plot_links(
    path: str | os.PathLike[str],
    probabilities: Mapping[str, tuple[Float[np.ndarray, "C C"], Sequence[str]]],
    threshold: float = 0.5,
) -> Path:
    """Writes a heat map per item: the probability that a row's variate reads a column's.

    Links in use, above the threshold, have a dot.

    Args:
      path: of the picture; its folder is made if needed.
      probabilities: by the title of an item, as `link_probabilities` returns them.
      threshold: of the model.

    Raises:
      DataError: there is none, or a matrix does not fit its names or [0, 1].
    """
    if not probabilities:
        raise DataError("probabilities is empty; a picture needs at least one item")
    for item, (matrix, names) in probabilities.items():
        if np.shape(matrix) != (len(names), len(names)):
            raise DataError(
                f"the links of {item} must be a matrix of its {len(names)} variates, but have the "
                f"shape {np.shape(matrix)}"
            )
        if not ((np.asarray(matrix) >= 0) & (np.asarray(matrix) <= 1)).all():
            raise DataError(f"the links of {item} must hold probabilities, but hold others")
    shown = list(probabilities.items())[: plotting.MAX_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    most = max(len(names) for _, (_, names) in shown)
    side = min(9.0, max(2.2, 0.24 * most))
    figure = plotting.new_figure(path, (side + 1.4) * columns + 0.8, (side + 1.2) * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    for ax, (item, (matrix, names)) in zip(axes, shown, strict=False):
        image = _draw(ax, np.asarray(matrix), names, threshold, 60 * side / most)
        ax.set_title(item, loc="left", fontsize=9, parse_math=False)
    bar = figure.colorbar(image, ax=axes, aspect=25, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.axhline(threshold, color="black", lw=1)
    bar.ax.tick_params(length=2, labelsize=7)
    bar.set_label(f"probability of a link (a dot: in use, above {threshold:g})", fontsize=8)
    return plotting.save_figure(figure, path, 130)


def _draw(
    ax: Any, matrix: Float[np.ndarray, "C C"], names: Sequence[str], threshold: float, cell: float
) -> Any:
    """One matrix; a cell is so many points wide."""
    image = ax.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    read, by = np.nonzero((matrix > threshold).T)
    ax.scatter(read, by, s=(0.22 * cell) ** 2, color="white", edgecolors="black", linewidths=0.4)
    every = range(0, len(names), -(-len(names) // MOST_LABELS))
    labels = [names[i] for i in every]
    size = 7 if len(labels) <= 25 else 5
    ax.set_xticks(every, labels, rotation=90, fontsize=size, parse_math=False)
    ax.set_yticks(every, labels, fontsize=size, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("is read", fontsize=8)
    ax.set_ylabel("reads", fontsize=8)
    return image
