"""Segments in a causal decoder: the first token of a segment decides for all of its tokens.

Segment g of a series is its points g s .. g s + s - 1, counted from its first observed point, under
left padding and packing alike. A leader is never later than the tokens that it leads, so that what
a token computes follows from its past.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def points_since_start(
    mask: Bool[Array, "B T"], segments: Int[Array, "B T"] | None = None
) -> Int[Array, "B T"]:
    """How many points came before each in its series, from the first observed one on.

    A missing point in between counts. Before the first observed point it is negative. The segments
    are those of packed series.
    """
    index = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
    begin = jnp.zeros_like(index)
    if segments is not None:
        changes = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
        begin = jax.lax.cummax(jnp.where(changes, index, 0), axis=1)
    observed = jax.lax.cummax(jnp.where(mask, index, -1), axis=1)
    earlier = jnp.pad(observed[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = mask & (earlier < begin)
    start = jax.lax.cummax(jnp.where(starts, index, -1), axis=1)
    return jnp.where(start >= begin, index - start, -1)


def leaders_of(since: Int[Array, "B T"], segment: Int[Array, ""] | int) -> Int[Array, "B T"]:
    """The index of the leader of each token; negative where that is before the first token.

    A token before its series leads itself.
    """
    index = jnp.arange(since.shape[1])
    return jnp.where(since >= 0, index - jnp.maximum(since, 0) % segment, index)


def led(
    logits: Float[Array, "B T E"],
    leaders: Int[Array, "B T"],
    before: Float[Array, "B E"] | None = None,
) -> Float[Array, "B T E"]:
    """Each token's logits replaced by those of its leader.

    `before` are those of the last leader before the tokens, of those that it leads.
    """
    taken = jnp.take_along_axis(logits, jnp.maximum(leaders, 0)[..., None], axis=1)
    return taken if before is None else jnp.where((leaders < 0)[..., None], before[:, None], taken)
