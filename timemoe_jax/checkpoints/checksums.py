"""A checksum for everything a checkpoint holds, the same on any number of devices."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from timemoe_jax.checkpoints.trees import flatten


def weights_digest(params: nnx.State) -> str:
    """The identity of a set of weights: SHA-256 over names, dtypes, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(params).items()):
        digest.update(f"{name}:{array.dtype}:{list(array.shape)}\n".encode())
        digest.update(array_bytes(array))
    return digest.hexdigest()


_CHUNK = 1 << 16  # words of an array that the host looks at together: those stay in its cache


class DamagedError(Exception):
    """What is wrong with a step, without saying which."""


def checksum(content: Any) -> int:
    """CRC-32 of a JSON value, whatever the order of its keys."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def array_bytes(array: Any) -> Any:
    """The values of an array as unsigned bytes."""
    # bfloat16 has no buffer of its own to hand out, hence the view.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _scramble(words: Any, positions: Any) -> Any:
    """Mixes 32-bit words with their positions; at one position no two words give the same."""
    mixed = words + positions * np.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))


def sum_on_host(array: Any) -> int:
    """The sum modulo 2**32 of the scrambled words of an array.

    An element of four bytes or fewer is a word, a larger one several. The sum of the parts is the
    sum of the whole, however the array is divided, and one wrong word always changes it.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    words = flat.view({1: np.uint8, 2: np.uint16}.get(flat.itemsize, np.uint32))
    places = np.arange(min(_CHUNK, words.size), dtype=np.uint32)
    total = 0
    for start in range(0, words.size, _CHUNK):
        part = words[start : start + _CHUNK].astype(np.uint32, copy=False)
        positions = places[: part.size] + np.uint32(start % 2**32)
        total += int(_scramble(part, positions).sum(dtype=np.uint64))
    return total % 2**32


@jax.jit
def sums_on_device(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`sum_on_host` of each, without moving more than the sums."""

    def one(array: jax.Array) -> jax.Array:
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.uint8)
        kind = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
        words = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
        positions, stride = jnp.zeros(words.shape, jnp.uint32), 1
        for axis in reversed(range(words.ndim)):
            along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            positions, stride = positions + along * np.uint32(stride), stride * words.shape[axis]
            stride %= 2**32
        return _scramble(words, positions).sum(dtype=jnp.uint32)

    return {name: one(array) for name, array in arrays.items()}


def _is_shared(array: Any) -> bool:
    """Whether other processes hold parts, or copies, of an array."""
    return isinstance(array, jax.Array) and not array.is_fully_addressable


def checksums_of(flat: Mapping[str, Any]) -> dict[str, set[int]]:
    """The checksum of every array: of each of the copies that this process has, so one if well.

    All processes must call this together where arrays are shared.
    """
    host: dict[str, Any] = {}
    groups: dict[Any, dict[str, jax.Array]] = {}
    for name, array in flat.items():
        devices: set[Any] = array.sharding.device_set if isinstance(array, jax.Array) else set()
        if not _is_shared(array) and all(device.platform == "cpu" for device in devices):
            host[name] = array
        else:  # a compiled function takes arrays of one mesh
            mesh = getattr(array.sharding, "mesh", frozenset(devices))
            groups.setdefault(mesh, {})[name] = array
    with ThreadPoolExecutor() as pool:
        found = dict(zip(host, ({n} for n in pool.map(sum_on_host, host.values())), strict=True))
    for group in groups.values():
        for name, total in sums_on_device(group).items():
            found[name] = {int(np.asarray(copy.data)) for copy in total.addressable_shards}
    return found


def array_records(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The dtype, shape and checksum of every array; all processes must call this together."""
    sums = checksums_of(flat)
    return {
        name: {"dtype": str(array.dtype), "shape": list(array.shape), "words": min(sums[name])}
        for name, array in flat.items()
    }
