"""A linear map from context to future, fitted in closed form to the windows of a train split.

A decomposition into a moving average and the rest, and a map of each, as DLinear has them (arXiv
2205.13504), is one linear map of the context; this is that map, by least squares with a ridge.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError

CLIP = 10.0  # deviations of a context, beyond which contexts and futures are cut
FLAT = 1e-3  # a context of a smaller deviation is flat, in the units of its window


class LinearMap(NamedTuple):
    """The map, between z-scored contexts and futures in the same units."""

    matrix: Float64[np.ndarray, "T H"]

    def forecast(
        self, context: Float64[np.ndarray, "B T"], horizon: int
    ) -> Float64[np.ndarray, "B horizon"]:
        """The next points, in the units of the context; a missing one is read as its mean.

        Raises:
          DataError: the map is of another context, or of a shorter horizon.
        """
        if context.shape[1] != len(self.matrix) or horizon > self.matrix.shape[1]:
            raise DataError(
                f"the map is of {len(self.matrix)} points to {self.matrix.shape[1]}, not of "
                f"{context.shape[1]} to {horizon}"
            )
        mean, deviation = (f(context, axis=1, keepdims=True) for f in (np.nanmean, np.nanstd))
        safe = np.where(deviation > 0, deviation, 1.0)
        scaled = np.nan_to_num(np.clip((context - mean) / safe, -CLIP, CLIP))
        return (scaled @ self.matrix[:, :horizon]) * deviation + mean


def usable(windows: Float64[np.ndarray, "B S"], context: int) -> Float64[np.ndarray, "K S"]:
    """The windows to fit to, z-scored by their first `context` points and cut; NaN is missing."""
    first = windows[:, :context]
    kept = np.isfinite(windows).all(axis=1)
    kept[kept] = first[kept].std(axis=1) > FLAT
    mean, deviation = (f(first[kept], axis=1, keepdims=True) for f in (np.mean, np.std))
    return np.clip((windows[kept] - mean) / deviation, -CLIP, CLIP)


class Products:
    """The sums that a fit needs, to which windows are added.

    A window counts 1 / (1 + the mean square of its future), so that those that leave their context
    far behind do not decide the map.
    """

    def __init__(self, context: int, horizon: int):
        self.context, self.count = context, 0
        self._products, self._targets = np.zeros((context, context)), np.zeros((context, horizon))

    def add(self, windows: Float64[np.ndarray, "K S"]) -> None:
        """Adds windows as `usable` returns them."""
        x, y = windows[:, : self.context], windows[:, self.context :]
        weight = 1 / (1 + np.square(y).mean(axis=1, keepdims=True))
        self._products += x.T @ (weight * x)
        self._targets += x.T @ (weight * y)
        self.count += len(windows)

    def solve(self, ridge: float) -> LinearMap:
        """The map; the ridge is in units of the mean square of a context's points."""
        return LinearMap(least_squares(self._products, self._targets, ridge))


def least_squares(
    products: Float64[np.ndarray, "T T"], targets: Float64[np.ndarray, "T H"], ridge: float
) -> Float64[np.ndarray, "T H"]:
    """The matrix W that (X'X + ridge mean(diag(X'X)) I) W = X'Y."""
    size = len(products)
    return np.linalg.solve(products + ridge * np.trace(products) / size * np.eye(size), targets)


def fit_linear_map(
    series: Sequence[Float64[np.ndarray, " _"]],
    heads: Sequence[int],
    context: int,
    horizon: int,
    ridges: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0),
    most: int = 8000,
) -> LinearMap | None:
    """The map fitted to the first points of series, as many as `heads` says.

    Of the ridges that is taken whose squared errors are least where windows reach beyond the heads.
    At most about `most` windows, evenly spaced, are read; None where fewer than two are usable.
    """
    total = sum(max(0, len(values) - context - horizon + 1) for values in series)
    stride = max(1, total // most)
    products, after = Products(context, horizon), []
    for values, head in zip(series, heads, strict=True):
        if len(values) < context + horizon:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(values, context + horizon)[::stride]
        ends = np.arange(len(windows)) * stride + context + horizon
        products.add(usable(windows[ends <= head], context))
        after.append(usable(windows[ends - horizon >= head], context))
    if products.count < 2:
        return None
    maps = [products.solve(ridge) for ridge in ridges]
    held_out = np.concatenate(after) if after else np.zeros((0, context + horizon))
    if not len(held_out):
        return maps[-1]
    x, y = held_out[:, :context], held_out[:, context:]
    errors = [float(np.mean(np.square(x @ each.matrix - y))) for each in maps]
    return maps[int(np.argmin(errors))]
