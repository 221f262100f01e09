"""What a study is determined by."""

import dataclasses
from typing import Any

from timemoe_jax.checkpoints import bundled
from timemoe_jax.config import require, require_choice, require_not_negative, require_positive
from timemoe_jax.evaluation.studies.ablations import ABLATIONS
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.finetuning.config import MODES, FinetuneConfig

STUDIES = ("scaling", "ablations")
KINDS = ("sparse", "dense")
MEASURES = ("validation_loss", "held_out_mse")


@dataclasses.dataclass(frozen=True)
class ScalingConfig:
    """Model sizes (one entry of each tuple per size), numbers of points, and what is fitted."""

    hidden_sizes: tuple[int, ...] = (48, 64, 96, 128)  # of the models
    num_layers: tuple[int, ...] = (2, 3, 3, 4)  # one for each size
    num_heads: tuple[int, ...] = (8, 8, 8, 8)  # one for each size
    learning_rates: tuple[float, ...] = ()  # one for each size; empty: the base's for all
    points: tuple[int, ...] = (1_000_000, 2_000_000, 4_000_000)  # points that a model reads
    measure: str = "validation_loss"  # the loss that the law is fitted to
    num_resamples: int = 200  # of the bootstrap of the law
    confidence: float = 0.9  # of its intervals

    def __post_init__(self) -> None:
        require_choice(self, "measure", MEASURES)
        require_positive(self, "num_resamples")
        sizes = len(self.hidden_sizes)
        for name in ("num_layers", "num_heads", "learning_rates"):
            values = getattr(self, name)
            require(
                len(values) == sizes or (name == "learning_rates" and not values),
                f"{name} has {len(values)} entries for {sizes} hidden_sizes; give one each",
            )
        require(sizes > 0, "hidden_sizes is empty; name at least one")
        require(len(self.points) > 0, "points is empty; name at least one number")
        for name in ("hidden_sizes", "num_layers", "num_heads", "learning_rates", "points"):
            values = getattr(self, name)
            require(all(v > 0 for v in values), f"{name} must be positive, but are {values}")
        require(0 < self.confidence < 1, f"confidence must be in (0, 1), but is {self.confidence}")


@dataclasses.dataclass(frozen=True)
class AblationsConfig:
    """Which variants, how often, and how long each is trained."""

    variants: tuple[str, ...] = ()  # of ABLATIONS; empty: all that differ from the base
    seeds: tuple[int, ...] = (0, 1, 2)  # each variant is trained with each
    points: int = 0  # what each run reads, as in a scaling study; 0: as many as the base

    def __post_init__(self) -> None:
        for name in self.variants:
            require(name in ABLATIONS, f"variants names {name!r}; known: {', '.join(ABLATIONS)}")
        require(len(self.seeds) > 0, "seeds is empty; name at least one")
        require_not_negative(self, "points")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """How `held_out.score` scores every variant on what its data hold out."""

    horizons: tuple[int, ...] = (24, 96)  # points to forecast
    context_length: int | None = None  # None: data.length, or what the positions have room for
    max_windows: int = 200  # of each source

    def __post_init__(self) -> None:
        require_positive(self, "max_windows")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A study: the run that it varies, and how."""

    base: RunConfig
    study: str  # scaling or ablations
    scaling: ScalingConfig = dataclasses.field(default_factory=ScalingConfig)
    ablations: AblationsConfig = dataclasses.field(default_factory=AblationsConfig)
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)

    def __post_init__(self) -> None:
        require_choice(self, "study", STUDIES)
        data = self.base.data
        require(
            bool(data.validation_path or data.validation_sources or data.validation_fraction)
            or data.validation_rows > 0,
            "base.data holds nothing out, so that nothing could be compared; set "
            "base.data.validation_sources, validation_path, validation_fraction or validation_rows",
        )


@dataclasses.dataclass(frozen=True)
class FinetuneStudyConfig:
    """A study of fine-tuning: which model, on which data, in which ways."""

    # What every run has; its horizon, mode and seed are those of each run.
    finetune: FinetuneConfig
    checkpoint: str = bundled.DEFAULT  # the model that fine-tuning begins with
    data_dir: str = ""  # a folder that holds the benchmarks
    # Benchmarks: fine-tuned on the train split, chosen on the validation split, scored on the test.
    datasets: tuple[str, ...] = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather")
    horizons: tuple[int, ...] = (96, 336)  # of the benchmarks
    corpus: str = ""  # a folder in the Time-300B layout, for few-shot runs
    # Its sources as domain/source:horizon; the last horizon of each series is the test.
    sources: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)  # every run is made with each
    # What is trained; of a joint model also how it is mixed, as "full+graph".
    modes: tuple[str, ...] = ("heads", "lora", "full")
    scratch: bool = True  # also the same architecture from new parameters
    linear: bool = True  # also a linear map of the train split
    max_windows: int = 500  # of a test, evenly spaced
    known: str = ""  # a results.csv that such a study wrote, whose runs are not made again

    def __post_init__(self) -> None:
        require_positive(self, "max_windows")
        for name in self.modes:
            known = name.partition("+")[0] in MODES
            require(known, f"modes names {name!r}; known: {', '.join(MODES)}")
        require(len(self.seeds) > 0, "seeds is empty; name at least one")
        for source in self.sources:
            name, _, horizon = source.rpartition(":")
            require(
                "/" in name and horizon.isdigit() and int(horizon) > 0,
                f"sources has {source!r}; it must be domain/source:horizon",
            )
        require(
            not self.sources or bool(self.corpus),
            "sources are named, but corpus is empty; give the folder that holds them",
        )


class AnyStudyConfig:
    """A study of either kind: one with a section `finetune` is of fine-tuning."""

    @classmethod
    def class_of(cls, mapping: Any, where: str) -> type[Any]:
        """The config class of a mapping; `from_mapping` asks for it."""
        return FinetuneStudyConfig if "finetune" in mapping else StudyConfig
