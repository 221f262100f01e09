"""The architecture of one MoHETS model."""

import dataclasses

from timemoe_jax.config import require, require_choice, require_not_negative
from timemoe_jax.models.encoder.config import EncoderConfig

EXPERTS = ("fan", "mlp")
SHARED = ("dwconv", "conv", "mlp", "fan")


@dataclasses.dataclass(frozen=True)
class MohetsConfig(EncoderConfig):
    """The architecture of one MoHETS model (arXiv 2601.21866); the defaults are the small one."""

    family: str = "mohets"
    horizon_lengths: tuple[int, ...] = (24,)
    max_position_embeddings: int = 672
    patch_size: int = 16
    num_experts: int = 8
    num_experts_per_tok: int = 2
    # Of all routed experts, or of each: "fan", of cosines and sines, or "mlp".
    experts_type: tuple[str, ...] = ("fan",)
    # Of the shared expert: "dwconv", a convolution over three tokens before its maps; "conv", the
    # same maps without it; "mlp"; "fan".
    shared_type: str = "dwconv"
    gated: bool = False  # whether experts multiply their hidden activations by a gate
    # The variates of a model with covariates: its attention reads tokens of the calendar and of all
    # its variates, so that it forecasts these, in their order; 0: no covariates.
    covariate_variates: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "covariate_variates")
        require(
            len(self.experts_type) == 1 or len(self.experts_type) == self.num_experts,
            f"experts_type must be one kind, or {self.num_experts}, one for each expert, but is "
            f"{self.experts_type}",
        )
        unknown = [kind for kind in self.experts_type if kind not in EXPERTS]
        require(not unknown, f"experts_type must be of {' or '.join(EXPERTS)}, but is {unknown}")
        require_choice(self, "shared_type", SHARED)
        require(
            self.intermediate_size % 4 == 0 or "fan" not in (*self.experts_type, self.shared_type),
            f"intermediate_size must divide by 4 for experts of the kind 'fan', but is "
            f"{self.intermediate_size}",
        )

    @property
    def types_of_experts(self) -> tuple[str, ...]:
        """The type of each routed expert."""
        return (
            self.experts_type * self.num_experts
            if len(self.experts_type) == 1
            else self.experts_type
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each routed expert, as `nn.experts.kinds` names it."""
        names = {
            ("fan", False): "fourier",
            ("fan", True): "fourier_glu",
            ("mlp", False): "gelu",
            ("mlp", True): "swiglu",
        }
        return tuple(names[name, self.gated] for name in self.types_of_experts)
