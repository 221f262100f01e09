"""What MoHETS gives to the rest of the library."""

from typing import Any

from timemoe_jax.models.encoder.family import EncoderFamily
from timemoe_jax.models.mohets.config import MohetsConfig
from timemoe_jax.models.mohets.published import MohetsFormat


class MohetsFamily(EncoderFamily):
    """MoHETS: an encoder of patches with Fourier experts, a convolution and a calendar."""

    name = "mohets"
    config = MohetsConfig
    published = MohetsFormat()
    grows = False

    def make(self, config: MohetsConfig, rngs: Any) -> Any:
        """A model with the published initial parameters."""
        import jax.numpy as jnp

        from timemoe_jax.models.encoder.model import Encoder, expert_options
        from timemoe_jax.models.mohets.covariates import CovariateEmbedding
        from timemoe_jax.nn.experts.segments import SegmentMoe
        from timemoe_jax.nn.experts.shared import ConvExpert, FourierExpert
        from timemoe_jax.nn.patches import Mlp, uniform

        dtype = jnp.dtype(config.dtype)
        sizes = (config.hidden_size, config.intermediate_size)

        def shared() -> Any:
            if config.shared_type == "mlp":
                return Mlp(*sizes, gated=config.gated, dtype=dtype, rngs=rngs)
            if config.shared_type == "fan":
                return FourierExpert(*sizes, gated=config.gated, rngs=rngs)
            depthwise = config.shared_type == "dwconv"
            return ConvExpert(
                *sizes, depthwise=depthwise, gated=config.gated, dtype=dtype, rngs=rngs
            )

        def layer(i: int) -> SegmentMoe:
            return SegmentMoe(
                *sizes,
                shared(),
                kinds=config.kinds if config.num_experts else (),
                segment=1,
                num_experts_per_tok=config.num_experts_per_tok,
                renormalize=True,
                dropout=config.dropout,
                init=uniform,
                dtype=dtype,
                options=expert_options(config),
                rngs=rngs,
            )

        covariates = CovariateEmbedding(config, rngs=rngs) if config.covariate_variates else None
        return Encoder(config, layer, covariates, rngs=rngs)

    def covariate_variates(self, config: MohetsConfig) -> int:
        """Those that the model reads together with marks."""
        return config.covariate_variates


FAMILY = MohetsFamily()
