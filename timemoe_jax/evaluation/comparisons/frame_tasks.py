"""The series of a user's own files as tasks: rolling origins at the end of each series."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from timemoe_jax.data.formats.open import open_parts
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.data.seasons import Season, default_horizon, season_of
from timemoe_jax.errors import DataError, listed
from timemoe_jax.evaluation.comparisons.config import FrameConfig
from timemoe_jax.evaluation.tasks import Task
from timemoe_jax.forecasting.frames.files import SUFFIXES, open_frame, with_times
from timemoe_jax.forecasting.frames.prepare import prepare_frame
from timemoe_jax.forecasting.intervals.rolling import first_observed


@dataclasses.dataclass(frozen=True, eq=False)
class FrameTasks:
    """Tasks, and what of the files is in none of them."""

    tasks: tuple[Task, ...]  # one for each file and step between times
    times: dict[
        tuple[str, str], Any
    ]  # of (task, series): the pandas Index [T]; none of no calendar
    seasons: dict[str, Season]  # of each task
    files: tuple[Path, ...]
    too_short: tuple[str, ...]  # series without room for one fold
    fewer_folds: tuple[str, ...]  # series with room for some of the folds
    unseen: int  # windows left out: nothing is observed before them, or in them
    counters: tuple[str, ...]  # columns left out, since they count rows
    left_out: int  # series beyond `max_series`

    def notes(self) -> list[str]:
        """A sentence for each thing that was left out."""
        counts = [
            (len(self.too_short), "series too short for one fold", listed(self.too_short)),
            (self.unseen, "windows without an observed value before or in them", ""),
            (len(self.counters), "columns that count rows", listed(self.counters)),
            (self.left_out, "series beyond max_series", ""),
        ]
        notes = [
            f"Left out: {count:,} {what}{': ' * bool(names)}{names}."
            for count, what, names in counts
            if count
        ]
        if self.fewer_folds:
            shorter = listed(self.fewer_folds)
            notes.append(f"With fewer folds: {len(self.fewer_folds):,} series: {shorter}.")
        return notes


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Series that share the step between their points."""

    title: str
    names: list[str]
    read: Callable[[int], Float64[np.ndarray, " _"]]  # a series, by its place in `names`
    freq: str  # a pandas alias, or a number of steps
    times: list[Any] | None = None  # a pandas Index of each


def find_files(path: str) -> tuple[Path, ...]:
    """The files that a text with commas names: files, and those of folders, sorted.

    Of a folder these are its CSV and Parquet files; one without any is itself taken, and read as
    the data of a training run are.

    Raises:
      DataError: there is no such file or folder.
    """
    found: list[Path] = []
    for name in filter(None, (part.strip() for part in path.split(","))):
        each = Path(name)
        if not each.exists():
            raise DataError(f"{each} is no file and no folder; path must name files of series")
        inside = sorted(each.iterdir()) if each.is_dir() else []
        tables = [p for p in inside if p.is_file() and p.suffix.lower() in SUFFIXES]
        found += tables or [each]
    return tuple(dict.fromkeys(found))


def frame_tasks(config: FrameConfig) -> FrameTasks:
    """Reads the series of a config, and cuts folds from every one of them.

    CSV and Parquet files are read as `timemoe forecast` does, so that absent rows are missing
    values on a calendar. Anything else that training reads is read as training does, without a
    calendar. The folds of a series are its last `folds` horizons. Each is forecast from all points
    before it, of which there are at least two and a season. A series with room for fewer folds has
    those.

    Raises:
      DataError: a file cannot be read as series, or no series has room for a fold.
    """
    files = find_files(config.path)
    folds = _Folds(config)
    for path in files:
        table = path.is_file() and path.suffix.lower() in SUFFIXES
        read = _read_table(path, config, len(files) > 1, folds) if table else _read_source(path)
        for group in read:
            folds.add(group)
    if not folds.tasks:
        raise DataError(
            f"no series of {config.path} has room for a fold: {listed(folds.too_short)}; give a "
            "shorter horizon"
        )
    return folds.finish(files)


