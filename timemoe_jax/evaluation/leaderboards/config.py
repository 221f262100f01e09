"""What an evaluation on GIFT-Eval, fev-bench or chaotic systems is determined by."""

import dataclasses

from timemoe_jax.config import DTYPES, NORMALIZATIONS, require, require_choice, require_positive
from timemoe_jax.evaluation.leaderboards.derived import FEV_BENCH, GIFT_EVAL
from timemoe_jax.evaluation.leaderboards.gift import TERMS

# What a model may have seen of a data set: nothing, what comes before the windows, or the windows.
NEVER_SEEN, TRAIN_SPLIT, TEST_SPLIT, UNKNOWN = "never seen", "train split", "test split", "unknown"
EXPOSURES = (NEVER_SEEN, TRAIN_SPLIT, TEST_SPLIT, UNKNOWN)
SYSTEMS = ("Lorenz", "Roessler", "Mackey-Glass")


@dataclasses.dataclass(frozen=True)
class MethodsConfig:
    """What is scored, and how it forecasts."""

    checkpoint: str = ""  # empty: the baselines alone
    baselines: tuple[str, ...] = ("naive", "seasonal_naive")  # as `methods.registry` names them
    context_length: int | None = None  # that the model reads; None: as many points as it reads best
    normalize: str = "instance"  # z-scored by the context, or none
    dtype: str = "auto"  # auto, float32 or bfloat16
    batch_size: int | None = None  # windows forecast at a time; None: what fits in memory
    limit_s: float = 30.0  # seconds that a method of another library may take for a window
    exposure: str = "auto"  # of the model to the data; auto: what is known of a bundled model
    per_window: bool = False  # also write a row of scores for each window
    output_dir: str = "out/eval"  # takes the tables, the manifest and the leaderboard's own files

    def __post_init__(self) -> None:
        require_positive(self, "limit_s")
        for name in ("context_length", "batch_size"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, but is {value}")
        require_choice(self, "normalize", NORMALIZATIONS)
        require_choice(self, "dtype", ("auto", *DTYPES))
        require_choice(self, "exposure", ("auto", *EXPOSURES))


@dataclasses.dataclass(frozen=True)
class GiftConfig(MethodsConfig):
    """GIFT-Eval: which of its data sets, at which terms, and what is scored."""

    benchmark: str = "gift"  # which evaluation this is
    data_dir: str = "data"  # holds data sets as published, or the files of ETT and Weather
    datasets: tuple[str, ...] = tuple(GIFT_EVAL)  # folders in data_dir, such as m4_weekly
    terms: tuple[str, ...] = tuple(TERMS)  # short, medium, long: those that a data set has

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.datasets) > 0, "datasets is empty; name at least one")
        unknown = [term for term in self.terms if term not in TERMS]
        require(not unknown, f"terms must be of {', '.join(TERMS)}, but are {unknown}")
        require(len(self.terms) > 0, "terms is empty; name at least one")


@dataclasses.dataclass(frozen=True)
class FevConfig(MethodsConfig):
    """fev-bench: which of its tasks, and what is scored."""

    benchmark: str = "fev"  # which evaluation this is
    data_dir: str = "data"  # holds NAME/*.parquet as published, or the files of ETT and Weather
    datasets: tuple[str, ...] = tuple(FEV_BENCH)  # names of tasks
    tasks: str = ""  # a YAML file of tasks in fev's layout; empty: those of ETT and Weather

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.datasets) > 0, "datasets is empty; name at least one")


@dataclasses.dataclass(frozen=True)
class ChaosConfig(MethodsConfig):
    """Chaotic systems: which, how many starts, how far, and what is scored."""

    benchmark: str = "chaos"  # which evaluation this is
    baselines: tuple[str, ...] = ("naive", "parroting")  # as `methods.registry` names them
    # Lorenz, Roessler and Mackey-Glass are the library's own; any other name, and dysts for all of
    # its systems, needs the package dysts.
    systems: tuple[str, ...] = SYSTEMS
    starts: int = 20  # trajectories of each system
    context: int = 512  # points before the forecast
    horizon: int = 300  # points to forecast
    points_per_turn: int = 30  # of the dominant period of a system
    seed: int = 0  # of the first states
    processes: int | None = None  # that integrate systems of dysts; None: one for each core

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "starts", "context", "horizon", "points_per_turn")
        require(len(self.systems) > 0, "systems is empty; name at least one")
        require(self.processes is None or self.processes > 0, "processes must be positive")
