"""Cleans whole trees of series into Time-300B folders, on all cores.

Each file or folder of series becomes one Time-300B folder at the same place below the output. Its
series are divided into tasks, which processes take in turn. What a task writes lies beside the
output until its source is finished, and then moves into place by one renaming. A run that was
killed resumes: it does no finished source again, and no finished task of the others.

A Time-300B folder is cleaned and written as its values are stored. One that is stored as
(value - mean) / std keeps its mean and std: equal values are equal either way, and zero is the
nearest stored value. So float32 stays float32, and no value changes. Other sources are written in
the dtype in which they are read, float32 or float64.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from timemoe_jax.data.corpus.clean_rules import REASONS
from timemoe_jax.data.corpus.clean_task import (
    PIECES,
    RESULT,
    OpenSource,
    Tally,
    Task,
    can_be_divided,
    clean_task,
    data_files,
)
from timemoe_jax.data.corpus.staging import claimed, publish
from timemoe_jax.data.corpus.workers import cores, worker_pool
from timemoe_jax.data.formats.open import find_files
from timemoe_jax.data.formats.time300b.folder import write_meta
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError
from timemoe_jax.files import write_json

RECORD = "cleaning.json"  # in every folder written: its source, and what became of it

# Raise it when the output changes: what an earlier version left is then done again.
_VERSION = 1
_IF_ONE_DIES = "the same command goes on from there, with fewer processes if need be"
# The most series in a task, however short: little to do again, and a bar that moves.
_MAX_TASK_SEQUENCES = 1 << 17


@dataclasses.dataclass(frozen=True)
class CleaningReport:
    """What cleaning a tree came to."""

    total: Tally
    sources: dict[str, Tally]  # by the folder of each below the output
    skipped_files: tuple[str, ...]  # files of a kind that is not read

    def as_dict(self) -> dict[str, Any]:
        """The report as it is written."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """A table of points by source and reason; those kept and dropped sum to a row's points."""
        header = ["source", "series", "pieces", "points", "kept", "%", *REASONS]
        rows = [[name, *_cells(tally)] for name, tally in self.sources.items()]
        table = [header, *rows, ["total", *_cells(self.total)]]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        padded = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in table)
        lines = ["  ".join(row) for row in padded]
        for name, tally in self.sources.items():
            if tally.ignored_columns:
                lines.append(f"columns ignored in {name}: {', '.join(tally.ignored_columns)}")
        if self.skipped_files:
            lines.append(f"skipped, of kinds that are not read: {len(self.skipped_files):,}")
        return "\n".join(lines)


def _cells(tally: Tally) -> list[str]:
    counts = (tally.sequences, tally.pieces, tally.points, tally.kept)
    percent = 100 * tally.kept / max(tally.points, 1)
    dropped = (tally.dropped[reason] for reason in REASONS)
    return [*(f"{n:,}" for n in counts), f"{percent:.1f}", *(f"{n:,}" for n in dropped)]


@dataclasses.dataclass(frozen=True)
class _Job:
    """One source: where it is read and written, and the tasks it is divided into."""

    name: str
    path: str
    state: str
    folder: Path
    partial: Path
    frequency: str | None
    ignored_columns: tuple[str, ...]
    tasks: tuple[Task, ...]


