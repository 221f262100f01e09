"""The fields that the families of encoders have in common."""

import dataclasses

from timemoe_jax.config import require, require_choice, require_not_negative, require_positive
from timemoe_jax.models.base import ModelConfig
from timemoe_jax.nn import experts


@dataclasses.dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """An encoder of patches: it reads a window both ways, and says the window shifted in time.

    `max_position_embeddings` is the longest window, L, and `horizon_lengths` has one entry: how far
    the window that comes out lies after the one that is read, the step of a longer forecast.
    """

    horizon_lengths: tuple[int, ...] = (32,)
    max_position_embeddings: int = 512
    patch_size: int = 8  # points of a token, P
    hidden_size: int = 128  # width of a token, D
    intermediate_size: int = 256  # hidden width of an expert, F
    num_hidden_layers: int = 4  # blocks
    num_attention_heads: int = 4  # of queries; they divide hidden_size
    num_key_value_heads: int = 2  # they divide num_attention_heads
    num_experts: int = 4  # routed experts of a layer; 0: the shared expert alone
    num_experts_per_tok: int = 1  # how many of them compute each token
    rope_theta: float = 10000.0  # base of the rotary frequencies
    embedding_norm: str = "group"  # "group": of all tokens of a row together; "rms": of each
    dropout: float = 0.2  # rate within layers, while training
    drop_path: float = 0.3  # rate at which the last block leaves out a branch; the first never does
    router_aux_loss_factor: float = 0.02  # factor of the balancing loss; 0 leaves it out
    # How to compute it: none of these changes the function beyond rounding, unless a capacity
    # makes it drop tokens.
    expert_implementation: str = "auto"  # auto, blocked, grouped, capacity or dense
    expert_exchange: str = "all_gather"  # between devices that hold different experts
    expert_capacity_factor: float = 2.0  # of "capacity" and "all_to_all"; 1 is an even load

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.horizon_lengths) == 1,
            f"horizon_lengths must be one step of a window, such as (32,), but is "
            f"{self.horizon_lengths}",
        )
        require(
            not self.quantile_levels,
            f"quantile_levels is {self.quantile_levels}, but an encoder has no heads for them; "
            "forecasts have conformal quantiles without",
        )
        require_positive(
            self,
            *("patch_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "num_experts_per_tok"),
            *("rope_theta", "expert_capacity_factor"),
        )
        require_not_negative(self, "num_experts", "router_aux_loss_factor")
        longest = max(self.patch_size, self.step)
        require(
            longest <= self.max_position_embeddings,
            f"max_position_embeddings ({self.max_position_embeddings}) must hold a patch "
            f"({self.patch_size}) and a step ({self.step})",
        )
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        require(
            self.hidden_size % (2 * heads) == 0,
            f"hidden_size ({self.hidden_size}) must be a multiple of twice num_attention_heads "
            f"({heads}): rotary embeddings turn pairs of a head's features",
        )
        require(
            self.hidden_size % 4 == 0, f"hidden_size must divide by 4, but is {self.hidden_size}"
        )
        require(
            heads % kv_heads == 0,
            f"num_key_value_heads ({kv_heads}) must divide num_attention_heads ({heads})",
        )
        require(
            not self.num_experts or self.num_experts_per_tok <= self.num_experts,
            f"num_experts_per_tok ({self.num_experts_per_tok}) must be at most num_experts "
            f"({self.num_experts})",
        )
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must be in [0, 1), but is {value}")
        require_choice(self, "embedding_norm", ("group", "rms"))
        require_choice(self, "expert_implementation", experts.IMPLEMENTATIONS)
        require_choice(self, "expert_exchange", experts.EXCHANGES)

    @property
    def step(self) -> int:
        """How many points of the window that comes out are new, and how many a step forecasts."""
        return self.horizon_lengths[0]

    @property
    def shortest(self) -> int:
        """The fewest points that a window needs; a shorter one is filled up."""
        least = max(self.patch_size, self.step)
        return -(-least // self.patch_size) * self.patch_size

    def drop_path_of(self, layer: int) -> float:
        """The rate at which a block leaves out a branch: it rises evenly with depth."""
        return self.drop_path * layer / max(1, self.num_hidden_layers - 1)


COMPUTE_FIELDS = (*("dtype", "expert_implementation", "expert_exchange", "expert_capacity_factor"),)
# They matter while training alone.
TRAINING_FIELDS = ("dropout", "drop_path", "router_aux_loss_factor")