def _read_table(
    path: Path, config: FrameConfig, several: bool, folds: "_Folds"
) -> Iterator[_Group]:
    """The series of a CSV or a Parquet file, a group for each step between times."""
    names = ColumnNames(
        config.id_column, config.timestamp_column, config.target, config.separator, config.decimal
    )
    frame, counters = open_frame(path, names)
    folds.counters += counters
    frame, timestamp = with_times(frame, names, str(path))
    timed = prepare_frame(
        frame,
        1,
        where=str(path),
        id_column=config.id_column,
        timestamp_column=timestamp,
        target=config.target or None,
        freq=int(config.freq) if config.freq and config.freq.isdigit() else config.freq,
        date_format=config.date_format,
    ).timed
    # The target's name says nothing where there is one for every id.
    plain = timed.ids is not None and len(timed.targets) == 1
    steps = dict.fromkeys(each.freq for each in timed.series)
    for freq in steps:
        series = [each for each in timed.series if each.freq == freq]
        titles = [str(each.id) if plain else each.name for each in series]
        yield _Group(
            title=f"{path.stem} {freq}" if len(steps) > 1 else path.stem,
            names=[f"{path.stem} {title}" if several else title for title in titles],
            read=[each.values for each in series].__getitem__,
            freq=freq,
            times=[each.timestamps for each in series],
        )


def _read_source(path: Path) -> Iterator[_Group]:
    """The series of a file or a folder that training reads, a group for each of its sources."""
    source, parts = open_parts(str(path))

    def read(i: int, first: int) -> Float64[np.ndarray, " _"]:
        return np.asarray(source[first + i], np.float64)

    for part in parts:
        count = part.stop - part.first
        names = [f"{part.name} {i}" for i in range(count)]
        yield _Group(
            part.label,
            names,
            functools.partial(read, first=part.first),
            freq="1",
        )


class _Folds:
    """Collects tasks, and what was left out."""

    def __init__(self, config: FrameConfig):
        self.config = config
        self.tasks: list[Task] = []
        self.times: dict[tuple[str, str], Any] = {}
        self.seasons: dict[str, Season] = {}
        self.too_short: list[str] = []
        self.fewer: list[str] = []
        self.counters: list[str] = []
        self.unseen = self.left_out = 0

    def finish(self, files: tuple[Path, ...]) -> FrameTasks:
        """All of it."""
        return FrameTasks(
            tasks=tuple(self.tasks),
            times=self.times,
            seasons=self.seasons,
            files=files,
            too_short=tuple(self.too_short),
            fewer_folds=tuple(self.fewer),
            unseen=self.unseen,
            counters=tuple(dict.fromkeys(self.counters)),
            left_out=self.left_out,
        )

    def add(self, group: _Group) -> None:
        """Adds a task of series that share a step, if one of them is long enough."""
        title, total = self._free(group.title), len(group.names)
        count = min(self.config.max_series or total, total)
        self.left_out += total - count
        # In the middles of as many equal parts.
        places = [(2 * i + 1) * total // (2 * count) for i in range(count)]
        series = {place: group.read(place) for place in places}
        season = self._season(list(series.values()), group.freq)
        horizon = self.config.horizon or default_horizon(season.points)
        windows = {
            place: origins
            for place, values in series.items()
            if (origins := self._origins(values, group.names[place], season.points, horizon)).size
        }
        if not windows:
            return
        self.seasons[title] = season
        if group.times is not None:
            self.times |= {(title, group.names[i]): group.times[i] for i in windows}
        self.tasks.append(
            Task(
                name=title,
                series=tuple(series[i] for i in windows),
                names=tuple(group.names[i] for i in windows),
                origins=tuple(windows.values()),
                horizon=horizon,
                season=season.points,
                freq=None if group.freq.isdigit() else group.freq,
            )
        )

    def _season(self, series: Sequence[Float64[np.ndarray, " _"]], freq: str) -> Season:
        """The season that is given, else of the calendar, else of what comes before the folds."""
        if self.config.season:
            return Season(self.config.season, "given")
        horizon = self.config.horizon or default_horizon(season_of(series, freq).points)
        hidden = self.config.folds * horizon
        return season_of([each[: max(len(each) - hidden, 0)] for each in series], freq)

    def _origins(
        self, values: Float64[np.ndarray, " T"], name: str, season: int, horizon: int
    ) -> Int64[np.ndarray, " _"]:
        """Where the windows of a series begin; none if it is too short."""
        wanted = self.config.folds
        folds = max(min((len(values) - max(2, season)) // horizon, wanted), 0)
        if not folds:
            self.too_short.append(f"{name} ({len(values)} points)")
        elif folds < wanted:
            self.fewer.append(f"{name} ({folds})")
        first = first_observed(values)
        origins = len(values) - horizon * np.arange(folds, 0, -1)
        seen = [bool(t > first and (~np.isnan(values[t : t + horizon])).any()) for t in origins]
        self.unseen += folds - sum(seen)
        return origins[np.array(seen, bool)].astype(np.int64)

    def _free(self, title: str) -> str:
        """A name that no task has."""
        taken = {task.name for task in self.tasks}
        free = (f"{title} {n}" if n > 1 else title for n in range(1, len(taken) + 2))
        return next(name for name in free if name not in taken)
