"""What a comparison of methods on one's own series is determined by."""

import dataclasses

from timemoe_jax.checkpoints import bundled
from timemoe_jax.config import DTYPES, require, require_choice, require_positive

INTERVALS = ("auto", "heads", "calibrated", "conformal")


@dataclasses.dataclass(frozen=True)
class FrameConfig:
    """Which methods to compare on the series of one's own files, and how."""

    benchmark: str = "frame"  # says which config this is
    # CSV or Parquet files and folders of them, or anything that training reads, with commas.
    path: str = ""
    checkpoint: str = bundled.DEFAULT  # the model; empty: the baselines alone
    # Names of methods, or module:function of a predictor of GluonTS or fev.
    baselines: tuple[str, ...] = (
        *("naive", "seasonal_naive", "drift"),
        *("window_average", "parroting", "linear"),
    )
    horizon: int | None = None  # points to forecast; None: two seasons, at least 12
    folds: int = 3  # horizons at the end of each series that are forecast
    season: int | None = None  # points; None: of the calendar, else found in the series
    max_series: int | None = None  # of each file, evenly spaced; None: all
    id_column: str | None = None  # None: found, as by `timemoe forecast`
    timestamp_column: str | None = None  # None: found
    target: tuple[str, ...] = ()  # columns; empty: found
    freq: str | None = None  # a pandas alias; None: found
    date_format: str | None = None  # as strptime takes it; None: found
    separator: str | None = None  # of the cells of a CSV; None: found
    decimal: str | None = None  # what is before decimals in a CSV; None: found
    context_length: int | None = None  # points that the model reads; None: as many as it holds
    intervals: str = "auto"  # of the model: auto, heads, calibrated or conformal
    dtype: str = "auto"  # auto, float32 or bfloat16
    batch_size: int = 256  # windows that the model forecasts at a time
    # Seconds of computing after which a method that runs in processes of its own is stopped, for
    # each window; five times as many by the clock.
    limit_s: float = 30.0
    processes: int | None = None  # of such methods; None: as many as there are cores
    per_window: bool = True  # whether to write the scores of each window, for `timemoe compare`
    # Takes report.html, results.md, manifest.json and the scores of windows.
    output_dir: str = "out/eval_frame"

    def __post_init__(self) -> None:
        require(
            self.benchmark == "frame", f"benchmark must be 'frame' here, but is {self.benchmark!r}"
        )
        require(bool(self.path), "path is empty; name a CSV, a Parquet file or a folder of them")
        require(
            bool(self.checkpoint or self.baselines),
            "checkpoint and baselines are empty; name at least one method",
        )
        require_positive(self, "folds", "batch_size", "limit_s")
        for name in ("horizon", "season", "max_series", "context_length", "processes"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, but is {value}")
        require_choice(self, "intervals", INTERVALS)
        require_choice(self, "dtype", ("auto", *DTYPES))
