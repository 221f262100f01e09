"""The tasks of fev-bench (arXiv 2509.26468): windows of a data set that step through its end.

Definitions have the fields of `fev.Task`, and can be read from a YAML file in fev's layout. A score
of a task is the mean over its windows of the mean over its target columns.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from timemoe_jax.errors import DataError, listed
from timemoe_jax.evaluation.benchmarks import find_dataset
from timemoe_jax.evaluation.leaderboards.derived import FEV_BENCH, Item, items_of
from timemoe_jax.evaluation.leaderboards.gift import parse_frequency, season_of
from timemoe_jax.evaluation.tasks import DECILES, Task

SOURCE = "autogluon/fev_datasets"
METRICS: dict[str, Any] = {
    "eval_metric": "SQL",
    "extra_metrics": ["MASE", {"name": "WAPE", "epsilon": 1.0}, {"name": "WQL", "epsilon": 1.0}],
    "quantile_levels": list(DECILES),
}
DAYS_IN_WEEK = 7
_ETT = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
_JENA = tuple(f"target_{k}" for k in range(21))
# Columns that a task has beside its targets, which are not read.
_COVARIATES = ("known_dynamic_columns", "past_dynamic_columns", "static_columns")


@dataclasses.dataclass(frozen=True)
class Definition:
    """A task as fev defines it, with fev's names of the fields."""

    dataset_config: str  # the folder of its Parquet files
    horizon: int
    num_windows: int = 1
    seasonality: int = 1  # that errors are scaled by
    target: tuple[str, ...] = ("target",)
    initial_cutoff: int | str | None = None  # None: so that the last window ends with the series
    window_step_size: int | None = None  # None: the horizon
    min_context_length: int = 1
    id_column: str = "id"
    timestamp_column: str = "timestamp"
    task_name: str | None = None
    covariates: tuple[str, ...] = ()  # that are not used

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.task_name or self.dataset_config

    @property
    def step(self) -> int:
        """From window to window, in points."""
        return self.window_step_size or self.horizon

    def fields(self) -> dict[str, Any]:
        """The arguments of `fev.Task` but those of the data and the metrics."""
        return {
            "horizon": self.horizon,
            "num_windows": self.num_windows,
            "initial_cutoff": self.initial_cutoff,
            "window_step_size": self.window_step_size,
            "min_context_length": self.min_context_length,
            "seasonality": self.seasonality,
            "id_column": self.id_column,
            "timestamp_column": self.timestamp_column,
            "target": list(self.target) if len(self.target) > 1 else self.target[0],
            "task_name": self.name,
        }


DERIVED = {
    each.dataset_config: each
    for each in (
        Definition("ETT_15T", 96, 20, 96, _ETT),
        Definition("ETT_1H", 168, 20, 24, _ETT),
        Definition("ETT_1D", 28, 20, 7, _ETT),
        Definition("ETT_1W", 13, 5, 1, _ETT),
        Definition("jena_weather_10T", 144, 20, 144, _JENA),
        Definition("jena_weather_1H", 24, 20, 24, _JENA),
        Definition("jena_weather_1D", 28, 11, 1, _JENA),
    )
}


@dataclasses.dataclass(frozen=True, eq=False)
class FevTask:
    """A task, and to which score each of its windows contributes."""

    definition: Definition
    task: Task
    items: tuple[Item, ...]  # by their names, as fev sorts them; a series of each target column
    numbers: Int64[np.ndarray, " W"]  # of each window, from 0 in the order of time
    columns: Int64[np.ndarray, " W"]  # the index of its target column
    left_out: int  # pairs of a series and a window that are too short, which fev leaves out too
    derived: bool  # whether it was made from the files of ETT and Weather

    @property
    def groups(self) -> Int64[np.ndarray, " W"]:
        """The number of a window and target column, whose scores are averaged."""
        return self.columns * self.definition.num_windows + self.numbers


def read_definitions(path: str | Path) -> dict[str, Definition]:
    """Reads the tasks of a YAML file in fev's layout, by their names.

    Raises:
      DataError: it cannot be read, or a task has a field or quantile levels that are not supported.
    """
    import yaml

    try:
        tasks = yaml.safe_load(Path(path).read_text("utf-8"))["tasks"]
        found = [_definition(dict(each), f"{path} task {i}") for i, each in enumerate(tasks)]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} holds no tasks in the layout of fev: {error}") from None
    return {each.name: each for each in found}


def _definition(fields: dict[str, Any], where: str) -> Definition:
    covariates = tuple(name for kind in _COVARIATES for name in fields.pop(kind, None) or ())
    levels = fields.pop("quantile_levels", list(DECILES))
    if levels != list(DECILES):
        raise DataError(f"{where} has the quantile levels {levels}; those supported are {DECILES}")
    for name in ("dataset_path", "eval_metric", "extra_metrics"):
        fields.pop(name, None)
    known = {field.name for field in dataclasses.fields(Definition)}
    if unknown := [name for name in fields if name not in known]:
        raise DataError(f"{where} has fields that are not supported: {', '.join(unknown)}")
    target = fields.pop("target", "target")
    target = (target,) if isinstance(target, str) else tuple(target)
    if not isinstance(fields.get("window_step_size"), int | None):
        raise DataError(f"{where}: window_step_size must be a number of points")
    return Definition(**fields, target=target, covariates=covariates)


