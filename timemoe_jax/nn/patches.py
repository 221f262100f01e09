"""A window as patches and back: instance norm, patch embedding, and the multi-resolution head.

Rows are of several lengths: each begins at index 0, and a mask is True up to its last point. What
is masked has no influence on what is not, so that a row gives what it would give alone.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from timemoe_jax.nn.dropout import Seed, dropout
from timemoe_jax.nn.layers import Initializer, Linear, RMSNorm

EPS = 1e-5  # of all norms over time


def uniform_of(n0: int, n1: int, width: int = 1) -> Initializer:
    """Uniform within ±sqrt(6 / ((n0 + n1) width)), the bound of a kernel [n0, n1, width]."""
    limit = math.sqrt(6 / ((n0 + n1) * width))

    def draw(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return draw


def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """`uniform_of` the last two axes of a matrix, or of a stack of matrices."""
    return uniform_of(shape[-2], shape[-1])(key, shape, dtype)


def instance_statistics(
    x: Float[Array, "R T"], mask: Bool[Array, "R T"] | None
) -> tuple[Float[Array, "R 1"], Float[Array, "R 1"]]:
    """Mean and sqrt(variance + eps) of each row, population, without a gradient."""
    x = jax.lax.stop_gradient(x)
    if mask is None:
        mean = jnp.mean(x, axis=1, keepdims=True)
        return mean, jnp.sqrt(jnp.mean((x - mean) ** 2, axis=1, keepdims=True) + EPS)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(mask, x, 0), axis=1, keepdims=True) / count
    centered = jnp.where(mask, x - mean, 0)
    return mean, jnp.sqrt(jnp.sum(centered**2, axis=1, keepdims=True) / count + EPS)


class GroupNorm(nnx.Module):
    """A norm of one group: mean and variance over all positions and features of a row together."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))

    def __call__(
        self, x: Float[Array, "R T D"], mask: Bool[Array, "R T"] | None = None
    ) -> Float[Array, "R T D"]:
        """Normalizes in float32 by the positions under the mask; the others may be anything."""
        x = x.astype(jnp.float32)
        if mask is None:
            mean = jnp.mean(x, axis=(1, 2), keepdims=True)
            variance = jnp.mean((x - mean) ** 2, axis=(1, 2), keepdims=True)
        else:
            count = jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None, None] * x.shape[2]
            inside = mask[..., None]
            mean = jnp.sum(jnp.where(inside, x, 0), axis=(1, 2), keepdims=True) / count
            squares = jnp.where(inside, (x - mean) ** 2, 0)
            variance = jnp.sum(squares, axis=(1, 2), keepdims=True) / count
        normed = (x - mean) * jax.lax.rsqrt(variance + EPS)
        return normed * self.scale[...] + self.bias[...]


class PatchEmbedding(nnx.Module):
    """Patches of P points as tokens: a linear map, then a norm over the tokens of the row.

    The norm is "group", of all tokens together, or "rms", of each token alone.
    """

    def __init__(
        self, patch_size: int, d_model: int, *, norm: str, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        init = uniform_of(d_model, 1, patch_size)
        self.kernel = nnx.Param(init(rngs.params(), (patch_size, 1, d_model), jnp.float32))
        self.norm: GroupNorm | RMSNorm
        self.norm = GroupNorm(d_model) if norm == "group" else RMSNorm(d_model, eps=1e-6)
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "R L"], mask: Bool[Array, "R T"] | None = None
    ) -> Float[Array, "R T D"]:
        """Embeds the first T whole patches of each row, float32; a mask is of the tokens."""
        patch_size = self.kernel.shape[0]
        tokens = x.shape[1] // patch_size
        patches = x[:, : tokens * patch_size].reshape(-1, patch_size).astype(self.dtype)
        z = (patches @ self.kernel[:, 0].astype(self.dtype)).reshape(len(x), tokens, -1)
        normed = self.norm(z, mask) if isinstance(self.norm, GroupNorm) else self.norm(z)
        return normed.astype(jnp.float32)


