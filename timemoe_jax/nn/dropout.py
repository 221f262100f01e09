"""Dropout and stochastic depth from hashed counters: the same draws on any mesh, in any order.

A draw is a hash of a seed and of the number of what it is of, so that a backward pass, a device or
a block of rows computes the draws of its own part again, and keeps none. The hash is a finalizer of
32 bits of two multiplications, which on a CPU costs a fraction of JAX's own generator.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

Seed = UInt32[Array, ""]


def mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A hash of 32 bits to 32 bits, one to one."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def seed_of(key: Array, number: int) -> Seed:
    """A seed of its own for each number, from a key of `jax.random`."""
    return jax.random.bits(jax.random.fold_in(key, number), dtype=jnp.uint32)


def numbered(seed: UInt32[Array, "*#N"], numbers: UInt32[Array, "*#N"]) -> UInt32[Array, "..."]:
    """A seed for each number, by broadcasting."""
    return mixed(seed ^ mixed(numbers * jnp.uint32(0x9E3779B9) + jnp.uint32(1)))


def kept(seeds: UInt32[Array, "..."], rate: float) -> Float[Array, "..."]:
    """0 where a draw falls below the rate, else 1 / (1 - rate), float32."""
    least = jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(seeds >= least, jnp.float32(1 / (1 - rate)), jnp.float32(0))


def counted(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The number of each entry of an array, in row-major order."""
    total = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        total += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return total


def dropout(x: Float[Array, "..."], rate: float, seed: Seed | None) -> Float[Array, "..."]:
    """Entries become 0 at a rate, the others grow by 1 / (1 - rate); without a seed none do."""
    if seed is None or rate == 0:
        return x
    return x * kept(mixed(seed ^ mixed(counted(x.shape))), rate).astype(x.dtype)


def drop_path(x: Float[Array, "B ..."], rate: float, seed: Seed | None) -> Float[Array, "B ..."]:
    """Whole rows of a branch become 0 at a rate: stochastic depth (arXiv 1603.09382)."""
    if seed is None or rate == 0:
        return x
    rows = kept(mixed(seed ^ mixed(counted((x.shape[0],)))), rate)
    return x * rows.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
