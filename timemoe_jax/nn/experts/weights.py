"""The kernels of the routed experts, and how (token, choice) pairs are ranked within an expert.

Every implementation in `compute.py` builds on this. An expert index outside [0, E) stands for
nobody: no one here computes such a pair, and it adds nothing. So a device that holds some of the
experts learns which tokens go elsewhere.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class ExpertWeights(NamedTuple):
    """The kernels of all experts; a kind without a gate has none (`nn.experts.kinds`)."""

    gate: Float[Array, "E D F"] | None
    up: Float[Array, "E D F"]
    down: Float[Array, "E F D"]


# Up to so many members each is compared with all others: one small loop to compile, where a running
# count is half a dozen.
FEW = 1024


def rank_within(
    groups: Int[Array, " N"], num_groups: int
) -> tuple[Int[Array, " N"], Int[Array, " G"]]:
    """The rank of each member in its group, in order and without a sort, and each group's size.

    A member whose group is not from 0 to G - 1 is of none, and has rank -1.
    """
    member = (groups[:, None] == jnp.arange(num_groups)).astype(jnp.int32)
    if groups.size <= FEW:
        places = jnp.arange(groups.size)
        earlier = (groups[:, None] == groups) & (places[:, None] > places)
        rank = jnp.where(member.any(axis=1), jnp.sum(earlier.astype(jnp.int32), axis=1), -1)
        return rank, jnp.sum(member, axis=0)
    running = jnp.cumsum(member, axis=0)
    rank = jnp.sum(running * member, axis=1) - 1
    return rank, running[-1]


def rows(array: Float[Array, "T ..."], index: Int[Array, "..."]) -> Array:
    """Gathers rows; an index past the end (nobody's row) gives zeros."""
    return array.at[index].get(mode="fill", fill_value=0)