def smoothing_width(patch_size: int) -> int:
    """The width of the head's depthwise kernel: about half a patch, odd, from 1 to 7."""
    width = min(max(patch_size // 2 - 1, 1), 7)
    return width - (width % 2 == 0)


def bottleneck_width(d_model: int) -> int:
    """The features of the head's last but one layer: a quarter, as a multiple of 8."""
    quarter = d_model / 4
    width = max(8, 8 * math.floor(quarter / 8 + 0.5))
    return width + 8 if width < 0.9 * quarter else width


class WindowHead(nnx.Module):
    """From tokens back to every point of the window, at the resolutions of patch and point.

    A linear map, a transposed convolution from a token to its P points, GELU, a depthwise
    convolution over time that crosses the borders of patches, a group norm, and two maps of each
    point alone. No biases but the norm's.
    """

    def __init__(self, patch_size: int, d_model: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, narrow = smoothing_width(patch_size), bottleneck_width(d_model)

        def param(init: Initializer, *shape: int) -> nnx.Param:
            return nnx.Param(init(rngs.params(), shape, jnp.float32))

        self.out = Linear(d_model, d_model, init=uniform, dtype=dtype, rngs=rngs)
        unpatch = uniform_of(d_model, d_model, patch_size)
        self.unpatch = param(unpatch, d_model, d_model, patch_size)
        self.smooth = param(uniform_of(d_model, 1, width), width, 1, d_model)
        self.norm = GroupNorm(d_model)
        self.narrow = param(uniform_of(narrow, d_model), 1, d_model, narrow)
        self.last = param(uniform_of(1, narrow), 1, narrow, 1)
        self.dtype = dtype

    def __call__(
        self, hidden: Float[Array, "R T D"], mask: Bool[Array, "R T"] | None = None
    ) -> Float[Array, "R L"]:
        """The values of all L = T P points, float32; those of masked tokens mean nothing."""
        if mask is not None:  # a token of zeros gives points of zeros, as beyond the window
            hidden = jnp.where(mask[..., None], hidden, 0)
        rows, tokens, size = hidden.shape
        points = self._points(self.out(hidden)).reshape(rows, -1, size)
        kernel = self.smooth[...].astype(self.dtype)
        half = len(kernel) // 2
        padded = jnp.pad(points, ((0, 0), (half, half), (0, 0)))
        smooth = sum(
            (padded[:, j : j + points.shape[1]] * kernel[j, 0] for j in range(len(kernel))),
            jnp.zeros((), self.dtype),
        )
        inside = None if mask is None else jnp.repeat(mask, points.shape[1] // tokens, axis=1)
        normed = self.norm(smooth, inside).astype(self.dtype)
        narrow = jax.nn.gelu(normed @ self.narrow[0].astype(self.dtype), approximate=False)
        return (narrow @ self.last[0].astype(self.dtype))[..., 0].astype(jnp.float32)

    def _points(self, tokens: Float[Array, "R T D"]) -> Float[Array, "R T W"]:
        """P points for each token, one after the other."""
        kernel = self.unpatch[...].astype(self.dtype).transpose(0, 2, 1)
        flat = tokens.reshape(-1, tokens.shape[-1]) @ kernel.reshape(len(kernel), -1)
        return jax.nn.gelu(flat.reshape(*tokens.shape[:2], -1), approximate=False)


class Mlp(nnx.Module):
    """down(gelu(up(x))), or down(silu(up(x)) * gate(x)) with a gate; no biases."""

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        gated: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.up = Linear(d_model, d_hidden, init=uniform, dtype=dtype, rngs=rngs)
        self.gate = (
            Linear(d_model, d_hidden, init=uniform, dtype=dtype, rngs=rngs) if gated else None
        )
        self.down = Linear(d_hidden, d_model, init=uniform, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... D"], rate: float = 0.0, seed: Seed | None = None
    ) -> Float[Array, "... D"]:
        """Applies the layer to the last axis; a seed draws dropout before the last map."""
        up = self.up(x)
        hidden = (
            jax.nn.gelu(up, approximate=False)
            if self.gate is None
            else jax.nn.silu(up) * self.gate(x)
        )
        return self.down(dropout(hidden, rate, seed))
