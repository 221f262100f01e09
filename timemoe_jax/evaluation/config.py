"""What an evaluation is determined by."""

import dataclasses

from timemoe_jax.config import DTYPES, NORMALIZATIONS, require, require_choice, require_positive

PROTOCOLS = ("complete", "published")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Which checkpoint to score on which datasets, and how."""

    checkpoint: str = ""  # empty: the baselines alone
    data_dir: str = "data"
    datasets: tuple[str, ...] = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather")
    horizons: tuple[int, ...] = (96, 192, 336, 720)
    context_length: int | None = None  # None: the published one of each horizon
    protocol: str = "complete"
    normalize: str = "none"
    dtype: str = "auto"
    batch_size: int = 64
    max_windows: int | None = None  # None: every window
    output_dir: str = "out/eval"

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
