"""The long-horizon benchmark protocol: splits, scaling, and the windows that are scored.

Every channel of a dataset is a series, standardized by its train split. At every row of the test
split a forecast is made from the points before it, and scored on that scale.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from timemoe_jax.data.formats.csv_files import Table, read_csv
from timemoe_jax.data.seasons import season_of
from timemoe_jax.errors import DataError, listed
from timemoe_jax.evaluation.config import PROTOCOLS

# Horizon -> context of the published results (arXiv 2409.16040, Section 4).
PUBLISHED_CONTEXTS = {96: 512, 192: 1024, 336: 2048, 720: 3072}

# Rows at which train, validation and test end: 12, 4 and 4 months of 30 days.
ETT_HOURLY_BORDERS = (8640, 11520, 14400)
ETT_QUARTER_HOURLY_BORDERS = (34560, 46080, 57600)

PUBLISHED_MODELS = ("base", "large", "ultra")
# MSE/MAE of the zero-shot forecasts (arXiv 2409.16040v4, Table 3).
_ZERO_SHOT = """
ETTh1 96    .357/.381 .350/.382 .349/.379
ETTh1 192   .384/.404 .388/.412 .395/.413
ETTh1 336   .411/.434 .411/.430 .447/.453
ETTh1 720   .449/.477 .427/.455 .457/.462
ETTh2 96    .305/.359 .302/.354 .292/.352
ETTh2 192   .351/.386 .364/.385 .347/.379
ETTh2 336   .391/.418 .417/.425 .406/.419
ETTh2 720   .419/.454 .537/.496 .439/.447
ETTm1 96    .338/.368 .309/.357 .281/.341
ETTm1 192   .353/.388 .346/.381 .305/.358
ETTm1 336   .381/.413 .373/.408 .369/.395
ETTm1 720   .504/.493 .475/.477 .469/.472
ETTm2 96    .201/.291 .197/.286 .198/.288
ETTm2 192   .258/.334 .250/.322 .235/.312
ETTm2 336   .324/.373 .337/.375 .293/.348
ETTm2 720   .488/.464 .480/.461 .427/.428
weather 96  .160/.214 .159/.213 .157/.211
weather 192 .210/.260 .215/.266 .208/.256
weather 336 .274/.309 .291/.322 .255/.290
weather 720 .418/.405 .415/.400 .405/.397
"""


def _published() -> dict[tuple[str, int], dict[str, tuple[float, ...]]]:
    table = {}
    for name, horizon, *cells in map(str.split, _ZERO_SHOT.strip().splitlines()):
        scores = (tuple(map(float, cell.split("/"))) for cell in cells)
        table[name, int(horizon)] = dict(zip(PUBLISHED_MODELS, scores, strict=True))
    return table


# (dataset, horizon) -> model -> (MSE, MAE) of the published zero-shot forecasts.
published_results = _published()


def default_context(horizon: int) -> int:
    """The context of the published protocol for a horizon; 4 * horizon where it names none."""
    return PUBLISHED_CONTEXTS.get(horizon, 4 * horizon)


def find_dataset(name_or_path: str, data_dir: str | Path | None = None) -> Path:
    """Finds a CSV by its path, or by its name, in any case, in a folder or a folder within it."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if not data_dir:
        raise DataError(f"{name_or_path} is no file, and no data folder was given to search in")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise DataError(
            f"{name_or_path} is no file, and the data folder {folder} does not exist; `timemoe "
            "data download` fetches ETT and Weather"
        )
    known = sorted(p for p in folder.rglob("*") if p.suffix.lower() == ".csv" and p.is_file())
    wanted = name_or_path.lower().removesuffix(".csv")
    found = [p for p in known if p.stem.lower() == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{name_or_path!r} could be any of {', '.join(map(str, found))}; give the path"
        )
    there = listed([p.relative_to(folder) for p in known], 20) or "no .csv"
    raise DataError(f"there is no {name_or_path}.csv under {folder}, which holds {there}")


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """One dataset of T rows and C channels, split, and scaled by its train split."""

    name: str  # of the file, without the suffix; spelt as in `published_results`
    path: Path
    columns: tuple[str, ...]
    timestamps: Shaped[np.ndarray, " T"] | None  # datetime64; None where the file has none
    values: Float64[np.ndarray, "T C"]  # as in the file
    borders: tuple[int, int, int]  # the rows at which the train, validation and test splits end
    mean: Float64[np.ndarray, " C"]
    std: Float64[np.ndarray, " C"]  # of the population; 1 where the train split is constant
    scaled: Float64[np.ndarray, "T C"]  # (values - mean) / std
    season: int  # steps in a season: of the dates, else found in the train split
    sha256: str
    md5: str


