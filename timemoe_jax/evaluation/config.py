"""What an evaluation is determined by."""

import dataclasses

from timemoe_jax.config import DTYPES, NORMALIZATIONS, require, require_choice, require_positive

PROTOCOLS = ("complete", "published")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Which checkpoint to score on which datasets, and how.

    The further benchmarks have config classes of their own: `benchmark` says which it is.
    """

    benchmark: str = "long_horizon"  # or another: the sections below, each with fields of its own
    checkpoint: str = ""  # empty: the baselines alone
    data_dir: str = "data"  # a folder of CSV files
    # Names of long-horizon data sets, or paths of CSV files.
    datasets: tuple[str, ...] = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather")
    horizons: tuple[int, ...] = (96, 192, 336, 720)  # points to forecast
    context_length: int | None = None  # None: the published one of each horizon
    protocol: str = "complete"  # complete, or published: without the last window
    normalize: str = "none"  # none, or instance: z-scored by the context
    dtype: str = "auto"  # auto, float32 or bfloat16
    batch_size: int = 64  # windows forecast at a time
    max_windows: int | None = None  # None: every window
    per_window: bool = False  # also write a row of scores for each window
    output_dir: str = "out/eval"  # takes the table and the manifest

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")
        require(len(self.datasets) > 0, "datasets is empty; name at least one")
        require(
            len(self.horizons) > 0 and min(self.horizons) > 0,
            f"horizons must be positive, but are {self.horizons}",
        )
        for name in ("context_length", "max_windows"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, but is {value}")
        require_choice(self, "protocol", PROTOCOLS)
        require_choice(self, "normalize", NORMALIZATIONS)
        require_choice(self, "dtype", ("auto", *DTYPES))
