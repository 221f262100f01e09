"""The configuration of a training run."""

import dataclasses
from typing import ClassVar

from timemoe_jax.config import require, require_choice, require_not_negative, require_positive
from timemoe_jax.data.config import DataConfig
from timemoe_jax.models.base import ModelConfig, family_of
from timemoe_jax.runtime.config import MeshConfig

SCHEDULES = ("cosine", "stable")
LOSSES = ("huber", "mse", "mae", "pinball")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective: an error of the heads, pinball on quantiles, the balancing loss."""

    RENAMED: ClassVar[dict[str, str]] = {"quantile_factor": "quantile_loss_factor"}

    # The error of point heads: "huber", as published; "mse", squares; "mae", absolute values;
    # "pinball", for models with quantile heads: that of the median, half the absolute value.
    kind: str = "huber"
    huber_delta: float = 2.0  # errors beyond this count linearly
    # Points ahead that the loss is of: it is of the heads, and the steps of each, that a forecast
    # of so many points reads; 0 is all of all heads, as published.
    horizon: int = 0
    # The published code counts padded positions when it balances the experts.
    balance_counts_padding: bool = False
    # The factor of the router z-loss (arXiv 2202.08906, Eq. 5); 0 leaves it out.
    router_z_loss_factor: float = 0.0
    # The factor of the pinball loss of quantile heads, if model.quantile_levels asks for them.
    quantile_loss_factor: float = 1.0
    # A head of P steps is read at every ceil(P / this)-th position, from a random one on, since
    # neighboring positions aim at almost the same values; 0 reads it at every one, as published.
    max_steps_per_position: int = 0

    def __post_init__(self) -> None:
        require_choice(self, "kind", LOSSES)
        require_positive(self, "huber_delta", "quantile_loss_factor")
        require_not_negative(self, "router_z_loss_factor", "max_steps_per_position", "horizon")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, a linear warm-up and a decay to a floor."""

    # "adamw": as published; "muon": orthogonalized momentum for the matrices of blocks and heads
    # (arXiv 2502.16982), which learns all directions of what it reads alike, also those in which
    # neighboring points hardly differ; Adam for all else.
    algorithm: str = "adamw"
    learning_rate: float = 1e-3  # the largest, after the warm-up
    end_learning_rate: float = 0.0  # the smallest, at the end
    warmup_steps: int = 0  # updates of a linear rise from 0
    # "cosine": down from the end of the warm-up, as published; "stable": constant, and linear down
    # in the last `decay_steps`, so that a run can be made longer (arXiv 2405.18392).
    schedule: str = "cosine"
    decay_steps: int = 0  # of the schedule "stable"
    b1: float = 0.9  # decay of the gradient's mean
    b2: float = 0.95  # decay of its mean square
    eps: float = 1e-8  # added to the root of the mean square
    weight_decay: float = 0.1  # decoupled, times the learning rate
    # Parameters that AdamW's decay leaves alone: "vectors" (norm scales and biases) or "none".
    weight_decay_exclude: str = "vectors"
    # For "muon": the learning rate of its matrices over that of the others, and their momentum.
    matrix_rate_factor: float = 1.0
    muon_momentum: float = 0.95  # of the matrices
    clip_norm: float = 1.0  # global norm of the gradient; 0: not clipped
    router_bias_rate: float = 1e-3  # how far an update moves a model.router_bias

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "eps", "router_bias_rate", "matrix_rate_factor")
        require_not_negative(self, "end_learning_rate", "warmup_steps", "weight_decay", "clip_norm")
        require_choice(self, "schedule", SCHEDULES)
        require_choice(self, "algorithm", ("adamw", "muon"))
        require_not_negative(self, "decay_steps")
        require(
            self.schedule == "stable" or not self.decay_steps,
            f"decay_steps is {self.decay_steps}, but schedule is {self.schedule!r}, which decays "
            "throughout; it is for 'stable'",
        )
        for name in ("b1", "b2", "muon_momentum"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must be in [0, 1), but is {value}")
        require(
            self.end_learning_rate <= self.learning_rate,
            f"end_learning_rate ({self.end_learning_rate}) must be at most learning_rate "
            f"({self.learning_rate})",
        )
        require_choice(self, "weight_decay_exclude", ("none", "vectors"))
        muon = self.algorithm == "muon"
        require(
            muon or self.matrix_rate_factor == 1,
            f"matrix_rate_factor is {self.matrix_rate_factor}, but algorithm is "
            f"{self.algorithm!r}, which has one learning rate; it is for 'muon'",
        )
        require(
            not muon or self.weight_decay_exclude == "vectors",
            f"weight_decay_exclude is {self.weight_decay_exclude!r}, but algorithm is 'muon', "
            "whose decay is of its matrices alone; leave it at 'vectors'",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, and what to write on the way."""

    num_steps: int = 1000  # updates in all
    batch_size: int = 64  # windows per update, over all micro-batches
    gradient_accumulation: int = 1  # micro-batches that an update adds up
    log_every: int = 10  # updates between lines of the log
    checkpoint_every: int = 1000  # updates between checkpoints
    keep_checkpoints: int = 3  # how many of the newest stay
    eval_every: int = 0  # 0: only at the end
    eval_batches: int = 16  # of each validation
    max_nonfinite_in_row: int = 10  # the run ends after so many updates that are not finite
    # A checkpoint whose parameters to start from; its patches may be longer than the model's.
    init_from: str = ""

    def __post_init__(self) -> None:
        require_positive(
            self,
            *("num_steps", "batch_size", "gradient_accumulation", "log_every"),
            *("checkpoint_every", "keep_checkpoints", "eval_batches", "max_nonfinite_in_row"),
        )
        require_not_negative(self, "eval_every")
        require(
            self.batch_size % self.gradient_accumulation == 0,
            f"gradient_accumulation ({self.gradient_accumulation}) must divide batch_size "
            f"({self.batch_size})",
        )


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """A window of updates to trace, for TensorBoard or Perfetto."""

    start: int = 10  # updates after the start of the program before the trace
    num_steps: int = 0  # updates to trace; 0: none

    def __post_init__(self) -> None:
        require_not_negative(self, "start", "num_steps")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a training run."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    seed: int = 0  # of the parameters, the order and the draws

    def __post_init__(self) -> None:
        require(
            self.data.length <= self.model.max_position_embeddings,
            f"data.length ({self.data.length}) exceeds model.max_position_embeddings "
            f"({self.model.max_position_embeddings})",
        )
        require(
            self.optimizer.warmup_steps < self.train.num_steps,
            f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be less than "
            f"train.num_steps ({self.train.num_steps})",
        )
        require(
            self.optimizer.warmup_steps + self.optimizer.decay_steps <= self.train.num_steps,
            f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) and optimizer.decay_steps "
            f"({self.optimizer.decay_steps}) must together be at most train.num_steps "
            f"({self.train.num_steps})",
        )
        family, variates = family_of(self.model), self.data.variates
        least, joint = family.least_context(self.model), family.joint
        in_context = self.data.standardization == "context" and self.data.context_min >= least
        require(
            not least or in_context,
            f"data.standardization is {self.data.standardization!r} and data.context_min "
            f"{self.data.context_min}, but the model reads the first {least} points of a window as "
            f"its context: give 'context' and at least {least}",
        )
        require_not_negative(self, "seed")
        require(
            family.encoder or joint == (variates > 0),
            f"data.variates is {variates}, but models of the family "
            f"{self.model.family!r} read {'several series' if joint else 'one series'} at a time",
        )
        require(
            self.loss.kind != "pinball" or bool(self.model.quantile_levels),
            "loss.kind is 'pinball', but the model has no quantile heads (model.quantile_levels is "
            "()); 'mae' is the pinball loss of the median",
        )
        require(
            not joint or family.scored_variates(self.model, variates) > 0,
            f"config.model leaves none of the {variates} variates of a window to forecast",
        )
        self._check_patches()
        if family.encoder:
            self._check_encoder()

    def _check_patches(self) -> None:
        stride, data = family_of(self.model).stride(self.model), self.data
        require(
            data.length % stride == 0,
            f"data.length ({data.length}) must be a multiple of the {stride} points of a patch",
        )
        require(
            stride == 1 or data.policy == "windows",
            f"data.policy is {data.policy!r}, but the model reads patches of {stride} points; it "
            "needs 'windows'",
        )

    def _check_encoder(self) -> None:
        """What a model needs that reads its window whole."""
        step, data, loss = self.model.horizon_lengths[0], self.data, self.loss
        kind = f"models of the family {self.model.family!r}"
        covariates = family_of(self.model).covariate_variates(self.model)
        require(
            (covariates > 0) == data.calendar and covariates in (0, data.variates),
            f"the model reads {covariates} variates together with the calendar, but data.variates "
            f"is {data.variates} and data.calendar {data.calendar}; give those of the model, or a "
            "model without covariates",
        )
        require(
            data.future == step,
            f"data.future is {data.future}, but {kind} aim at the window model.horizon_lengths "
            f"({step}) points later; give that",
        )
        require(
            data.policy == "windows",
            f"data.policy is {data.policy!r}, but {kind} read a row as one window; give 'windows'",
        )
        require(
            data.standardization == "series",
            f"data.standardization is {data.standardization!r}, but {kind} scale each window "
            "themselves; give 'series'",
        )
        require(
            not loss.max_steps_per_position,
            f"loss.max_steps_per_position is {loss.max_steps_per_position}, but {kind} say one "
            "value at each position; give 0",
        )
