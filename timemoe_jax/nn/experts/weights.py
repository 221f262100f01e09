"""The kernels of the routed experts, and how (token, choice) pairs are ranked within an expert.

What every implementation in `experts.py` builds on. An expert's index outside [0, E) stands for
nobody: such a pair is computed by no one here and adds nothing. That is how a device that holds
some of the experts is told of tokens that go elsewhere.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class ExpertWeights(NamedTuple):
    """The three kernels of all experts."""

    gate: Float[Array, "E D F"]
    up: Float[Array, "E D F"]
    down: Float[Array, "E F D"]


def rank_within(
    groups: Int[Array, " N"], num_groups: int
) -> tuple[Int[Array, " N"], Int[Array, " G"]]:
    """Numbers the members of each group in the order in which they come, without a sort.

    Args:
      groups: of each member, from 0 to G - 1; a member of no group has any other number.
      num_groups: G.

    Returns:
      the rank of each member in its group (-1 for one of none), and the size of each group.
    """
    member = (groups[:, None] == jnp.arange(num_groups)).astype(jnp.int32)
    running = jnp.cumsum(member, axis=0)
    rank = jnp.sum(running * member, axis=1) - 1
    return rank, running[-1]


def rows(array: Float[Array, "T ..."], index: Int[Array, "..."]) -> Array:
    """Gathers rows; an index past the end (nobody's row) gives zeros."""
    return array.at[index].get(mode="fill", fill_value=0)