def clean_folder(
    paths: str,
    out: str | os.PathLike[str],
    *,
    report: str | os.PathLike[str] | None = None,
    num_processes: int | None = None,
    points_per_task: int = 1 << 26,
    progress: bool = True,
) -> CleaningReport:
    """Cleans files and folders of series into Time-300B folders (arXiv 2409.16040, Algorithm 2).

    Each process holds one series in memory, besides what an open source takes.

    Args:
      paths: a file, a folder, or several with commas between.
      out: the folder to write; it gets a folder for each source.
      report: the JSON to write at the end; by default OUT.report.json, beside the folder.
      num_processes: by default one for each core that this process may use.
      points_per_task: how finely the work is divided and, after a kill, resumed.
      progress: whether to show a progress bar.

    Raises:
      DataError: a source cannot be read, two would be written to one place, `out` lies within the
        input, is in use, or holds something else; or a process died.
    """
    num_processes = cores() if num_processes is None else num_processes
    if num_processes < 1 or points_per_task < 1:
        raise DataError(
            f"num_processes ({num_processes}) and points_per_task ({points_per_task}) must be at "
            "least 1"
        )
    out = Path(os.path.abspath(out))
    sources, skipped = _find(paths, out)
    # Beside the output: whoever opens that meanwhile sees finished sources only.
    partial = out.with_name(f"{out.name}.partial")
    with claimed(partial) as is_ours:
        if not is_ours:
            raise DataError(f"{partial} is in use by another run; wait for it to end")
        earlier = {name: _finished(out / name, path) for name, path in sources.items()}
        done = {name: tally for name, tally in earlier.items() if tally is not None}
        opened = OpenSource()
        jobs = [
            _plan(opened.get(path), name, path, out / name, partial, points_per_task)
            for name, path in sources.items()
            if name not in done
        ]
        done |= _run(jobs, opened, num_processes, progress, sum(t.points for t in done.values()))
        total = sum(done.values(), Tally())
        result = CleaningReport(total, {name: done[name] for name in sources}, skipped)
        write_json(Path(report or f"{out}.report.json"), result.as_dict())
        shutil.rmtree(partial)
    return result


