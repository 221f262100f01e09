"""The architecture of one Time-MoE model."""

import dataclasses

from timemoe_jax.config import (
    require,
    require_choice,
    require_not_negative,
    require_positive,
)
from timemoe_jax.models.base import ModelConfig
from timemoe_jax.nn import COPY_RECENT, REMAT_POLICIES, attention, experts


@dataclasses.dataclass(frozen=True)
class TimeMoeConfig(ModelConfig):
    """The architecture of one Time-MoE model (arXiv 2409.16040, Table 2).

    The upper fields are those of the published `config.json`, beside `horizon_lengths` and
    `max_position_embeddings`; the lower ones say how to compute. The defaults are the published
    base model.
    """

    hidden_size: int = 384  # width of the residual stream
    intermediate_size: int = 1536  # of the shared expert; a routed one has that / experts chosen
    num_hidden_layers: int = 12  # blocks
    num_attention_heads: int = 12  # of queries; they divide hidden_size
    num_key_value_heads: int = 12  # they divide num_attention_heads
    num_experts: int = 8  # routed experts of a layer
    num_experts_per_tok: int = 2  # how many of them compute each point
    rms_norm_eps: float = 1e-6  # added to the mean square in a norm
    rope_theta: float = 10000.0  # base of the rotary frequencies
    initializer_range: float = 0.02  # deviation of the initial weights
    use_dense: bool = False  # one dense layer in the place of the experts
    apply_aux_loss: bool = True  # whether the balancing loss counts
    router_aux_loss_factor: float = 0.02  # factor of the balancing loss
    # A bias per expert that only selects, moved towards an even load (arXiv 2408.15664); not
    # published, so such a model cannot be exported.
    router_bias: bool = False
    # Without the shared expert a point is left to the routed ones; not published either.
    shared_expert: bool = True
    # Points that are embedded together as one token, and between positions that predict; 1, as
    # published: every point is a token. More are cheaper by that factor.
    patch_size: int = 1
    # Whether points have heads beside those of quantiles; without them a point is the median. Not
    # published either, as patches.
    point_heads: bool = True
    # Values are read as asinh(value), and quantiles said so, which is about the value itself near 0
    # and its logarithm far off: so what leaves its context far behind does not decide the loss
    # (arXiv 2510.15821). For a model without heads of points.
    asinh: bool = False
    # The longest lag, in points, whose copies of the past are offered to the model: see nn.copies;
    # 0: none, as published. For patches, and a model without heads of points.
    copy_lags: int = 0
    # Whether a model with copy_lags may begin a forecast from the last value itself, and from how a
    # copy missed it, by factors that fade over the horizon; not published either. Without them a
    # model has to carry the last value through all its layers, and is less exact about it.
    anchored: bool = False
    # Whether forecasts of a model with copy_lags are means of its own, of the last value as it is
    # and with its growth, and of the copies, by how exact they have been, and drawn to that growth
    # where few points are seen; not published either. Without it a model errs by a few hundredths
    # of a deviation of what is certain: see nn.weighing.
    weighed: bool = False
    # Where there are three times default_context points of history, a forecast also reads up to so
    # many times as many, as means of so many: see models.time_moe.rates; 1: it does not. For a
    # model without heads of points.
    slower: int = 1
    # Whether a forecast from few points is moved towards that of exponential smoothing; not
    # published either. Nothing is trained of it: see nn.smoothing.
    smoothed: bool = False
    # How many neighboring points share the choice of their first one, of all layers or of each; ():
    # every point makes its own, as published. No parameter depends on it. See nn.experts.leaders.
    segment_lengths: tuple[int, ...] = ()
    # Deviations of the embedding's initial gate and value weights; (): initializer_range. If they
    # are small its silu is almost linear, so that all points are embedded along nearly one line:
    # the first norm takes their size away, and what is left hardly has a sign.
    embedding_range: tuple[float, ...] = ()
    # How many points back the attention starts by reading, each head a single one, less where its
    # heads are too few for that: see nn.lag_start; 0: all alike, as published.
    attention_reach: int = 0
    # How to compute it: none of these changes the function beyond rounding, unless a capacity
    # makes it drop tokens.
    remat: str = "none"  # what the backward pass computes again: see nn.layers.REMAT
    expert_implementation: str = "auto"  # auto, blocked, grouped, capacity or dense
    expert_exchange: str = "all_gather"  # between devices that hold different experts
    expert_capacity_factor: float = 2.0  # of "capacity" and "all_to_all"; 1 is an even load
    attention_implementation: str = "auto"  # auto, or one of nn.attention.causal

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            self,
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "num_experts", "num_experts_per_tok"),
            *("rms_norm_eps", "rope_theta", "initializer_range"),
            "expert_capacity_factor",
        )
        require_not_negative(self, "router_aux_loss_factor", "attention_reach")
        require(
            len(self.embedding_range) in (0, 2) and all(r > 0 for r in self.embedding_range),
            "embedding_range must be two positive numbers, of the gate and of the value, or (), "
            f"but is {self.embedding_range}",
        )
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        require(
            self.hidden_size % heads == 0,
            f"num_attention_heads ({heads}) must divide hidden_size ({self.hidden_size})",
        )
        require(
            self.head_dim % 2 == 0,
            f"rotary embeddings need an even head size, but hidden_size ({self.hidden_size}) / "
            f"num_attention_heads ({heads}) is {self.head_dim}",
        )
        require(
            heads % kv_heads == 0,
            f"num_key_value_heads ({kv_heads}) must divide num_attention_heads ({heads})",
        )
        require(
            self.num_experts_per_tok <= self.num_experts,
            f"num_experts_per_tok ({self.num_experts_per_tok}) must be at most num_experts "
            f"({self.num_experts})",
        )
        require(
            self.use_dense or self.intermediate_size % self.num_experts_per_tok == 0,
            f"num_experts_per_tok ({self.num_experts_per_tok}) must divide intermediate_size "
            f"({self.intermediate_size}): a routed expert is that much narrower",
        )
        require(
            not (self.use_dense and self.router_bias),
            "router_bias is True, but use_dense has no router",
        )
        require(
            len(self.segment_lengths) in (0, 1, self.num_hidden_layers)
            and all(s > 0 for s in self.segment_lengths),
            f"segment_lengths must be (), one positive number, or {self.num_hidden_layers}, one "
            f"for each layer, but is {self.segment_lengths}",
        )
        require(
            not (self.use_dense and self.segments),
            f"segment_lengths is {self.segment_lengths}, but use_dense has no router",
        )
        require(
            self.patch_size == 1 or not self.segments,
            f"segment_lengths is {self.segment_lengths}, but patch_size {self.patch_size}: points "
            "of a patch share their choice already; give one of the two",
        )
        require(
            self.shared_expert or not self.use_dense,
            "shared_expert is False, but use_dense has no experts; leave it at True",
        )
        self._check_patches()
        require_choice(self, "remat", REMAT_POLICIES)
        require_choice(self, "expert_implementation", experts.IMPLEMENTATIONS)
        require_choice(self, "expert_exchange", experts.EXCHANGES)
        require_choice(self, "attention_implementation", attention.IMPLEMENTATIONS)

    def _check_patches(self) -> None:
        require_positive(self, "patch_size")
        apart = [p for p in self.horizon_lengths if p % self.patch_size]
        require(
            not apart,
            f"horizon_lengths must be multiples of patch_size ({self.patch_size}), so that a "
            f"forecast goes on in whole patches, but are {self.horizon_lengths}",
        )
        require(
            self.point_heads or 0.5 in self.quantile_levels,
            "point_heads is False, so that a point is the median, but quantile_levels "
            f"{self.quantile_levels} lack 0.5",
        )
        require(
            not (self.asinh and self.point_heads),
            "asinh is True, and point_heads too; a mean of such values is none of the values: set "
            "point_heads to False",
        )
        require(
            self.patch_size == 1 or not self.embedding_range,
            f"embedding_range is {self.embedding_range}, but patch_size {self.patch_size}; it is "
            "of the embedding of single points",
        )
        require_positive(self, "slower")
        require(
            self.slower == 1 or (self.default_context > 0 and not self.point_heads),
            f"slower is {self.slower}, which takes a default_context (it is "
            f"{self.default_context}) and a model without point_heads",
        )
        self._check_copies()

    def _check_copies(self) -> None:
        require_not_negative(self, "copy_lags")
        require(
            not self.anchored or self.copy_lags > 0,
            "anchored is True, but copy_lags is 0; a model begins from what its copies missed",
        )
        require(
            not self.weighed or self.copy_lags > 0,
            "weighed is True, but copy_lags is 0; there are no copies to weigh",
        )
        size, fits = self.patch_size, not (self.point_heads or self.asinh)
        require(
            not self.copy_lags or (size > 1 and self.copy_lags % size == 0 and fits),
            f"copy_lags is {self.copy_lags}; it must be 0, or a multiple of a patch_size of at "
            f"least 2 (it is {size}) of a model without point_heads and without asinh",
        )
        require(
            not self.copy_lags or COPY_RECENT % size == 0,
            f"patch_size is {size}, but with copy_lags it must divide {COPY_RECENT}, the points by "
            "which the lag of the recent past is judged",
        )

    @property
    def longest_context(self) -> int:
        """`slower` times as many as `default_context`, as far as there are positions for them."""
        return min(self.default_context * self.slower, self.max_position_embeddings)

    @property
    def head_dim(self) -> int:
        """Width of one attention head, H."""
        return self.hidden_size // self.num_attention_heads

    @property
    def segments(self) -> tuple[int, ...]:
        """The points of a decision in each layer; () if every point decides for itself."""
        lengths = self.segment_lengths
        if all(s == 1 for s in lengths):
            return ()
        return lengths * self.num_hidden_layers if len(lengths) == 1 else lengths

    @property
    def expert_size(self) -> int:
        """Hidden width of one routed expert, F."""
        return self.intermediate_size // self.num_experts_per_tok


COMPUTE_FIELDS = (
    *("dtype", "remat", "expert_implementation", "expert_exchange", "expert_capacity_factor"),
    "attention_implementation",
)
INITIALIZATION_FIELDS = ("embedding_range", "attention_reach")