def load_benchmark(path: str | Path) -> Benchmark:
    """Reads a CSV, splits it and scales it by its train split.

    A file with "etth" or "ettm" in its name has the fixed borders of that dataset; in any other,
    the first 70 percent of the rows are the train split and the last 20 percent the test split. A
    file that is too short for that, or has missing or infinite values, is a DataError.
    """
    path = Path(path)
    table = read_csv(path)
    _check_finite(table)
    borders = _borders(path, len(table.values))
    train = table.values[: borders[0]]
    mean = train.mean(axis=0)
    # Rounding gives a constant channel a deviation just above 0.
    constant = train.min(axis=0) == train.max(axis=0)
    std = np.where(constant, 1.0, train.std(axis=0))
    content = path.read_bytes()
    spelling = {name.lower(): name for name, _ in published_results}
    return Benchmark(
        name=spelling.get(path.stem.lower(), path.stem),
        path=path,
        columns=table.columns,
        timestamps=table.timestamps,
        values=table.values,
        borders=borders,
        mean=mean,
        std=std,
        scaled=(table.values - mean) / std,
        season=season_of(list(train.T), times=table.timestamps).points,
        sha256=hashlib.sha256(content).hexdigest(),
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
    )


def _check_finite(table: Table) -> None:
    bad = (~np.isfinite(table.values)).sum(axis=0)
    for column, count in zip(table.columns, bad, strict=True):
        if count:
            raise DataError(
                f"{table.path} column {column!r} has {count} missing or infinite values of "
                f"{len(table.values)}; a benchmark must have none"
            )


def _borders(path: Path, rows: int) -> tuple[int, int, int]:
    name = path.stem.lower()
    for part, borders in (("etth", ETT_HOURLY_BORDERS), ("ettm", ETT_QUARTER_HOURLY_BORDERS)):
        if part in name:
            if rows < borders[-1]:
                raise DataError(
                    f"{path} has {rows} rows, but its name says {part.upper()}, whose test split "
                    f"ends at row {borders[-1]}; fetch the whole file or rename it"
                )
            return borders
    train, test = int(0.7 * rows), int(0.2 * rows)
    if not train or not test:
        raise DataError(f"{path} has {rows} rows, too few to split 70/10/20; give at least 5")
    return train, rows - test, rows


def _spread(count: int, most: int | None) -> Int64[np.ndarray, " W"]:
    """At most so many of the first whole numbers, evenly spaced."""
    chosen = count if most is None else min(most, count)
    # The middles of as many equal parts: whole numbers, and none of them twice.
    return (2 * np.arange(chosen, dtype=np.int64) + 1) * count // (2 * chosen)