def _find(paths: str, out: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The path of each source by its name below the output, and the files that are skipped."""
    sources: dict[str, str] = {}
    skipped: list[str] = []
    # A path may itself hold a comma.
    parts = [paths] if os.path.exists(paths) else [p.strip() for p in paths.split(",")]
    for path in map(Path, filter(None, parts)):
        absolute = Path(os.path.abspath(path))
        if not path.exists():
            raise DataError(f"{path} does not exist; give files and folders of series")
        if out.is_relative_to(absolute):
            raise DataError(f"{out} lies within the input {path}; give a folder outside of it")
        files, unread = find_files(path)
        if not files:
            raise DataError(f"{path} holds no series that can be read")
        skipped += map(str, unread)
        for file in files:
            name = absolute.name if file == path else file.relative_to(path).as_posix()
            if name in sources:
                raise DataError(
                    f"{sources[name]} and {file} would both be written to {out / name}; clean them "
                    "into different folders"
                )
            sources[name] = str(file)
    for name in sources:
        for outer in map(str, PurePosixPath(name).parents):
            if outer in sources:
                raise DataError(
                    f"{sources[name]} would be written into the folder of {sources[outer]}, "
                    f"{out / outer}; clean them into different folders"
                )
    if not sources:
        raise DataError("no path was given; give files and folders of series")
    return sources, tuple(skipped)


def _state(path: str) -> str:
    """A hash of the names, sizes and times of a source's files, which tells if it has changed."""
    root = Path(path)
    files = sorted(file for file in root.rglob("*") if not file.name.startswith("meta.index"))
    stats = [(str(file), file.stat()) for file in ([*files] if root.is_dir() else [root])]
    entries = [(os.path.relpath(name, root), s.st_size, s.st_mtime_ns) for name, s in stats]
    return hashlib.sha256(json.dumps([_VERSION, *entries]).encode()).hexdigest()[:16]


def _finished(folder: Path, path: str) -> Tally | None:
    """What became of a source that an earlier run has finished; None if no run has."""
    if not folder.exists():
        return None
    try:
        record = json.loads((folder / RECORD).read_bytes())
        state, tally = record["state"], _tally(record)
    except (OSError, ValueError, LookupError, TypeError):
        raise DataError(
            f"{folder} exists and was not written by cleaning; remove it or give another folder"
        ) from None
    if state != _state(path):
        raise DataError(
            f"{folder} was cleaned from another state of {path}; remove it to clean that again"
        )
    return tally


def _tally(record: dict[str, Any]) -> Tally:
    fields = record["tally"]
    return Tally(**{**fields, "ignored_columns": tuple(fields["ignored_columns"])})


def _plan(
    source: SequenceSource, name: str, path: str, folder: Path, partial: Path, points_per_task: int
) -> _Job:
    """Divides a source into tasks, and removes what another division has left."""
    state = _state(path)
    of_source = partial / hashlib.sha256(name.encode()).hexdigest()[:16]
    at = of_source / f"{state}-{points_per_task}"
    for left in [*(other for other in of_source.glob("*") if other != at), *at.glob("*.tmp")]:
        shutil.rmtree(left)
    at.mkdir(parents=True, exist_ok=True)
    tasks = []
    for first, stop in _divide(source, points_per_task):
        points = int(source.lengths[first:stop].sum(dtype=np.int64))
        tasks.append(Task(path, at / f"{first}-{stop}", first, stop, points))
    columns, frequency = source.ignored_columns, source.frequency
    return _Job(name, path, state, folder, at, frequency, columns, tuple(tasks))


def _divide(source: SequenceSource, points_per_task: int) -> Iterator[tuple[int, int]]:
    """First series of each task, and the one after its last."""
    count = len(source.lengths)
    if not can_be_divided(source):
        yield 0, count
        return
    ends = np.cumsum(source.lengths, dtype=np.int64)
    first = 0
    while first < count:
        before = int(ends[first - 1]) if first else 0
        stop = int(np.searchsorted(ends, before + points_per_task, side="right"))
        stop = min(max(stop, first + 1), first + _MAX_TASK_SEQUENCES)
        yield first, stop
        first = stop


def _run(
    jobs: list[_Job], opened: OpenSource, num_processes: int, progress: bool, before: int
) -> dict[str, Tally]:
    """Does the tasks that are not done yet, and moves each source into place after its last."""
    waiting = {job.name: [t for t in job.tasks if not t.folder.exists()] for job in jobs}
    todo = sum(task.points for tasks in waiting.values() for task in tasks)
    total = before + sum(task.points for job in jobs for task in job.tasks)
    processes = max(1, min(num_processes, sum(map(len, waiting.values()))))
    done: dict[str, Tally] = {}
    with (
        worker_pool(processes, opened, _IF_ONE_DIES) as submit,
        tqdm(
            desc="clean",
            total=total,
            initial=total - todo,
            unit="pt",
            unit_scale=True,
            # Where nobody watches it live (a log file), a line now and then.
            mininterval=0.1 if sys.stderr.isatty() else 20,
            disable=not progress,
        ) as bar,
    ):
        futures: dict[Future[int], _Job] = {}
        for job in jobs:
            if waiting[job.name]:
                futures |= {submit(clean_task, task): job for task in waiting[job.name]}
            else:
                done[job.name] = _finish(job)
        left = {name: len(tasks) for name, tasks in waiting.items()}
        for future in as_completed(futures):
            job = futures.pop(future)
            bar.update(future.result())
            left[job.name] -= 1
            if not left[job.name]:
                done[job.name] = _finish(job)
    return done


def _finish(job: _Job) -> Tally:
    """Joins what the tasks of a source have written into one folder, and moves it into place."""
    results = [json.loads((task.folder / RESULT).read_bytes()) for task in job.tasks]
    dtypes = {result["dtype"] for result in results} or {"float32"}
    if len(dtypes) > 1:
        raise DataError(f"{job.path} holds {' and '.join(sorted(dtypes))} in parts; give it as one")
    tally = sum((_tally(result) for result in results), Tally())
    tally = dataclasses.replace(tally, ignored_columns=job.ignored_columns)
    joined = job.partial / "joined"
    joined.mkdir(parents=True, exist_ok=True)
    points = [count for result in results for count in result["points"]]
    names = data_files(joined, len(points))
    parts = [
        file
        for task, result in zip(job.tasks, results, strict=True)
        for file in data_files(task.folder, len(result["points"]))
    ]
    for part, name in zip(parts, names, strict=True):
        # A run that was killed here has moved some of them.
        if part.exists():
            os.replace(part, name)
    files = {name.name: count for name, count in zip(names, points, strict=True)}
    write_meta(
        joined,
        dtype=dtypes.pop(),
        files=files,
        entries=_entries(job),
        num_sequences=tally.pieces,
        frequency=job.frequency,
    )
    record = {"source": job.path, "state": job.state, "tally": dataclasses.asdict(tally)}
    write_json(joined / RECORD, record)
    publish(joined, job.folder)
    shutil.rmtree(job.partial.parent)
    return tally


def _entries(job: _Job) -> Iterator[tuple[int, str]]:
    """The points of each piece and its further members in meta.json, as the tasks left them."""
    for task in job.tasks:
        with open(task.folder / PIECES, encoding="utf-8") as lines:
            for line in lines:
                length, members = line.rstrip("\n").split("\t")
                yield int(length), members
