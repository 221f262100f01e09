"""Routed experts with a capacity: fixed shapes, and tokens beyond it dropped (arXiv 2006.16668).

Every expert computes the same number of rows. First choices are served before second ones, and
among equal choices earlier tokens before later ones. A dropped choice adds nothing to its token,
and is counted.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from timemoe_jax.nn.experts.kinds import KINDS, Inner, products
from timemoe_jax.nn.experts.routing import Routing
from timemoe_jax.nn.experts.weights import ExpertWeights, rank_within, rows


def capacity(pairs: int, num_groups: int, factor: float) -> int:
    """Rows that each of several groups can take: `factor` times an even share, at most all."""
    return min(pairs, math.ceil(pairs * factor / num_groups))


def slots(indices: Int[Array, "T K"], num_groups: int, size: int) -> Int[Array, "T K"]:
    """The slot of each (token, choice), group * size + rank; num_groups * size if it is dropped."""
    tokens, choices = indices.shape
    in_order = indices.T.reshape(-1)
    rank, _ = rank_within(in_order, num_groups)
    kept = (rank >= 0) & (rank < size)
    slot = jnp.where(kept, in_order * size + rank, num_groups * size)
    return slot.reshape(choices, tokens).T


def fill(slot: Int[Array, "T K"], count: int) -> Int[Array, " S"]:
    """The token in each of `count` slots; T in an empty one."""
    token = jnp.broadcast_to(jnp.arange(slot.shape[0])[:, None], slot.shape)
    return jnp.full((count,), slot.shape[0]).at[slot].set(token, mode="drop")


def dropped(indices: Int[Array, "T K"], num_experts: int, factor: float) -> Int[Array, ""]:
    """How many (token, choice) pairs find their expert full."""
    size = capacity(indices.size, num_experts, factor)
    _, loads = rank_within(indices.reshape(-1), num_experts)
    return jnp.sum(jnp.maximum(loads - size, 0))


def with_capacity(
    x: Float[Array, "T D"], routing: Routing, weights: ExpertWeights, inner: Inner, factor: float
) -> Float[Array, "T D"]:
    """A fixed number of rows per expert, all experts in one batched product."""
    num_experts, size = weights.up.shape[0], x.shape[1]
    decisions, kind = len(routing.indices), KINDS[inner.kind]
    room = capacity(routing.indices.size, num_experts, factor)
    slot = slots(routing.indices, num_experts, room)
    inputs = rows(x.reshape(decisions, -1), fill(slot, num_experts * room))
    inputs = inputs.reshape(num_experts, -1, size)

    def product(a: Float[Array, "E C I"], b: Float[Array, "E I O"]) -> Float[Array, "E C O"]:
        return jnp.einsum("eci,eio->eco", a, b, preferred_element_type=jnp.float32)

    hidden = kind.hidden(*products(weights, lambda w: product(inputs, w)))
    if routing.seeds is not None:
        # Several choices share no slot, so that each slot has the seed of one.
        drawn = jnp.zeros((num_experts * room,), jnp.uint32)
        drawn = drawn.at[slot].set(routing.seeds, mode="drop")
        masks = inner.mask(drawn, hidden.size // len(drawn))
        hidden = hidden * masks.reshape(hidden.shape)
    y = product(hidden.astype(x.dtype), weights.down)
    y = (y if kind.output is None else kind.output(y)).reshape(num_experts * room, -1)
    picked = jnp.einsum("tkd,tk->td", rows(y, slot), routing.weights)
    return picked.astype(x.dtype).reshape(x.shape)
