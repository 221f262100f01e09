"""Windows cut into pieces of many lengths, each read alone and z-scored by its own first points.

A model that is to forecast from any context must see contexts of any length, z-scored as they will
be. A window holds one context of its own length, or several shorter ones side by side, so that as
many forecasts of short contexts are made from a window as of long ones, at the same cost.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.pipeline.standardize import FLAT_CONTEXT
from timemoe_jax.training.context_scaling import last_observed


class Cuts(NamedTuple):
    """How the windows of a batch are cut, by whole numbers; each of the windows its own."""

    shift: Int[Array, " B"]  # points that a window is moved to the right, so that patches differ
    length: Int[Array, " B"]  # of its pieces
    hidden: Int[Array, " B"]  # of the first points of each piece, which are not read
    # Of each piece, the share of what it may be scaled by beyond the least, in [0, 1).
    share: Float[Array, "B K"]
    sign: Float[Array, " B"]  # 1, or -1 where it is turned upside down


def cut_pieces(
    data: DataConfig, stride: int, batch: Mapping[str, Any], key: Array | None
) -> dict[str, Any]:
    """A batch as `objective.prepare` gives it; without a key every window is one piece.

    Of a piece, "context_min" points at least and at most all are its context, a random number of
    them from half of those that it has. They give the location and the scale of the whole piece,
    and forecasts from the last of them on count. A piece with a flat context has none.
    """
    observed = last_observed(batch["mask"][:, : data.length]) + 1
    cuts = _whole(data, stride, observed) if key is None else _draw(data, stride, observed, key)
    values, mask = _shifted(batch["values"], batch["mask"], cuts)
    read = mask[:, : data.length]
    index = jnp.arange(data.length)
    piece = index // cuts.length[:, None]
    within = index - piece * cuts.length[:, None]
    read = read & (within >= cuts.hidden[:, None])
    ends = _context_ends(data, cuts, jnp.minimum(observed + cuts.shift, data.length))
    used = read & (within < jnp.take_along_axis(ends, piece, axis=1))
    mean, deviation, usable = _statistics(values[:, : data.length], used, piece, ends.shape[1])
    inputs = (values[:, : data.length] - mean) / deviation
    if data.clip > 0:
        inputs = jnp.clip(inputs, -data.clip, data.clip)
    counts = read & usable & (within + 1 >= jnp.take_along_axis(ends, piece, axis=1))
    return {
        "values": values,
        "mask": mask,
        "inputs": jnp.where(read, inputs, 0),
        "read": read,
        "pieces": piece,
        "mean": mean,
        "deviation": deviation,
        "positions": counts.astype(jnp.float32),
    }


def _whole(data: DataConfig, stride: int, observed: Int[Array, " B"]) -> Cuts:
    """Every window as one piece, whose last observed input ends a patch."""
    rows = len(observed)
    return Cuts(
        shift=-observed % stride,
        length=jnp.full(rows, data.length),
        hidden=jnp.zeros(rows, jnp.int32),
        share=jnp.ones((rows, data.length // data.piece_lengths(stride)[0])),
        sign=jnp.ones(rows),
    )


def _draw(data: DataConfig, stride: int, observed: Int[Array, " B"], key: Array) -> Cuts:
    """Pieces are no longer than it takes to hold what is observed of a window."""
    rows, most_pieces = len(observed), data.length // data.piece_lengths(stride)[0]
    lengths = jnp.asarray(data.piece_lengths(stride))
    of_shift, of_length, of_hidden, of_share, of_sign = jax.random.split(key, 5)
    shift = jax.random.randint(of_shift, (rows,), 0, stride)
    enough = jnp.searchsorted(lengths, jnp.minimum(observed + shift, lengths[-1]))
    weights = jnp.where(
        jnp.arange(len(lengths)) <= enough[:, None], data.piece_power * jnp.log(lengths), -jnp.inf
    )
    length = lengths[jax.random.categorical(of_length, weights)]
    most = jnp.minimum(stride - 1, length - data.context_min)
    uniform = jax.random.uniform(of_hidden, (rows,))
    flipped = jax.random.bernoulli(of_sign, data.sign_flips, (rows,))
    return Cuts(
        shift=shift,
        length=length,
        hidden=jnp.floor(uniform * (most + 1)).astype(jnp.int32),
        share=jax.random.uniform(of_share, (rows, most_pieces)),
        sign=jnp.where(flipped, -1.0, 1.0),
    )


def _shifted(
    values: Float[Array, "B S"], mask: Bool[Array, "B S"], cuts: Cuts
) -> tuple[Float[Array, "B S"], Bool[Array, "B S"]]:
    """Moves each window to the right; its last points fall out, and its first are missing."""
    source = jnp.arange(values.shape[1]) - cuts.shift[:, None]
    at = jnp.maximum(source, 0)
    moved = jnp.take_along_axis(mask, at, axis=1) & (source >= 0)
    shifted = jnp.take_along_axis(values, at, axis=1) * cuts.sign[:, None]
    return jnp.where(moved, shifted, 0), moved


def _context_ends(data: DataConfig, cuts: Cuts, observed: Int[Array, " B"]) -> Int[Array, "B K"]:
    """Where the context of each piece ends, counted from the first point of the piece."""
    first = jnp.arange(cuts.share.shape[1]) * cuts.length[:, None]
    available = jnp.clip(observed[:, None] - first, 0, cuts.length[:, None])
    least = jnp.maximum(cuts.hidden[:, None] + data.context_min, available // 2)
    # The first piece may begin with points that a shift left missing.
    least = least.at[:, 0].max(cuts.shift + data.context_min)
    room = jnp.maximum(available - least, 0)
    drawn = jnp.floor(cuts.share * (room + 1)).astype(jnp.int32)
    return least + jnp.minimum(drawn, room)


def _statistics(
    values: Float[Array, "B T"], used: Bool[Array, "B T"], piece: Int[Array, "B T"], most: int
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]]:
    """Location and scale of the piece of each point, and whether it has any."""

    def sums(a: Array) -> Array:
        of_pieces = jax.vmap(lambda row, at: jax.ops.segment_sum(row, at, most))(a, piece)
        return jnp.take_along_axis(of_pieces, piece, axis=1)

    count = jnp.maximum(sums(used.astype(jnp.float32)), 1)
    mean = sums(jnp.where(used, values, 0)) / count
    squares = jnp.where(used, values - mean, 0) ** 2
    deviation = jnp.sqrt(sums(squares) / count)
    usable = deviation >= FLAT_CONTEXT
    return mean, jnp.where(usable, deviation, 1.0), usable
