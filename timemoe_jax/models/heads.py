"""The heads of a decoder: the values after a position, and their quantiles."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import ModelConfig
from timemoe_jax.models.quantiles import non_crossing
from timemoe_jax.nn.layers import Linear


class Heads(nnx.Module):
    """What a model has that reads each horizon by a linear map of its hidden states."""

    config: Any
    heads: nnx.Dict | None  # None: a point is the median
    quantile_heads: nnx.Dict | None
    # How many steps of a head are asked for at most; later ones are not computed. None: all are.
    most_steps: int | None = None

    def steps_of(self, horizon: int) -> int:
        """How many steps of the head of a horizon are computed: P."""
        return horizon if self.most_steps is None else min(horizon, self.most_steps)

    def add_heads(self, config: ModelConfig, rngs: nnx.Rngs, points: bool = True) -> None:
        """Gives the model its heads, for states of `config.hidden_size`; `points`: those of points.

        Last of all its parts, so that a seed gives those the same values with quantiles and
        without.
        """
        size, dtype = config.hidden_size, jnp.dtype(config.dtype)  # type: ignore[attr-defined]
        init = nnx.initializers.normal(config.initializer_range)  # type: ignore[attr-defined]

        def heads(width: int) -> nnx.Dict:
            return nnx.Dict(
                {
                    str(p): Linear(size, p * width, init=init, dtype=dtype, rngs=rngs)
                    for p in config.horizon_lengths
                }
            )

        self.heads = heads(1) if points else None
        levels = len(config.quantile_levels)
        self.quantile_heads = heads(levels) if levels else None

    def head(self, hidden: Float[Array, "*N D"], horizon: int) -> Float[Array, "*N P"]:
        """The `horizon` values after each position, float32: medians without heads of points.

        Of them the first `most_steps`, as of quantiles.
        """
        if self.heads is None:
            median = self.config.quantile_levels.index(0.5)
            return self.quantile_head(hidden, horizon)[..., median]
        steps = self.steps_of(horizon)
        return self.heads[str(horizon)](hidden, steps).astype(jnp.float32)

    def quantile_head(self, hidden: Float[Array, "*N D"], horizon: int) -> Float[Array, "*N P Q"]:
        """Quantiles of the `horizon` values after each position, float32, at each level.

        Those of a value never decrease from level to level: see `non_crossing`.

        Raises:
          ConfigError: the model has no quantile heads.
        """
        levels = self.config.quantile_levels
        if self.quantile_heads is None:
            raise ConfigError("quantile_levels is (), so the model has no heads of quantiles")
        return non_crossing(self.raw_quantiles(hidden, horizon), levels)

    def raw_quantiles(self, hidden: Float[Array, "*N D"], horizon: int) -> Float[Array, "*N P Q"]:
        """What the linear maps say, which may cross."""
        assert self.quantile_heads is not None
        steps, levels = self.steps_of(horizon), len(self.config.quantile_levels)
        outputs = self.quantile_heads[str(horizon)](hidden, steps * levels).astype(jnp.float32)
        return outputs.reshape(*hidden.shape[:-1], steps, levels)