def find_fev(definition: Definition, data_dir: str | Path) -> Path | None:
    """The folder of a task's Parquet files; None where ETT or Weather has to do.

    Raises:
      DataError: there is no such folder, and the data set is none that is made from these.
    """
    name = definition.dataset_config
    folder = Path(data_dir) / name
    if any(folder.glob("*.parquet")):
        return folder
    if name not in FEV_BENCH:
        raise DataError(
            f"datasets: {folder} holds no .parquet file, and {name!r} is none that is made from "
            f"ETT and Weather: {', '.join(FEV_BENCH)}"
        )
    for file in FEV_BENCH[name].files:
        find_dataset(file, data_dir)
    return None


def load_fev(definition: Definition, data_dir: str | Path) -> FevTask:
    """Reads the data of a task: `data_dir`/NAME/*.parquet, else the files of ETT and Weather.

    The rows of the Parquet files are items, with a list for each column; or points, with an id and
    a time for each. Reading them needs pyarrow.

    Raises:
      DataError: there are neither, they cannot be read, or every series is too short.
    """
    folder = find_fev(definition, data_dir)
    if folder is None:
        recipe = FEV_BENCH[definition.dataset_config]
        items = [
            dataclasses.replace(item, columns=definition.target)
            for item in items_of(recipe, data_dir)
        ]
        freq = recipe.freq
    else:
        items = _read_items(definition, folder)
        freq = _frequency(items[0], folder)
    items.sort(key=lambda item: item.name)
    return _task(definition, items, freq, folder is None)


def _task(definition: Definition, items: Sequence[Item], freq: str, derived: bool) -> FevTask:
    series, names, origins, numbers, columns = [], [], [], [], []
    left_out = 0
    for item in items:
        cutoffs = _cutoffs(definition, item)
        length = item.values.shape[1]
        fits = (cutoffs >= definition.min_context_length) & (cutoffs + definition.horizon <= length)
        left_out += int((~fits).sum()) * len(item.values)
        for c, (column, values) in enumerate(zip(item.columns, item.values, strict=True)):
            series.append(values)
            names.append(f"{item.name} {column}")
            origins.append(cutoffs[fits])
            numbers.append(np.flatnonzero(fits))
            columns.append(np.full(int(fits.sum()), c))
    if not sum(map(len, origins)):
        raise DataError(
            f"{definition.name}: every series is too short for a window of {definition.horizon} "
            f"points after {definition.min_context_length} or more; the longest has "
            f"{max(map(len, series))}"
        )
    task = Task(
        name=definition.name,
        series=tuple(series),
        names=tuple(names),
        origins=tuple(origins),
        horizon=definition.horizon,
        season=_season(definition, freq),
        freq=parse_frequency(freq)[2],
        scale_season=definition.seasonality,
    )
    numbered, of_column = np.concatenate(numbers), np.concatenate(columns)
    return FevTask(definition, task, tuple(items), numbered, of_column, left_out, derived)


def _cutoffs(definition: Definition, item: Item) -> Int64[np.ndarray, " W"]:
    """The first point that each window forecasts; it may lie outside of the series."""
    steps = definition.step * np.arange(definition.num_windows)
    first, length = definition.initial_cutoff, item.values.shape[1]
    if first is None:
        first = -definition.horizon - int(steps[-1])
    if isinstance(first, int):
        return (first if first >= 0 else max(0, length + first)) + steps
    if item.times is None:
        raise DataError(f"{definition.name} begins at {first}, but its data have no times")
    return int((item.times <= np.datetime64(first)).sum()) + steps


def _season(definition: Definition, freq: str) -> int:
    """What fev's seasonal naive repeats: the longer of the task's season and the usual one."""
    count, letter, _ = parse_frequency(freq)
    usual = DAYS_IN_WEEK if letter == "D" and count == 1 else season_of(freq)
    return max(definition.seasonality, usual)


def _frequency(item: Item, folder: Path) -> str:
    import pandas as pd

    freq = pd.infer_freq(pd.DatetimeIndex(item.times)) if len(item.columns) else None
    if freq is None:
        raise DataError(f"{folder}: the times of {item.name} have no frequency")
    return freq


def _read_items(definition: Definition, folder: Path) -> list[Item]:
    import pandas as pd

    from timemoe_jax.data.formats.columnar_files import naming

    paths = sorted(folder.glob("*.parquet"))
    wanted = [definition.id_column, definition.timestamp_column, *definition.target]
    frames = []
    for path in paths:
        with naming(path, "Parquet"):
            frame = pd.read_parquet(path)
        if missing := [name for name in wanted if name not in frame.columns]:
            raise DataError(
                f"{path} lacks the columns {', '.join(missing)}; it has {listed(frame.columns)}"
            )
        frames.append(frame[wanted])
    frame = pd.concat(frames, ignore_index=True)
    if pd.api.types.is_datetime64_any_dtype(frame[definition.timestamp_column]):
        of_item = frame.groupby(definition.id_column, sort=False)
        rows: Any = (
            {definition.id_column: name, **{c: part[c].to_numpy() for c in wanted[1:]}}
            for name, part in of_item
        )
    else:
        rows = frame.to_dict("records")
    return [_item(definition, row) for row in rows]


def _item(definition: Definition, row: Mapping[str, Any]) -> Item:
    name = str(row[definition.id_column])
    times = np.asarray(row[definition.timestamp_column], "datetime64[us]")
    values = [np.asarray(row[column], np.float64) for column in definition.target]
    if {len(each) for each in values} != {len(times)}:
        raise DataError(
            f"{definition.name}: the columns of {name} have not as many values as times"
        )
    return Item(name, definition.target, np.stack(values), times)
