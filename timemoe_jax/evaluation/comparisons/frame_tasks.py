"""The series of a user's own files as tasks: rolling origins at the end of each series."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.data.seasons import Season, default_horizon, season_of
from timemoe_jax.errors import DataError, listed
from timemoe_jax.evaluation.comparisons.config import FrameConfig
from timemoe_jax.evaluation.tasks import Task
from timemoe_jax.forecasting.frames.files import SUFFIXES, open_frame, with_times
from timemoe_jax.forecasting.frames.frames import TimedSeries
from timemoe_jax.forecasting.frames.prepare import prepare_frame
from timemoe_jax.forecasting.intervals.rolling import first_observed


@dataclasses.dataclass(frozen=True, eq=False)
class FrameTasks:
    """Tasks, and what of the files is in none of them."""

    tasks: tuple[Task, ...]  # one for each file and step between times
    times: dict[tuple[str, str], Any]  # of (task, series): the pandas Index [T]
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
            (len(self.fewer_folds), "series with fewer folds", listed(self.fewer_folds)),
            (self.unseen, "windows without an observed value before or in them", ""),
            (len(self.counters), "columns that count rows", listed(self.counters)),
            (self.left_out, "series beyond max_series", ""),
        ]
        return [
            f"Left out: {count:,} {what}{': ' * bool(names)}{names}."
            for count, what, names in counts
            if count
        ]


def find_files(path: str) -> tuple[Path, ...]:
    """The files that a text with commas names: files, and those of folders, sorted.

    Raises:
      DataError: there is no such file or folder, or a folder holds no table.
    """
    found: list[Path] = []
    for name in filter(None, (part.strip() for part in path.split(","))):
        each = Path(name)
        if each.is_dir():
            inside = sorted(p for p in each.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise DataError(f"the folder {each} holds no file that ends in {listed(SUFFIXES)}")
            found += inside
        elif each.is_file():
            found.append(each)
        else:
            raise DataError(f"{each} is no file and no folder; path must name files of series")
    return tuple(dict.fromkeys(found))


def frame_tasks(config: FrameConfig) -> FrameTasks:
    """Reads the files of a config as `timemoe forecast` does, and cuts folds from every series.

    The folds of a series are its last `folds` horizons. Each is forecast from all points before
    it, of which there are at least two and a season. A series with room for fewer folds has those.

    Raises:
      DataError: a file cannot be read as series, or no series has room for a fold.
    """
    files = find_files(config.path)
    counters: list[str] = []
    groups: list[tuple[str, list[TimedSeries], list[str]]] = []
    for path in files:
        series, names, found = _read(path, config, several=len(files) > 1)
        counters += found
        steps = dict.fromkeys(each.freq for each in series)
        for freq in steps:
            of_freq = [i for i, each in enumerate(series) if each.freq == freq]
            title = f"{path.stem} {freq}" if len(steps) > 1 else path.stem
            groups.append((title, [series[i] for i in of_freq], [names[i] for i in of_freq]))
    total = sum(len(group) for _, group, _ in groups)
    kept = _chosen(total, config.max_series)
    folds = _Folds(config)
    offset = 0
    for title, group, names in groups:
        inside = [i - offset for i in kept if offset <= i < offset + len(group)]
        offset += len(group)
        if inside:
            folds.add(title, [group[i] for i in inside], [names[i] for i in inside])
    if not folds.tasks:
        raise DataError(
            f"no series of {config.path} has room for a fold: {listed(folds.too_short)}; give a "
            "shorter horizon"
        )
    return FrameTasks(
        tuple(folds.tasks),
        folds.times,
        folds.seasons,
        files,
        tuple(folds.too_short),
        tuple(folds.fewer),
        folds.unseen,
        tuple(dict.fromkeys(counters)),
        total - len(kept),
    )


def _read(
    path: Path, config: FrameConfig, several: bool
) -> tuple[tuple[TimedSeries, ...], list[str], list[str]]:
    """The series of a file, what to call them, and the columns that count rows."""
    names = ColumnNames(
        config.id_column, config.timestamp_column, config.target, config.separator, config.decimal
    )
    frame, counters = open_frame(path, names)
    frame, timestamp = with_times(frame, names, str(path))
    prepared = prepare_frame(
        frame,
        1,
        where=str(path),
        id_column=config.id_column,
        timestamp_column=timestamp,
        target=config.target or None,
        freq=int(config.freq) if config.freq and config.freq.isdigit() else config.freq,
        date_format=config.date_format,
    )
    timed = prepared.timed
    # The target's name says nothing where there is one for every id.
    plain = timed.ids is not None and len(timed.targets) == 1
    titles = [str(each.id) if plain else each.name for each in timed.series]
    return timed.series, [f"{path.stem} {t}" if several else t for t in titles], counters


def _chosen(total: int, most: int | None) -> list[int]:
    """At most so many of the series, in the middles of as many equal parts."""
    count = total if most is None else min(most, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


class _Folds:
    """Collects tasks, and what was left out."""

    def __init__(self, config: FrameConfig):
        self.config = config
        self.tasks: list[Task] = []
        self.times: dict[tuple[str, str], Any] = {}
        self.seasons: dict[str, Season] = {}
        self.too_short: list[str] = []
        self.fewer: list[str] = []
        self.unseen = 0

    def add(self, title: str, series: Sequence[TimedSeries], names: Sequence[str]) -> None:
        """Adds a task of series that share the step between their times."""
        title = self._free(title)
        freq, values = series[0].freq, [each.values for each in series]
        season = self._season(values, freq)
        horizon = self.config.horizon or default_horizon(season.points)
        chosen = list(self._of_series(values, names, season.points, horizon))
        if not chosen:
            return
        self.seasons[title] = season
        self.times |= {(title, names[i]): series[i].timestamps for i, _ in chosen}
        self.tasks.append(
            Task(
                name=title,
                series=tuple(values[i] for i, _ in chosen),
                names=tuple(names[i] for i, _ in chosen),
                origins=tuple(origins for _, origins in chosen),
                horizon=horizon,
                season=season.points,
                freq=None if freq.isdigit() else freq,
            )
        )

    def _season(self, values: Sequence[np.ndarray], freq: str) -> Season:
        """The season that is given, else of the calendar, else of what comes before the folds."""
        if self.config.season:
            return Season(self.config.season, "given")
        horizon = self.config.horizon or default_horizon(season_of(values, freq).points)
        past = [each[: max(len(each) - self.config.folds * horizon, 0)] for each in values]
        return season_of(past, freq)

    def _of_series(
        self, values: Sequence[np.ndarray], names: Sequence[str], season: int, horizon: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The index and the origins of each series that has a window."""
        for i, (each, name) in enumerate(zip(values, names, strict=True)):
            room = (len(each) - max(2, season)) // horizon
            folds = min(room, self.config.folds)
            if folds < 1:
                self.too_short.append(f"{name} ({len(each)} points)")
                continue
            if folds < self.config.folds:
                self.fewer.append(f"{name} ({folds})")
            origins = len(each) - horizon * np.arange(folds, 0, -1)
            first = first_observed(each)
            seen = [
                int(t) for t in origins if t > first and not np.isnan(each[t : t + horizon]).all()
            ]
            self.unseen += len(origins) - len(seen)
            if seen:
                yield i, np.array(seen, np.int64)

    def _free(self, title: str) -> str:
        """A name that no task has."""
        taken = {task.name for task in self.tasks}
        free = (f"{title} {n}" if n > 1 else title for n in range(1, len(taken) + 2))
        return next(name for name in free if name not in taken)
