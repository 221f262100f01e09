"""The tasks of GIFT-Eval (arXiv 2410.10393): a data set at a term, all its series.

The horizon follows from the frequency and the term, the number of windows from the shortest series;
windows lie at the end of each series and do not overlap. Errors are scaled by the changes over a
season of GluonTS: no season of days and weeks.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.formats.columnar import STATE, is_dataset_folder, open_dataset_folder
from timemoe_jax.data.formats.columnar_files import open_columnar_file
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.errors import DataError, listed
from timemoe_jax.evaluation.benchmarks import find_dataset
from timemoe_jax.evaluation.leaderboards.derived import GIFT_EVAL, items_of
from timemoe_jax.evaluation.tasks import Task

TERMS = {"short": 1, "medium": 10, "long": 15}  # times the base horizon
TEST_SHARE, MOST_WINDOWS = 0.1, 20
# Of a letter for the unit of time: the base horizon, that of M4's data sets, and the season of one
# unit.
HORIZONS = {"A": 6, "Q": 8, "M": 12, "W": 8, "D": 30, "H": 48, "T": 48, "S": 60}
M4_HORIZONS = {"A": 6, "Q": 8, "M": 18, "W": 13, "D": 14, "H": 48}
SEASONS = {"A": 1, "Q": 4, "M": 12, "W": 1, "D": 1, "H": 24, "T": 1440, "S": 3600}
# How pandas writes the letters now, and wrote them.
_LETTERS = {
    **{"A": "A", "Y": "A", "YE": "A", "YS": "A", "AS": "A", "Q": "Q", "QE": "Q", "QS": "Q"},
    **{"M": "M", "ME": "M", "MS": "M", "W": "W", "D": "D", "H": "H", "h": "H"},
    **{"T": "T", "min": "T", "S": "S", "s": "S"},
}
_ALIASES = {"A": "YE", "Q": "QE", "M": "ME", "W": "W", "D": "D", "H": "h", "T": "min", "S": "s"}
_FREQUENCY = re.compile(r"(\d*)([A-Za-z]+)(-[A-Z]+)?")

# The data sets of the leaderboard, by the folders they are published in; those with longer terms.
LONG_TERM = (
    *("electricity/15T", "electricity/H", "solar/10T", "solar/H", "kdd_cup_2018_with_missing/H"),
    *("LOOP_SEATTLE/5T", "LOOP_SEATTLE/H", "SZ_TAXI/15T", "M_DENSE/H", "ett1/15T", "ett1/H"),
    *("ett2/15T", "ett2/H", "jena_weather/10T", "jena_weather/H", "bitbrains_fast_storage/5T"),
    *("bitbrains_rnd/5T", "bizitobs_application", "bizitobs_service", "bizitobs_l2c/5T"),
    "bizitobs_l2c/H",
)
SHORT_TERM = (
    *("m4_yearly", "m4_quarterly", "m4_monthly", "m4_weekly", "m4_daily", "m4_hourly"),
    *("electricity/D", "electricity/W", "solar/D", "solar/W", "hospital", "covid_deaths"),
    *("us_births/D", "us_births/M", "us_births/W", "saugeenday/D", "saugeenday/M"),
    *("saugeenday/W", "temperature_rain_with_missing", "kdd_cup_2018_with_missing/D"),
    *("car_parts_with_missing", "restaurant", "hierarchical_sales/D", "hierarchical_sales/W"),
    *("LOOP_SEATTLE/D", "SZ_TAXI/H", "M_DENSE/D", "ett1/D", "ett1/W", "ett2/D", "ett2/W"),
    *("jena_weather/D", "bitbrains_fast_storage/H", "bitbrains_rnd/H"),
)
# Names of the leaderboard that are not those of the folders.
_SHOWN = {
    "saugeenday": "saugeen",
    "temperature_rain_with_missing": "temperature_rain",
    "kdd_cup_2018_with_missing": "kdd_cup_2018",
    "car_parts_with_missing": "car_parts",
}


class TooFewPointsError(DataError):
    """A series has too few points for the windows of a term."""


@dataclasses.dataclass(frozen=True, eq=False)
class GiftData:
    """A data set: every variate of every item is a series."""

    name: str  # of its folder, such as "ett1/15T"
    freq: str  # as it says itself
    series: tuple[Float64[np.ndarray, " _"], ...]
    names: tuple[str, ...]
    variates: int  # of an item
    derived: bool  # whether it was made from the files of ETT and Weather


def parse_frequency(freq: str) -> tuple[int, str, str]:
    """The number of units of a frequency, the letter of the unit and an alias that pandas reads.

    Raises:
      DataError: it is none that GIFT-Eval has.
    """
    found = _FREQUENCY.fullmatch(freq)
    letter = _LETTERS.get(found[2]) if found else None
    if found is None or letter is None:
        raise DataError(
            f"the frequency {freq!r} is none of GIFT-Eval's; its units are "
            f"{', '.join(sorted(set(_LETTERS)))}, after a number if there are several"
        )
    return int(found[1] or 1), letter, f"{found[1]}{_ALIASES[letter]}{found[3] or ''}"


def season_of(freq: str) -> int:
    """The points of the season that errors are scaled by; 1 where steps do not divide it."""
    count, letter, _ = parse_frequency(freq)
    season, rest = divmod(SEASONS[letter], count)
    return season if not rest and season else 1


def horizon_of(name: str, freq: str, term: str) -> int:
    """The horizon of a data set at a term.

    Raises:
      DataError: the benchmark has none for the frequency.
    """
    horizons = M4_HORIZONS if "m4" in name else HORIZONS
    letter = parse_frequency(freq)[1]
    if letter not in horizons:
        raise DataError(f"{name}: GIFT-Eval has no horizon for the frequency {freq!r}")
    return TERMS[term] * horizons[letter]


def num_windows(name: str, shortest: int, horizon: int) -> int:
    """How many windows each series of a data set has, by its shortest one."""
    if "m4" in name:
        return 1
    return min(max(1, math.ceil(TEST_SHARE * shortest / horizon)), MOST_WINDOWS)


def shown_name(name: str, freq: str) -> str:
    """What the leaderboard calls a data set, without the term: "saugeen/D" for saugeenday/D."""
    key, _, of_name = name.partition("/")
    key = key.lower()
    count, letter, _ = parse_frequency(freq)
    steps = f"{count}{letter}" if count > 1 else letter
    return f"{_SHOWN.get(key, key)}/{of_name or steps}"


def find_gift(name: str, data_dir: str | Path) -> Path | None:
    """The folder of a data set in the published layout; None where ETT or Weather has to do.

    Raises:
      DataError: there is no such folder, and it is none that is made from ETT and Weather.
    """
    folder = Path(data_dir) / name
    if is_dataset_folder(folder):
        return folder
    if name not in GIFT_EVAL:
        raise DataError(
            f"datasets: {folder} is no folder of a data set ({STATE} and .arrow files), and "
            f"{name!r} is none that is made from ETT and Weather: {', '.join(GIFT_EVAL)}"
        )
    for file in GIFT_EVAL[name].files:
        find_dataset(file, data_dir)
    return None


def load_gift(name: str, data_dir: str | Path) -> GiftData:
    """Reads a data set: a folder of this name in the published layout, else of ETT and Weather.

    The published layout is that of `datasets.Dataset.save_to_disk`, with columns item_id, freq and
    target: a list of numbers, or one for each variate. Reading it needs pyarrow.

    Raises:
      DataError: there is neither, or it cannot be read.
    """
    folder = find_gift(name, data_dir)
    if folder is not None:
        return _from_folder(name, folder)
    recipe = GIFT_EVAL[name]
    (item,) = items_of(recipe, data_dir)
    labels = tuple(f"{item.name} {column}" for column in item.columns)
    return GiftData(name, recipe.freq, tuple(item.values), labels, len(labels), True)


def _from_folder(name: str, folder: Path) -> GiftData:
    source = open_dataset_folder(folder, ColumnNames(id="item_id", targets=("target",)))
    if not len(source):
        raise DataError(f"{folder} holds no series")
    state = json.loads((folder / STATE).read_text("utf-8"))
    first = open_columnar_file(folder / state["_data_files"][0]["filename"])
    if "freq" not in first.schema.names:
        raise DataError(f"{folder} has no column freq, but {', '.join(first.schema.names)}")
    freq = first.read(0, ["freq"])["freq"][0].as_py()
    items = sum(
        sum(open_columnar_file(folder / entry["filename"]).rows) for entry in state["_data_files"]
    )
    series = tuple(each.astype(np.float64) for each in source)
    labels = tuple(source.label(i) for i in range(len(source)))
    return GiftData(name, freq, series, labels, len(series) // items, False)


def terms_of(name: str, asked: Sequence[str]) -> list[str]:
    """The asked terms that a data set has on the leaderboard; all of them where it is not on it."""
    if name in SHORT_TERM:
        return [term for term in asked if term == "short"]
    return list(asked)


def gift_task(data: GiftData, term: str) -> Task:
    """The task of a data set at a term.

    Raises:
      TooFewPointsError: a series is too short for its windows.
    """
    horizon = horizon_of(data.name, data.freq, term)
    lengths = [len(each) for each in data.series]
    windows = num_windows(data.name, min(lengths), horizon)
    short = [f"{data.names[i]} ({n})" for i, n in enumerate(lengths) if n <= windows * horizon]
    if short:
        raise TooFewPointsError(
            f"{data.name}/{term}: {windows} windows of {horizon} points need series of at least "
            f"{windows * horizon + 1}, but these have fewer: {listed(short, 3)}"
        )
    behind = horizon * np.arange(windows, 0, -1)
    return Task(
        name=f"{shown_name(data.name, data.freq)}/{term}",
        series=data.series,
        names=data.names,
        origins=tuple(n - behind for n in lengths),
        horizon=horizon,
        season=season_of(data.freq),
        freq=parse_frequency(data.freq)[2],
    )
