"""What a device takes: the dtype that it computes in, and how much fits into its memory."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from timemoe_jax.config import DTYPES
from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import Family
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.host_memory import free_bytes

# The share of the free memory that a batch of automatic size may take, and the most bytes.
MEMORY_SHARE = 0.25
MAX_BATCH_BYTES = 2**31


def dtype_of(dtype: str, params: nnx.State) -> str:
    """What to compute in; "auto" is bfloat16 for parameters stored so, but on a CPU float32.

    Raises:
      ConfigError: the dtype is not known.
    """
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype must be auto, {' or '.join(DTYPES)}, but is {dtype!r}")
    if dtype != "auto":
        return dtype
    stored = {p.dtype for p in jax.tree.leaves(params)}
    half = stored == {jnp.dtype("bfloat16")} and jax.default_backend() != "cpu"
    return "bfloat16" if half else "float32"


def cast_params(params: nnx.State, dtype: jnp.dtype, family: Family) -> nnx.State:
    """Parameters in the dtype they are computed in; norms and routers stay float32."""

    def cast(path: tuple[Any, ...], p: Any) -> Array:
        keep = re.search(family.float32, partitioning.path_name(path))
        wanted = jnp.dtype("float32") if keep else dtype
        if isinstance(p, jax.Array) and (len(p.devices()) > 1 or p.dtype == wanted):
            return jnp.asarray(p, wanted)
        # On the host, which compiles nothing: JAX would compile a program for each shape.
        return jax.device_put(np.asarray(p).astype(wanted, copy=False))

    return jax.tree_util.tree_map_with_path(cast, params)


def batch_bytes() -> float:
    """What a batch may take of the memory that is free now."""
    return min(MEMORY_SHARE * _free_bytes(), MAX_BATCH_BYTES)


def _free_bytes() -> int:
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return free_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a program says that something did not fit."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or "RESOURCE_EXHAUSTED" in text
        or "out of memory" in text.lower()
    )
