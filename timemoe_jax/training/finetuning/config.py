"""The configuration of fine-tuning."""

import dataclasses
from typing import Any

from timemoe_jax.checkpoints import bundled
from timemoe_jax.config import (
    NORMALIZATIONS,
    require,
    require_choice,
    require_not_negative,
    require_positive,
)
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training.config import LOSSES, RunConfig

MODES = ("full", "heads", "no_router", "lora")
TARGETS = ("attention", "experts", "shared", "heads")
# Windows of an update by themselves: as many as have so many points together, within bounds.
_FEWEST_WINDOWS, _POINTS, _MOST_WINDOWS = 16, 1 << 14, 64


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """What of a model is trained, on which windows, how long, and what decides which is kept."""

    horizon: int = 0  # points to forecast; it has to be given
    # Points that a forecast reads; 0: as many as `Forecaster.forecast` reads by itself.
    context_length: int = 0
    # "instance": windows are z-scored by their first points, as a forecast is by its context;
    # "none": they are read as they are.
    normalize: str = "instance"
    # "full": all that a forecast of the horizon reads, but the routers' selection biases; "heads":
    # its heads alone; "no_router": as "full", without the routers; "lora": low-rank factors beside
    # the kernels of lora_targets.
    mode: str = "full"
    # Of a joint model: how its variates are to read each other from now on ("none", "graph" or
    # "all" of Time Tracker); empty: as they do. The start that it has to better reads as it did.
    mixing: str = ""
    # How many of the last variates of each item are covariates that are known ahead: a joint model
    # that mixes reads them over the horizon, and they are not scored.
    known_variates: int = 0
    # How many of those before them are covariates that are read up to the origin, and not scored.
    past_variates: int = 0
    lora_rank: int = 8  # columns of a factor
    lora_alpha: float = 16.0  # the product of the factors counts this over lora_rank
    lora_dropout: float = 0.0  # share of a kernel's inputs that its factors do not see in an update
    lora_targets: tuple[str, ...] = ("attention", "shared", "heads")  # which kernels have factors
    # Of the heads that a forecast reads: huber, mse, mae or pinball; "auto": pinball where they say
    # quantiles alone, which have no other loss, and else huber.
    loss: str = "auto"
    huber_delta: float = 2.0  # errors beyond this, in deviations of the context, count linearly
    # The largest, after the warm-up; 0: the largest of search_rates that does no harm in a trial,
    # and, if no update gains beyond doubt by it, one of a fifth or less, too.
    learning_rate: float = 0.0
    # Tried in short runs, from the largest down, until one does no harm.
    search_rates: tuple[float, ...] = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    search_steps: int = 10  # updates of a trial
    # "auto": that which the model was trained with, where its checkpoint says so, else "adamw".
    algorithm: str = "auto"
    weight_decay: float = 0.0  # decoupled, times the learning rate
    warmup_share: float = 0.1  # of the updates: a linear rise; then a cosine falls to 0
    num_steps: int = 100  # updates at most
    # Windows of an update; 0: 16, and up to 64 where contexts are short.
    batch_size: int = 0
    gradient_accumulation: int = 1  # micro-batches that an update adds up
    # The last points of each series, held out for validation; 0: a fifth, at least a horizon.
    validation_points: int = 0
    # Forecasts of a validation, at most; 0: 256, and up to 1,024 where contexts are short.
    validation_windows: int = 0
    eval_every: int = 0  # updates between validations; 0: a fifth of num_steps
    patience: int = 3  # validations in a row without a better one that end the run
    # Parts of the way from the start to the best update that are tried beside the whole of it.
    shares: tuple[float, ...] = (0.75, 0.5, 0.25, 0.1, 0.05)
    max_nonfinite_in_row: int = 10  # the run ends after so many updates that are not finite
    seed: int = 0  # of the order of windows, of the lengths of contexts and of factors

    def __post_init__(self) -> None:
        require(self.horizon > 0, f"horizon must be at least 1, but is {self.horizon}; say how far")
        require_choice(self, "normalize", NORMALIZATIONS)
        require_choice(self, "mode", MODES)
        require_choice(self, "loss", ("auto", *LOSSES))
        require_choice(self, "algorithm", ("auto", "adamw", "muon"))
        require_positive(
            self,
            *("lora_rank", "lora_alpha", "huber_delta", "search_steps", "num_steps"),
            *("gradient_accumulation", "patience", "max_nonfinite_in_row"),
        )
        require_not_negative(
            self,
            *("context_length", "learning_rate", "weight_decay", "validation_points"),
            *("batch_size", "eval_every", "validation_windows", "seed"),
            *("past_variates", "known_variates"),
        )
        for name in ("lora_dropout", "warmup_share"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must be in [0, 1), but is {value}")
        for share in self.shares:
            require(0 < share < 1, f"shares must lie between 0 and 1, but one is {share}")
        for name in self.lora_targets:
            require(name in TARGETS, f"lora_targets names {name!r}; known: {', '.join(TARGETS)}")
        require(
            not (self.mixing and self.mode == "lora"),
            f"mixing is {self.mixing!r}, but factors are loaded onto a model as it is; use another "
            "mode, or leave mixing empty",
        )
        require(len(self.lora_targets) > 0, "lora_targets is empty; name at least one")
        rates = self.search_rates
        require(
            len(rates) > 0 and all(rate > 0 for rate in rates),
            f"search_rates must be positive numbers, but are {rates}",
        )
        require(
            self.batch_size % self.gradient_accumulation == 0,
            f"gradient_accumulation ({self.gradient_accumulation}) must divide batch_size "
            f"({self.batch_size})",
        )

    @property
    def covariates(self) -> int:
        """How many of the last variates of an item are covariates."""
        return self.past_variates + self.known_variates

    def batch_of(self, points: int, parts: int = 1) -> int:
        """Windows of an update that a mesh splits into parts; a context has so many points.

        A gradient is of as many points where contexts are short, so that it is as free of noise.
        """
        if self.batch_size:
            return self.batch_size
        windows = min(max(_FEWEST_WINDOWS, _POINTS // points), _MOST_WINDOWS)
        parts *= self.gradient_accumulation
        return -(-windows // parts) * parts

    @property
    def validation_every(self) -> int:
        """Updates between validations."""
        return self.eval_every or max(1, self.num_steps // 5)


@dataclasses.dataclass(frozen=True)
class FinetuneDataConfig:
    """The series to fine-tune on."""

    path: str = ""  # comma-separated files and folders

    def __post_init__(self) -> None:
        require(bool(self.path), "path is empty; give files or folders of series")


@dataclasses.dataclass(frozen=True)
class FinetuneRunConfig:
    """Fine-tuning of a checkpoint on files."""

    data: FinetuneDataConfig
    finetune: FinetuneConfig
    # A bundled model's name, a run's workdir, a checkpoint or a published folder.
    checkpoint: str = bundled.DEFAULT
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


class AnyRunConfig:
    """A run of either kind: one with a section `finetune` fine-tunes a checkpoint."""

    @classmethod
    def class_of(cls, mapping: Any, where: str) -> type[Any]:
        """The config class of a mapping; `from_mapping` asks for it."""
        return FinetuneRunConfig if "finetune" in mapping else RunConfig
