"""The parts of a run's configuration: what a run is determined by besides its model."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from timemoe_jax.errors import ConfigError

POLICIES = ("windows", "packing")
MIXINGS = ("points", "power", "fixed")
STANDARDISATIONS = ("series", "context")
SCHEDULES = ("cosine", "stable")
_LARGEST_RATE = 1000  # of a resolution, and of its inverse


def require(condition: bool, message: str) -> None:
    """Raises a ConfigError with a message unless a condition holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    """Refuses fields that are not above 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be positive, but is {value}")


def require_not_negative(config: Any, *names: str) -> None:
    """Refuses fields below 0."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{name} must not be negative, but is {value}")


def require_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Refuses a field that holds none of the choices."""
    value = getattr(config, name)
    require(value in choices, f"{name} must be one of {', '.join(choices)}, but is {value!r}")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective: Huber on every head, pinball on quantiles, the balancing loss."""

    huber_delta: float = 2.0
    # The published code counts padded positions when it balances the experts.
    balance_counts_padding: bool = False
    # Of the mean squared log-sum-exp of the router's logits (arXiv 2202.08906, Eq. 5); 0: none.
    router_z_loss_factor: float = 0.0
    # Of the pinball loss of the quantile heads, where model.quantile_levels asks for them.
    quantile_factor: float = 1.0
    # A head of P steps is read at every ceil(P / this)-th position, from a random one on, since
    # neighbours aim at almost the same values; 0: at every position, as published.
    max_steps_per_position: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "huber_delta", "quantile_factor")
        require_not_negative(self, "router_z_loss_factor", "max_steps_per_position")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training series come from, how they are cut into windows, and in which shares."""

    path: str = ""  # comma-separated files and folders
    length: int = 512  # points a window feeds to the model
    # Points of a window after those: they are only aimed at, so that a long head has its targets
    # at every position without the cost of reading them. 1 is as published.
    future: int = 1
    # What a window is z-scored by. "series": its whole series, as published; "context": its first
    # points, at least `context_min` and at most all inputs, a random number of them each time,
    # and only forecasts from the last of those on count: what a forecast is normalised by when
    # the model is used, with nothing of the future in it.
    standardisation: str = "series"
    context_min: int = 64
    clip: float = 0.0  # what lies farther from 0 after that is moved there; 0: nothing
    # "windows": each of one series, padded where that is shorter; "packing": series after series,
    # cut at the length, each still on its own to attention and loss.
    policy: str = "windows"
    packing_bleeds: bool = False  # as published: attention and targets cross from series to series
    stride: int = 0  # distance between windows of a sequence; 0: length
    # Rates that windows to train on are read at, with weights, as "1:4,2,1/4": 2 takes means of 2
    # points for one, 1/4 reads 3 more between every two. Empty: every series as it is.
    resolutions: str = ""
    # Shares of the points trained on. "points": every window once in an epoch; "power": a source
    # (a file, or a folder of the Time-300B layout) by its points ** mixing_power; "fixed": by
    # mixing_weights, "domain:weight" or "domain/source:weight" with commas between.
    mixing: str = "points"
    mixing_power: float = 0.5
    mixing_weights: str = ""
    max_epochs_per_source: float = 0.0  # within train.num_steps; 0: any number
    validation_path: str = ""
    validation_sources: str = ""  # of path, "domain/source" with commas between: held out whole
    validation_fraction: float = 0.0  # of the sequences, held out whole
    synthetic_sequences: int = 0  # a fixed number of generated series, when path is empty
    synthetic_length: int = 2048
    # Series generated without end while training: their share of the points trained on, 1 when
    # there is no other source; "arima:2,chaos" for families with weights, empty for all of them,
    # "tsmixup" among them for mixtures of the training series; and the share of the series that
    # each kind of augmentation (warps, resampling, censoring, spikes, ...) is applied to.
    synthetic_share: float = 0.0
    synthetic_families: str = ""
    synthetic_augmentation: float = 0.0
    shuffle: bool = True
    num_threads: int = 2

    def __post_init__(self) -> None:
        require_positive(self, "length", "synthetic_length")
        require_not_negative(self, "stride", "synthetic_sequences", "num_threads")
        require(
            0 <= self.validation_fraction < 1,
            f"validation_fraction must be in [0, 1), but is {self.validation_fraction}",
        )
        held_out = ("validation_path", "validation_sources", "validation_fraction")
        given = [f"{name} ({value!r})" for name in held_out if (value := getattr(self, name))]
        require(len(given) <= 1, f"{' and '.join(given)} exclude each other")
        require(
            not (self.path and self.synthetic_sequences),
            f"path ({self.path!r}) and synthetic_sequences ({self.synthetic_sequences}) exclude "
            f"each other",
        )
        self._check_standardisation()
        self._check_resolutions()
        self._check_generated()
        self._check_packing()
        self._check_mixing()

    def _check_standardisation(self) -> None:
        require_choice(self, "standardisation", STANDARDISATIONS)
        require_positive(self, "future", "context_min")
        require_not_negative(self, "clip")
        by_context = self.standardisation == "context"
        require(
            not by_context or 2 <= self.context_min <= self.length,
            f"context_min must be from 2 to length ({self.length}), but is {self.context_min}",
        )
        for name, unset in (("standardisation", "series"), ("future", 1)):
            value = getattr(self, name)
            require(
                self.policy == "windows" or value == unset,
                f"{name} is {value!r}, but policy is {self.policy!r}; it is for 'windows'",
            )

    def _check_resolutions(self) -> None:
        if not parse_resolutions(self.resolutions):
            return
        require(
            bool(self.path) or self.synthetic_sequences > 0,
            f"resolutions is {self.resolutions!r}, but path is empty and synthetic_sequences 0: "
            "series generated without end are read as they are",
        )
        require(
            self.policy == "windows",
            f"resolutions is {self.resolutions!r}, but policy is {self.policy!r}; it is for "
            "'windows'",
        )

    def _check_generated(self) -> None:
        other, share = bool(self.path) or self.synthetic_sequences > 0, self.synthetic_share
        require(
            other or share > 0,
            "path is empty, synthetic_sequences and synthetic_share are 0: there is nothing to "
            "train on; set config.data.path to files or folders of series",
        )
        require(
            0 <= share < 1 if other else share == 1,
            f"synthetic_share is {share}; it must be from 0 to less than 1 beside path or "
            "synthetic_sequences, and 1 without them",
        )
        require(
            0 <= self.synthetic_augmentation <= 1,
            f"synthetic_augmentation must be from 0 to 1, but is {self.synthetic_augmentation}",
        )
        require(
            share > 0 or not (self.synthetic_families or self.synthetic_augmentation),
            f"synthetic_families is {self.synthetic_families!r} and synthetic_augmentation "
            f"{self.synthetic_augmentation}, but synthetic_share is 0: they would have no effect",
        )

    def _check_packing(self) -> None:
        require_choice(self, "policy", POLICIES)
        packing = self.policy == "packing"
        require(
            packing or not self.packing_bleeds,
            f"packing_bleeds is True, but policy is {self.policy!r}; it is for 'packing'",
        )
        require(
            not (packing and self.stride),
            f"stride is {self.stride}, but policy 'packing' has none: leave it at 0",
        )

    def _check_mixing(self) -> None:
        require_choice(self, "mixing", MIXINGS)
        require_not_negative(self, "mixing_power", "max_epochs_per_source")
        fixed = self.mixing == "fixed"
        require(
            fixed == bool(self.mixing_weights),
            f"mixing is {self.mixing!r} and mixing_weights {self.mixing_weights!r}; 'fixed' needs "
            "weights like 'energy:1,nature:2', and nothing else takes them",
        )
        if fixed:
            parse_mixing_weights(self.mixing_weights)

    @property
    def segmented(self) -> bool:
        """Whether a training batch says which of several series each of its points is of."""
        return self.policy == "packing" and not self.packing_bleeds


def parse_mixing_weights(text: str) -> dict[str, float]:
    """Reads `data.mixing_weights`: the weight of each domain, or domain/source, by its name.

    Raises:
      ConfigError: an entry is not "name:weight", a name comes twice, or a weight is negative or
        not finite, or all are 0.
    """
    weights: dict[str, float] = {}
    for entry in (part.strip() for part in text.split(",") if part.strip()):
        name, _, number = entry.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        require(
            bool(name) and math.isfinite(weight) and weight >= 0,
            f"mixing_weights holds {entry!r}; it must be a domain or domain/source, a colon, and a "
            "weight from 0",
        )
        require(name not in weights, f"mixing_weights names {name!r} twice")
        weights[name] = weight
    require(sum(weights.values()) > 0, f"mixing_weights is {text!r}; one weight must be above 0")
    return weights


def parse_resolutions(text: str) -> dict[Fraction, float]:
    """Reads `data.resolutions`: the weight of each rate, that is how many points become one.

    Raises:
      ConfigError: a rate is neither a whole number nor one over a whole number, is out of range or
        stands twice, or its weight is not positive.
    """
    weights: dict[Fraction, float] = {}
    for entry in (part.strip() for part in text.split(",") if part.strip()):
        name, _, number = entry.partition(":")
        try:
            rate, weight = Fraction(name.strip()), float(number or 1)
        except (ValueError, ZeroDivisionError):
            rate, weight = Fraction(0), 0.0
        whole = rate > 0 and 1 in (rate.numerator, rate.denominator)
        require(
            whole and max(rate.numerator, rate.denominator) <= _LARGEST_RATE,
            f"resolutions has {entry!r}; a rate is 4 (means of 4 points) or 1/4 (3 more between "
            f"every two), at most {_LARGEST_RATE}, and may have a weight: 4:0.5",
        )
        require(
            0 < weight < math.inf and rate not in weights,
            f"resolutions has {entry!r}; a rate stands once, with a weight above 0",
        )
        weights[rate] = weight
    return weights


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, a linear warm-up and a decay to a floor."""

    # "adamw": as published; "muon": orthogonalised momentum for the matrices of blocks and heads
    # (arXiv 2502.16982), which learns all directions of what it reads alike, also those in which
    # neighbouring points hardly differ; Adam for all else.
    algorithm: str = "adamw"
    learning_rate: float = 1e-3
    end_learning_rate: float = 0.0
    warmup_steps: int = 0
    # "cosine": down from the end of the warm-up, as published; "stable": constant, and linear down
    # in the last `decay_steps`, so that a run can be made longer (arXiv 2405.18392).
    schedule: str = "cosine"
    decay_steps: int = 0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    # Parameters that AdamW's decay leaves alone: "vectors" (norm scales and biases) or "none".
    weight_decay_exclude: str = "vectors"
    # Of "muon": the learning rate of its matrices in units of the others', and their momentum.
    matrix_rate_factor: float = 1.0
    muon_momentum: float = 0.95
    clip_norm: float = 1.0  # global norm of the gradient; 0: not clipped
    router_bias_rate: float = 1e-3  # what an update moves a selection bias by: model.router_bias

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

    num_steps: int = 1000
    batch_size: int = 64  # windows per update, over all micro-batches
    gradient_accumulation: int = 1
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    eval_every: int = 0  # 0: only at the end
    eval_batches: int = 16
    max_nonfinite_in_row: int = 10
    init_from: str = ""  # a checkpoint whose parameters to start from

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
class MeshConfig:
    """The devices along each axis of the mesh; one of them may be -1: all that are left.

    What is parallel along each axis stands in `partitioning`.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size > 0 or size == -1, f"{name} must be positive or -1, but is {size}")
        free = [name for name, size in sizes.items() if size == -1]
        require(len(free) <= 1, f"only one axis may be -1, but {' and '.join(free)} are")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """A window of updates to trace, for TensorBoard or Perfetto."""

    start: int = 10  # updates of this start of the program before the trace
    num_steps: int = 0  # updates to trace; 0: none

    def __post_init__(self) -> None:
        require_not_negative(self, "start", "num_steps")
