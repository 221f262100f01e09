"""Causal attention by kernels that come with JAX: cuDNN's on a GPU, splash attention on a TPU.

Both kernels see a masked key through one more coordinate of the head: MARK in every query, FAR in
the masked keys and 0 in the others. The score of a masked key falls by |MARK * FAR|, so that its
weight is exactly 0 beside any other; no other score changes. The coordinate makes a head wider by
eight with cuDNN and, unless it fills its lanes already, by nothing with splash attention.

The kernels' own masks cost more or mean something else. cuDNN takes a mask only as [B, 1, T, T]
([B, 1, 1, T] is refused): an array of biases that it reads in both passes and differentiates, so
that memory is quadratic in the length, which such a kernel is there to avoid. The segments of
splash attention would also hide unmasked keys from masked queries; they are used only to confine
attention to one of several series in a row. JAX's interface does not reach cuDNN's segments.

Each wrapper is the same code on every backend, which is how it is tested: off its own hardware,
XLA takes the place of cuDNN, and the splash kernel is interpreted.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from timemoe_jax.nn.attention.chunked import Keys, Mask, Queries, Segments

# Powers of two, which every dtype holds exactly. MARK * FAR is beyond any
# score, even times H^-0.5, and yet so small that a row of nothing but masked keys stays finite:
# near 1e30 the rounding of a fused multiply-add would be enough to overflow the exponential.
MARK, FAR = 8.0, -(2.0**15)

CUDNN_SIZE_MULTIPLE = 8  # of the head
CUDNN_MAX_SIZE = 128  # of the head, on every GPU that has the kernel; from Hopper on it takes 256
# The library refuses to differentiate an odd length, with a mask and without.
CUDNN_LENGTH_MULTIPLE = 2
CUDNN_DTYPES = ("float16", "bfloat16")
CUDNN_CAPABILITY = (8, 0)  # Ampere

SPLASH_SIZE_MULTIPLE = 128  # of the head: the lanes of a register
SPLASH_BLOCKS = (512, 256, 128)  # queries and keys at a time: the first that divides the length
SPLASH_DTYPES = ("float32", "bfloat16")


def kernel_platform(backend: str, capability: str) -> str:
    """The platform whose kernel can run: "gpu", "tpu" or "cpu"; anything else has none.

    `capability` is that of a GPU's devices, such as "9.0" for an NVIDIA H100.
    """
    version = re.fullmatch(r"(\d+)\.(\d+)", capability)
    flash = version is not None and (int(version[1]), int(version[2])) >= CUDNN_CAPABILITY
    return "gpu without cudnn attention" if backend == "gpu" and not flash else backend


def current_platform() -> str:
    """The `kernel_platform` of this process."""
    capability = getattr(jax.devices()[0], "compute_capability", "")
    return kernel_platform(jax.default_backend(), str(capability))


def devices_to_split_over() -> int:
    """How many devices the compiler may split the function being traced over.

    Within `jax.shard_map` these are the axes that are left to the compiler. Without a mesh there
    is no telling, so it is all devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count()
    return math.prod(size for name, size in mesh.shape.items() if name not in mesh.manual_axes)


def refusal(name: str, platform: str, dtype: np.dtype, head_dim: int, masked: bool) -> str | None:
    """Why "cudnn" or "splash" cannot compute this, or None where it can.

    Off a kernel's own `kernel_platform` its stand-in takes everything.
    """
    if (name, platform) == ("cudnn", "gpu"):
        size = _round_up(head_dim + masked, CUDNN_SIZE_MULTIPLE)
        if dtype.name not in CUDNN_DTYPES:
            return f"takes the dtypes {' and '.join(CUDNN_DTYPES)}, but dtype is {dtype.name}"
        if size > CUDNN_MAX_SIZE:
            with_mask = f", {CUDNN_MAX_SIZE - CUDNN_SIZE_MULTIPLE} with a mask" if masked else ""
            return f"takes heads of up to {CUDNN_MAX_SIZE}{with_mask}, but head_dim is {head_dim}"
    if (name, platform) == ("splash", "tpu") and dtype.name not in SPLASH_DTYPES:
        return f"takes the dtypes {' and '.join(SPLASH_DTYPES)}, but dtype is {dtype.name}"
    return None