class BenchmarkWindows:
    """Windows over the test split: a context, and the horizon that follows, of one channel.

    They are numbered channel by channel, and by time in each. The protocol scores
    `num_per_channel` windows of each channel, and `total` of all; `len` may be less. Those that are
    `together` come time by time, the windows of all channels one after the other.
    """

    __test__ = False  # or pytest would take the class for one of tests

    def __init__(
        self,
        benchmark: Benchmark,
        context_length: int,
        horizon: int,
        num_per_channel: int,
        max_windows: int | None,
        together: bool = False,
    ):
        self.context_length = context_length
        self.horizon = horizon
        self.num_per_channel = num_per_channel
        self.total = num_per_channel * len(benchmark.columns)
        self._timestamps = benchmark.timestamps
        self._begin = benchmark.borders[1] - context_length
        # [C, window, context + horizon], all of it a view of the scaled values.
        self._windows = np.lib.stride_tricks.sliding_window_view(
            benchmark.scaled[self._begin :].T, context_length + horizon, axis=1
        )
        if together:
            channels = len(benchmark.columns)
            most = None if max_windows is None else max(1, max_windows // channels)
            starts = _spread(num_per_channel, most)
            self._chosen = (starts[:, None] + np.arange(channels) * num_per_channel).ravel()
        else:
            self._chosen = _spread(self.total, max_windows)

    def __len__(self) -> int:
        return len(self._chosen)

    def batches(
        self, batch_size: int
    ) -> Iterator[
        tuple[
            Float64[np.ndarray, "B context"],
            Float64[np.ndarray, "B horizon"],
            Int64[np.ndarray, " B"],
            Int64[np.ndarray, " B"],
        ]
    ]:
        """Yields the windows in order; only a batch at a time is in memory.

        These are scaled contexts and targets, the channel of each, and the row at which it starts.
        """
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, but is {batch_size}")
        for first in range(0, len(self), batch_size):
            channel, start = divmod(self._chosen[first : first + batch_size], self.num_per_channel)
            window = self._windows[channel, start]
            context, target = window[:, : self.context_length], window[:, self.context_length :]
            yield context, target, channel, start + self._begin

    @property
    def first_target_time(self) -> str | int:
        """The earliest date that is forecast, in ISO 8601; its row where there are no dates."""
        start = int((self._chosen % self.num_per_channel).min())
        return self._time(start + self._begin + self.context_length)

    @property
    def last_target_time(self) -> str | int:
        """The latest date that is forecast, in ISO 8601; its row where there are no dates."""
        start = int((self._chosen % self.num_per_channel).max())
        return self._time(start + self._begin + self.context_length + self.horizon - 1)

    def _time(self, row: int) -> str | int:
        if self._timestamps is None:
            return row
        return str(np.datetime_as_string(self._timestamps[row], unit="s"))


def benchmark_windows(
    benchmark: Benchmark,
    context_length: int,
    horizon: int,
    protocol: str = "complete",
    max_windows: int | None = None,
    together: bool = False,
) -> BenchmarkWindows:
    """The windows of a benchmark's test split, at stride 1, each of a single channel.

    The first target is the first row of the test split, so its context lies before that. The
    protocol "published" leaves out the last window of each channel, as the published results do.
    At most `max_windows`, evenly spaced over all, are taken; of those that are `together`, for a
    model that reads the channels of a time together, whole times.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol is {protocol!r}; it must be one of {', '.join(PROTOCOLS)}")
    for name, value in (("context_length", context_length), ("horizon", horizon)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, but is {value}")
    if max_windows is not None and max_windows < 1:
        raise DataError(f"max_windows must be at least 1, but is {max_windows}")
    _, start, end = benchmark.borders
    if context_length > start:
        raise DataError(
            f"{benchmark.path} has {start} rows before its test split, fewer than the "
            f"{context_length} of context_length"
        )
    published = protocol == "published"
    num_per_channel = end - start - horizon + 1 - published
    if num_per_channel < 1:
        raise DataError(
            f"{benchmark.path} has {end - start} rows in its test split, too few for a horizon of "
            f"{horizon} under the {protocol} protocol; it must have {horizon + published} or more"
        )
    return BenchmarkWindows(
        benchmark, context_length, horizon, num_per_channel, max_windows, together
    )
