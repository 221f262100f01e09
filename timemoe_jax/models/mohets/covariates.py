"""Tokens of the calendar and of all variates, which cross-attention reads."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from timemoe_jax.errors import DataError
from timemoe_jax.models.mohets.config import MohetsConfig
from timemoe_jax.nn.layers import Linear
from timemoe_jax.nn.patches import PatchEmbedding, uniform

MARKS = 5  # of the calendar; a model of hours is given four, and no minute


class CovariateEmbedding(nnx.Module):
    """A linear map of the C variates and the calendar to C series, and patches of these.

    At each time step u = x̂ Wd [d], v = marks Wt [d] and the mixture is [u, v] Wf [C], d the largest
    of 5, C and D; x̂ are the series after the instance norm. No bias.
    """

    def __init__(self, config: MohetsConfig, *, rngs: nnx.Rngs):
        dtype, single = jnp.dtype(config.dtype), jnp.dtype("float32")
        variates = config.covariate_variates
        width = max(MARKS, variates, config.hidden_size)

        def linear(d_in: int, d_out: int) -> Linear:
            return Linear(d_in, d_out, init=uniform, dtype=single, rngs=rngs)

        self.series = linear(variates, width)
        self.calendar = linear(MARKS, width)
        self.fuse = linear(2 * width, variates)
        self.patches = PatchEmbedding(
            config.patch_size,
            config.hidden_size,
            norm=config.embedding_norm,
            dtype=dtype,
            rngs=rngs,
        )

    def mixed(
        self, normed: Float[Array, "R L"], marks: Float[Array, "B M L"]
    ) -> Float[Array, "R L"]:
        """The mixture of the calendar and the C series of each of B windows, R = B C."""
        variates = self.series.kernel.shape[0]
        if marks.shape[1] not in (MARKS - 1, MARKS):
            raise DataError(f"marks must have 4 or 5 rows [B, M, T], but has {marks.shape[1]}")
        if len(normed) != len(marks) * variates:
            raise DataError(
                f"the model reads {variates} variates together with marks, but was given "
                f"{len(normed)} series of {len(marks)} windows"
            )
        if marks.shape[1] < MARKS:  # no minutes: each is 0, which is marked as -0.5
            marks = jnp.pad(marks, ((0, 0), (1, 0), (0, 0)), constant_values=-0.5)
        # One map of C + 5 numbers: the width in between costs nothing for each step.
        fuse = self.fuse.kernel[...]
        width = self.series.kernel.shape[1]
        of_series = self.series.kernel[...] @ fuse[:width]
        of_marks = self.calendar.kernel[...] @ fuse[width:]
        series = normed.reshape(len(marks), variates, -1)
        both = jnp.einsum("bcl,ce->bel", series, of_series)
        both = both + jnp.einsum("bml,me->bel", marks, of_marks)
        return both.reshape(normed.shape)

    def __call__(
        self,
        normed: Float[Array, "R L"],
        marks: Float[Array, "B M L"],
        mask: Bool[Array, "R T"] | None = None,
    ) -> Float[Array, "R T D"]:
        """Tokens of each variate; a mask is of tokens."""
        return self.patches(self.mixed(normed, marks), mask)