def cudnn_attention(queries: Queries, keys: Keys, values: Keys, mask: Mask) -> Queries:
    """`causal_attention` by cuDNN; off a GPU that has it, the same function by XLA."""
    length, size = queries.shape[2:]
    padded = _padded(queries, keys, values, mask, CUDNN_LENGTH_MULTIPLE, CUDNN_SIZE_MULTIPLE)
    read = jax.nn.dot_product_attention(
        *(a.transpose(0, 2, 1, 3) for a in padded),
        scale=size**-0.5,
        is_causal=True,
        implementation="cudnn" if current_platform() == "gpu" else "xla",
    )
    return read.transpose(0, 2, 1, 3)[:, :, :length, :size]


def splash_attention(
    queries: Queries, keys: Keys, values: Keys, mask: Mask, segments: Segments = None
) -> Queries:
    """`causal_attention` by the splash kernel; off a TPU that is interpreted, which is slow."""
    heads, length, size = queries.shape[1:]
    # The kernel does not scale. Its present form takes heads of any size, earlier ones took only
    # whole lanes; padding costs nothing, as memory is padded to lanes anyway.
    scaled = (queries.astype(jnp.float32) * size**-0.5).astype(queries.dtype)
    padded = _padded(scaled, keys, values, mask, min(SPLASH_BLOCKS), SPLASH_SIZE_MULTIPLE)
    rows = padded[0].shape[2]
    kernel = _splash_kernel(heads, rows)
    if segments is not None:
        # Which segment the padding is of does not matter: it comes after every query of ours.
        segments = jnp.pad(segments, ((0, 0), (0, rows - length)))
    return jax.vmap(kernel)(*padded, segments)[:, :, :length, :size]


def _splash_kernel(heads: int, length: int) -> Callable[..., Float[Array, "N T H"]]:
    """The kernel of one row, whose length is a multiple of the smallest block."""
    # Imported late: a run that does not use the kernel does not wait for it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(block for block in SPLASH_BLOCKS if length % block == 0)
    names = ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in names}
    kernel = library.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=library.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        interpret=current_platform() != "tpu",
    )

    def run(queries: Array, keys: Array, values: Array, segments: Any) -> Float[Array, "N T H"]:
        ids = None if segments is None else library.SegmentIds(segments, segments)
        return kernel(queries, keys, values, ids)

    return run


def _padded(
    queries: Queries,
    keys: Keys,
    values: Keys,
    mask: Mask,
    length_multiple: int,
    size_multiple: int,
) -> tuple[Float[Array, "B N P S"], Float[Array, "B K P S"], Float[Array, "B K P S"]]:
    """Adds the coordinate of the mask, then zeros up to whole multiples.

    Zeros in a head change no score. Those after the last position are keys that no query of ours
    may read, since all of them come later.
    """
    length, size = queries.shape[2:]
    if mask is not None:
        marks = jnp.full((*queries.shape[:3], 1), MARK, queries.dtype)
        far = jnp.where(mask, 0.0, FAR).astype(keys.dtype)[:, None, :, None]
        queries = jnp.concatenate([queries, marks], axis=3)
        keys = jnp.concatenate([keys, jnp.broadcast_to(far, (*keys.shape[:3], 1))], axis=3)
        size += 1
    rows, width = _round_up(length, length_multiple), _round_up(size, size_multiple)

    def pad(a: Float[Array, "B X T Y"]) -> Float[Array, "B X P S"]:
        room = ((0, 0), (0, 0), (0, rows - length), (0, width - a.shape[3]))
        return jnp.pad(a, room)

    return pad(queries), pad(keys), pad(values)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
