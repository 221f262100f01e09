"""Series as an encoder reads them: whole, from index 0 on, and slid along for a forecast.

Encoders have no mask for a missing point. What is missing between observed points is interpolated
linearly, and a series that is shorter than a window needs is filled up before its first point, with
the value of that.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Window(NamedTuple):
    """Rows that begin at index 0; what follows their points is 0 and means nothing."""

    values: Float[Array, "R W"]
    lengths: Int[Array, " R"]  # points of each
    first: Int[Array, " R"]  # the index that each began at


def interpolated(x: Float[Array, "R T"], mask: Bool[Array, "R T"]) -> Float[Array, "R T"]:
    """Missing points on the line between their observed neighbors, or equal to the nearest one."""
    length = x.shape[1]
    index = jnp.arange(length)
    before = jax.lax.cummax(jnp.where(mask, index, -1), axis=1)
    after = jax.lax.cummin(jnp.where(mask, index, length), axis=1, reverse=True)
    has_before, has_after = before >= 0, after < length
    left = jnp.take_along_axis(x, jnp.clip(before, 0, length - 1), axis=1)
    right = jnp.take_along_axis(x, jnp.clip(after, 0, length - 1), axis=1)
    share = (index - before) / jnp.maximum(after - before, 1)
    between = left + share * (right - left)
    filled = jnp.where(has_before & has_after, between, jnp.where(has_before, left, right))
    return jnp.where(mask, x, jnp.where(has_before | has_after, filled, 0))


def aligned(x: Float[Array, "R T"], mask: Bool[Array, "R T"] | None, variates: int = 1) -> Window:
    """Rows from their first observed point on, without gaps.

    The `variates` rows of a window that are neighbors begin and end together.
    """
    rows, length = x.shape
    if mask is None:
        return Window(x, jnp.full((rows,), length), jnp.zeros((rows,), jnp.int32))
    together = jnp.any(mask.reshape(-1, variates, length), axis=1)
    first = jnp.argmax(together, axis=1)
    last = length - 1 - jnp.argmax(together[:, ::-1], axis=1)
    lengths = jnp.where(jnp.any(together, axis=1), last + 1 - first, 0)
    first, lengths = (jnp.repeat(a, variates) for a in (first, lengths))
    return Window(moved(interpolated(x, mask), first, lengths), lengths, first)


def moved(
    x: Float[Array, "R T"], first: Int[Array, " R"], lengths: Int[Array, " R"]
) -> Float[Array, "R T"]:
    """Each row from index `first` on, for so many points, and zeros."""
    index = jnp.arange(x.shape[1])
    taken = jnp.take_along_axis(x, jnp.clip(first[:, None] + index, 0, x.shape[1] - 1), axis=1)
    return jnp.where(index < lengths[:, None], taken, 0)


def marks_from(
    marks: Float[Array, "B M T"], first: Int[Array, " B"], size: int
) -> Float[Array, "B M W"]:
    """The marks of `size` points from an index on; before the first mark there is that."""
    index = jnp.clip(first[:, None] + jnp.arange(size), 0, marks.shape[2] - 1)
    return jnp.take_along_axis(marks, index[:, None], axis=2)


def moved_back(y: Float[Array, "R W"], first: Int[Array, " R"], length: int) -> Array:
    """Rows [R, T] of a length with `y` at their index `first`, and zeros."""
    index = jnp.arange(length) - first[:, None]
    taken = jnp.take_along_axis(y, jnp.clip(index, 0, y.shape[1] - 1), axis=1)
    return jnp.where((index >= 0) & (index < y.shape[1]), taken, 0)


def filled_up(window: Window, shortest: int, size: int) -> Window:
    """Rows of at least `shortest` points, in arrays of `size`.

    A shorter row is preceded by its first value, and a size below the longest row cuts that to its
    newest points.
    """
    lengths = jnp.clip(window.lengths, shortest, size)
    room = max(window.values.shape[1], size)
    values = jnp.pad(window.values, ((0, 0), (0, room - window.values.shape[1])))
    first = window.lengths - lengths  # negative where a row is filled up
    index = first[:, None] + jnp.arange(size)
    taken = jnp.take_along_axis(values, jnp.clip(index, 0, room - 1), axis=1)
    inside = jnp.arange(size) < lengths[:, None]
    return Window(jnp.where(inside, taken, 0), lengths, window.first + first)


def slide(
    forward: Callable[[Float[Array, "R W"], Int[Array, " R"], Int[Array, ""]], Array],
    window: Window,
    *,
    patch_size: int,
    step: int,
    grows: bool,
    count: int,
) -> Float[Array, "R H"]:
    """Forecasts `count` steps of so many points, each read from a window that slides over them.

    Of every window the oldest points that make no whole patch are left out, for good. A window that
    `grows` takes in new points until its array is full, else it keeps its length.

    Args:
      forward: from windows, their lengths and the number of the step to the windows that come out:
        `y[i]` is the value `step` points after index i.
      window: of lengths at least a patch and a step.
      patch_size: points of a patch.
      step: points that a forward pass adds.
      grows: see above.
      count: of steps.
    """
    size = window.values.shape[1]

    def once(carry: tuple[Array, Array], number: Int[Array, ""]) -> tuple:
        values, lengths = carry
        left_over = lengths % patch_size
        lengths = lengths - left_over
        values = moved(values, left_over, lengths)
        y = forward(values, lengths, number)
        at = lengths[:, None] - step + jnp.arange(step)
        new = jnp.take_along_axis(y, jnp.clip(at, 0, y.shape[1] - 1), axis=1)
        room = jnp.pad(values, ((0, 0), (0, step)))
        index = jnp.arange(room.shape[1]) - lengths[:, None]
        added = jnp.take_along_axis(new, jnp.clip(index, 0, step - 1), axis=1)
        room = jnp.where((index >= 0) & (index < step), added, room)
        kept = jnp.minimum(lengths + step, size) if grows else lengths
        values = moved(room, lengths + step - kept, kept)[:, :size]
        return (values, kept), new

    start = (window.values, window.lengths)
    points: Array
    _, points = jax.lax.scan(once, start, jnp.arange(count))
    return jnp.moveaxis(points, 0, 1).reshape(len(window.values), -1)
