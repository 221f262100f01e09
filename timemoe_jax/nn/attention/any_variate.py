"""Attention among several variates: their patches are one sequence (arXiv 2505.15151).

Patch i of variate m reads patch j of variate n where j <= i and m is linked to n: the mask is the
Kronecker product of the links with a lower triangle. The score of such a pair is

    q · R(i - j) k / sqrt(H) + b[m, n],    b[m, n] = same where m = n, else other,

with a rotary embedding R of the patches alone, and `same` and `other` learned for each head: they
do not depend on the order of the variates.

The sequence runs over patches first and variates second, so that what a patch may read is all that
comes before a point of the sequence. A static loop over blocks of patches meets the keys up to the
end of each, in the forward pass and again in the backward pass. Neither mask nor scores are ever
larger than one block, whose size does not grow with the square of the number of patches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from timemoe_jax.nn.attention.chunked import FORBIDDEN
from timemoe_jax.nn.attention.layer import Attention
from timemoe_jax.runtime import partitioning

# Queries of a block: its scores fit in a processor's cache, a head at a time.
BLOCK_ROWS = 128
# Beyond this exponent a variate that is not linked has no more to say to the gradient of its link.
LARGEST_UNLINKED = 10.0

# Who reads whom: True or 1 where variate m may read n. Numbers have a gradient, booleans none.
Links = Bool[Array, "B C C"] | Float[Array, "B C C"]


class _Block(NamedTuple):
    """The queries of some patches, and all that they may read."""

    queries: Float[Array, "B N Q C H"]
    keys: Float[Array, "B N S C H"]
    values: Float[Array, "B N S C H"]
    bias: Float[Array, "N C C"]
    links: Links | None
    mask: Bool[Array, "B S C"] | None


def any_variate_attention(
    queries: Float[Array, "B N T C H"],
    keys: Float[Array, "B N T C H"],
    values: Float[Array, "B N T C H"],
    bias: Float[Array, "N C C"],
    links: Links | None = None,
    mask: Bool[Array, "B T C"] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Float[Array, "B N T C H"]:
    """Attention of every patch of every variate to the patches up to it of the linked variates.

    Args:
      queries, keys, values: of each head, patch and variate; queries and keys are rotated.
      bias: added to the scores of each pair of variates.
      links: which variates [m, n] are read; every variate reads itself. Numbers are 0 or 1, and
        have a gradient, that of the weight which a link gives or would give; None links all.
      mask: False where a patch must not be read; None reads all. A patch that may read none gets a
        finite result that means nothing.
      block_rows: about how many queries of a head meet the keys at once, in whole patches.
    """
    length, variates = queries.shape[2:4]
    patches = max(1, block_rows // variates)
    read = jax.checkpoint(_read, prevent_cse=False, static_argnums=1)
    outputs = []
    for start in range(0, length, patches):
        stop = min(start + patches, length)
        block = _Block(
            queries[:, :, start:stop],
            keys[:, :, :stop],
            values[:, :, :stop],
            bias,
            links,
            None if mask is None else mask[:, :stop],
        )
        outputs.append(read(block, start))
    return jnp.concatenate(outputs, axis=2)


def _read(block: _Block, start: int) -> Float[Array, "B N Q C H"]:
    """What the queries of a block read, the first of which are of patch `start`."""
    queries, (batch, heads, patches, variates, size) = block.queries, block.queries.shape
    stop = block.keys.shape[2]

    def rows(a: Float[Array, "B N T C H"]) -> Float[Array, "B N R H"]:
        return a.reshape(batch, heads, -1, size)

    raw = jnp.einsum(
        "bnqh,bnsh->bnqs", rows(queries), rows(block.keys), preferred_element_type=jnp.float32
    )
    score = raw.reshape(batch, heads, patches, variates, stop, variates) * size**-0.5
    score = score + block.bias[None, :, None, :, None, :]
    learned = block.links is not None and block.links.dtype != jnp.bool_
    linked = None if block.links is None else block.links.astype(bool)
    readable = _allowed(start, stop, None if learned else linked, block.mask)
    score = score + jnp.where(readable, 0.0, FORBIDDEN)[:, None]
    if learned:
        weights = _weights_of_links(score, block.links)
    else:
        largest = jax.lax.stop_gradient(jnp.max(score, axis=(-2, -1), keepdims=True))
        weights = jnp.exp(score - largest)
    weights = weights.reshape(raw.shape)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    values = rows(block.values)
    read = jnp.einsum(
        "bnqs,bnsh->bnqh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return (read / total).astype(values.dtype).reshape(queries.shape)


def _allowed(
    start: int, stop: int, links: Bool[Array, "B C C"] | None, mask: Bool[Array, "B S C"] | None
) -> Bool[Array, "#B Q #C S #C"]:
    """What patches `start` to `stop` may read."""
    allowed = (jnp.arange(start, stop)[:, None] >= jnp.arange(stop))[None, :, None, :, None]
    if links is not None:
        allowed = allowed & links[:, None, :, None, :]
    if mask is not None:
        allowed = allowed & mask[:, None, None]
    return allowed


def _weights_of_links(
    score: Float[Array, "B N Q C S C"], links: Any
) -> Float[Array, "B N Q C S C"]:
    """Unnormalized weights, 0 where there is no link, but with the gradient of one."""
    by_pair = links[:, None, None, :, None, :]
    among_linked = jnp.where(by_pair > 0, score, FORBIDDEN)
    largest = jax.lax.stop_gradient(jnp.max(among_linked, axis=(-2, -1), keepdims=True))
    return jnp.exp(jnp.minimum(score - largest, LARGEST_UNLINKED)) * by_pair


class AnyVariateAttention(Attention):
    """`Attention` whose heads also have a bias for the variate itself and one for the others.

    Both start at 0, and neither has an effect on a variate by itself: with it alone, `same` adds
    the same to all scores, and `other` to none.
    """

    def __init__(self, hidden_size: int, num_heads: int, **options: Any):
        super().__init__(hidden_size, num_heads, num_heads, **options)
        self.same = nnx.Param(jnp.zeros((num_heads,), jnp.float32))
        self.other = nnx.Param(jnp.zeros((num_heads,), jnp.float32))

    def apart(
        self, x: Float[Array, "B C T D"], mask: Bool[Array, "B C T"]
    ) -> Float[Array, "B C T D"]:
        """Attends within each variate: ordinary causal attention."""
        rows = x.reshape(-1, *x.shape[2:])
        return self(rows, mask.reshape(-1, mask.shape[-1]))[0].reshape(x.shape)

    def among(
        self, x: Float[Array, "B C T D"], mask: Bool[Array, "B C T"], links: Links | None
    ) -> Float[Array, "B C T D"]:
        """Attends to all variates that are linked: see `any_variate_attention`."""
        batch, variates, length, _ = x.shape
        own = jnp.eye(variates, dtype=bool)
        bias = jnp.where(own, self.same[...][:, None, None], self.other[...][:, None, None])

        def in_time(by_head: Float[Array, "R N T H"]) -> Float[Array, "B N T C H"]:
            of_window = by_head.reshape(batch, variates, *by_head.shape[1:])
            return of_window.transpose(0, 2, 3, 1, 4)

        # Each device attends within its own windows and heads.
        heads, windows = P(partitioning.BATCH, "tensor"), P(partitioning.BATCH)
        attend_here = partitioning.per_device(
            any_variate_attention,
            in_specs=(
                heads,
                heads,
                heads,
                P("tensor"),
                None if links is None else windows,
                windows,
            ),
            out_specs=heads,
        )
        rows, positions = x.reshape(-1, *x.shape[2:]), jnp.arange(length)
        queries, kv = self._queries(rows, positions), self._key_values(rows, positions)
        read = attend_here(*map(in_time, (queries, *kv)), bias, links, mask.swapaxes(1, 2))
        return self.out(read.transpose(0, 3, 2, 1, 4).reshape(x.shape))
