"""Data sets of the leaderboards that follow from the files of ETT and Weather.

Each was checked: the seasonal-naive scores on it are the published ones to three decimals.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Shaped

from timemoe_jax.data.formats.csv_files import Table, read_csv
from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.benchmarks import find_dataset


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the rows of a data set follow from those of files."""

    files: tuple[str, ...]  # each is an item, and each of its columns a series
    freq: str  # of the rows, a pandas alias
    mean_over: str | None = None  # the step whose rows are averaged, a pandas alias; None: as it is
    drop_first: int = 0  # rows of an incomplete step
    drop_last: int = 0


# GIFT-Eval's names. A week begins on the weekday of the first row.
GIFT_EVAL = {
    **{
        f"ett{k}/{name}": recipe
        for k in (1, 2)
        for name, recipe in {
            "15T": Recipe((f"ETTm{k}",), "15min"),
            "H": Recipe((f"ETTm{k}",), "h", "h"),
            "D": Recipe((f"ETTm{k}",), "D", "D", drop_last=1),
            "W": Recipe((f"ETTm{k}",), "W-THU", "7D", drop_last=1),
        }.items()
    },
    "jena_weather/10T": Recipe(("weather",), "10min"),
    "jena_weather/H": Recipe(("weather",), "h", "h", drop_last=1),
    "jena_weather/D": Recipe(("weather",), "D", "D", drop_last=1),
}
# fev-bench's names.
FEV_BENCH = {
    "ETT_15T": Recipe(("ETTm1", "ETTm2"), "15min"),
    "ETT_1H": Recipe(("ETTh1", "ETTh2"), "h"),
    "ETT_1D": Recipe(("ETTh1", "ETTh2"), "D", "D", 1, 1),
    "ETT_1W": Recipe(("ETTh1", "ETTh2"), "W-SUN", "W-SUN", 1, 1),
    "jena_weather_10T": Recipe(("weather",), "10min"),
    "jena_weather_1H": Recipe(("weather",), "h", "h", drop_last=1),
    "jena_weather_1D": Recipe(("weather",), "D", "D", drop_last=1),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """The C aligned series of a file."""

    name: str
    columns: tuple[str, ...]
    values: Float64[np.ndarray, "C T"]
    times: Shaped[np.ndarray, " T"] | None = None  # datetime64; None where they do not matter


def items_of(recipe: Recipe, data_dir: str | Path) -> list[Item]:
    """Reads the files of a recipe and makes its rows; what lies between them is filled forward.

    Raises:
      DataError: a file is absent, cannot be read, or has no dates.
    """
    return [_item(recipe, name, data_dir) for name in recipe.files]


@functools.lru_cache(maxsize=2)  # several recipes in a row are of the same files
def _table(path: Path, changed: int) -> Table:
    return read_csv(path)


def _item(recipe: Recipe, name: str, data_dir: str | Path) -> Item:
    import pandas as pd

    path = find_dataset(name, data_dir)
    table = _table(path, path.stat().st_mtime_ns)
    values = table.values
    if recipe.mean_over is not None:
        if table.timestamps is None:
            raise DataError(f"{path} has no dates, of which each {recipe.mean_over} is averaged")
        frame = pd.DataFrame(values, index=pd.DatetimeIndex(table.timestamps))
        values = frame.resample(recipe.mean_over).mean().ffill().to_numpy(np.float64)
    values = values[recipe.drop_first : len(values) - recipe.drop_last]
    return Item(name, table.columns, np.ascontiguousarray(values.T))
