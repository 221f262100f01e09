"""The architecture of one Time Tracker."""

import dataclasses
import math

from timemoe_jax.config import (
    require,
    require_choice,
    require_not_negative,
    require_positive,
)
from timemoe_jax.models.base import ModelConfig
from timemoe_jax.nn import REMAT_POLICIES, attention, experts

MIXINGS = ("none", "graph", "all")


@dataclasses.dataclass(frozen=True)
class TimeTrackerConfig(ModelConfig):
    """The architecture of one Time Tracker (arXiv 2505.15151).

    No code of it is published. The first fields are sizes of the paper, or chosen here where it
    names none; those on routing, mixing and the graph name what it leaves open, each with the
    reading chosen here. The last ones say how to compute.
    """

    family: str = "time_tracker"
    horizon_lengths: tuple[int, ...] = (48,)  # of the heads: the next patch, as in the paper
    patch_size: int = 48  # points of a patch
    patch_stride: int = 0  # points from one patch to the next; 0: patch_size
    # Whether a patch is embedded with marks of which points are observed, so that a missing point
    # is no mean one.
    patch_marks: bool = True
    hidden_size: int = 512  # width of the residual stream
    num_hidden_layers: int = 8  # blocks: J_CI + J_CM
    num_mixed_layers: int = 2  # how many of the last ones mix variates, J_CM
    num_attention_heads: int = 8  # they divide hidden_size
    num_experts: int = 8  # routed experts of a layer
    num_experts_per_tok: int = 2  # how many of them compute each patch
    expert_size: int = 512  # hidden width of a routed expert
    shared_size: int = 512  # hidden width of the expert that computes every patch; 0: none
    use_dense: bool = False  # one layer as wide as the experts at work in the place of the experts
    # What experts are chosen by: "channel": the mean similarity of the patches of a series up to
    # each; "token": each patch alone.
    routing_scope: str = "channel"
    # The bias per expert that only selects, moved towards an even load (arXiv 2408.15664); without
    # it nothing balances.
    router_bias: bool = True
    # What the last layers read: "none": each variate itself, as all others do; "graph": also those
    # that it is linked to; "all": every variate.
    mixing: str = "none"
    # Points that the links are found from: the first of a training window, which therefore must be
    # in its context, and the last of a context in use.
    graph_points: int = 96
    graph_alpha: float = 0.9  # the probability of a link between variates of one spectrum
    graph_alpha_learned: bool = False  # else the graph has no parameters
    graph_temperature: float = 1.0  # of the relaxation whose gradient drawn links have
    graph_threshold: float = 0.5  # in use, links that are more probable are there
    # The most variates that read each other; more are cut into pieces of so many neighbors.
    max_variates: int = 64
    # How many of the last variates of a training window are known ahead, by the longest head, and
    # are not forecast: covariates such as promotions.
    known_variates: int = 0
    rms_norm_eps: float = 1e-6  # added to the mean square in a norm
    rope_theta: float = 10000.0  # base of the rotary frequencies
    initializer_range: float = 0.02  # deviation of the initial weights
    # How to compute it: none of these changes the function beyond rounding, unless a capacity
    # makes it drop patches.
    remat: str = "none"  # what the backward pass computes again: see nn.layers.REMAT
    expert_implementation: str = "auto"  # auto, blocked, grouped, capacity or dense
    expert_exchange: str = "all_gather"  # between devices that hold different experts
    expert_capacity_factor: float = 2.0  # of "capacity" and "all_to_all"; 1 is an even load
    attention_implementation: str = "auto"  # of layers that do not mix: see nn.attention.causal

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            self,
            *("patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
            *("num_experts", "num_experts_per_tok", "expert_size", "graph_points", "max_variates"),
            *("graph_temperature", "rms_norm_eps", "rope_theta", "initializer_range"),
            "expert_capacity_factor",
        )
        require_not_negative(
            self, "patch_stride", "num_mixed_layers", "shared_size", "known_variates"
        )
        require(
            self.patch_stride <= self.patch_size,
            f"patch_stride ({self.patch_stride}) must be at most patch_size ({self.patch_size}), "
            "or points would be skipped",
        )
        require(
            self.num_mixed_layers <= self.num_hidden_layers,
            f"num_mixed_layers ({self.num_mixed_layers}) must be at most num_hidden_layers "
            f"({self.num_hidden_layers})",
        )
        heads = self.num_attention_heads
        require(
            self.hidden_size % heads == 0 and self.head_dim % 2 == 0,
            f"num_attention_heads ({heads}) must divide hidden_size ({self.hidden_size}) into "
            "heads of an even size, which rotary embeddings need",
        )
        require(
            self.num_experts_per_tok <= self.num_experts,
            f"num_experts_per_tok ({self.num_experts_per_tok}) must be at most num_experts "
            f"({self.num_experts})",
        )
        require(
            not (self.use_dense and self.router_bias),
            "router_bias is True, but use_dense has no router; give False",
        )
        self._check_mixing()
        require_choice(self, "routing_scope", experts.SCOPES)
        require_choice(self, "remat", REMAT_POLICIES)
        require_choice(self, "expert_implementation", experts.IMPLEMENTATIONS)
        require_choice(self, "expert_exchange", experts.EXCHANGES)
        require_choice(self, "attention_implementation", attention.IMPLEMENTATIONS)

    def _check_mixing(self) -> None:
        require_choice(self, "mixing", MIXINGS)
        require(
            self.mixing == "none" or self.num_mixed_layers > 0,
            f"mixing is {self.mixing!r}, but num_mixed_layers is 0: no layer would mix",
        )
        require(
            not self.known_variates or self.mixing != "none",
            f"known_variates is {self.known_variates}, but mixing is 'none': no variate would read "
            "them",
        )
        require(
            not self.graph_alpha_learned or self.mixing == "graph",
            f"graph_alpha_learned is True, but mixing is {self.mixing!r}, which has no graph",
        )
        for name in ("graph_alpha", "graph_threshold"):
            value = getattr(self, name)
            require(0 < value < 1, f"{name} must be in (0, 1), but is {value}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head, H."""
        return self.hidden_size // self.num_attention_heads

    @property
    def stride(self) -> int:
        """Points from one patch to the next."""
        return self.patch_stride or self.patch_size

    @property
    def lead(self) -> int:
        """Points by which known variates are ahead: the longest head, in whole strides."""
        return math.ceil(self.horizon_lengths[-1] / self.stride) * self.stride


COMPUTE_FIELDS = (
    *("dtype", "remat", "expert_implementation", "expert_exchange", "expert_capacity_factor"),
    "attention_implementation",
)
# Under which parameters mean the same: a model trained apart goes on mixed.
MIXING_FIELDS = (
    *("mixing", "num_mixed_layers", "max_variates", "known_variates"),
    *("graph_points", "graph_alpha", "graph_temperature", "graph_threshold"),
)
