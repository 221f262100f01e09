"""Converts files of series and data frames to Time-300B folders: `timemoe data convert`.

Series are read and written one at a time. What is written lies beside the output until all of it
is there, and then moves into place, so that nobody sees half of a source.
"""

import dataclasses
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from timemoe_jax.data.corpus.convert_report import (
    EMPTY,
    MISSING,
    TOO_LARGE,
    UNKNOWN,
    ConversionReport,
    SourceReport,
)
from timemoe_jax.data.corpus.staging import staged
from timemoe_jax.data.formats.columnar import DATASET_DICT
from timemoe_jax.data.formats.frames import frame_source
from timemoe_jax.data.formats.open import SUPPORTED, find_files, open_file
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.data.formats.time300b.folder import DOMAINS, write_meta, write_points
from timemoe_jax.data.formats.tsf_files import TsfSource
from timemoe_jax.data.series_source import ConcatSource, SequenceSource
from timemoe_jax.errors import DataError
from timemoe_jax.files import write_json

# The labels of the series, one JSON string per line. Not .json or .jsonl: those are series.
NAMES_FILE = "names.txt"
DEFAULT_DOMAIN = "other"


@dataclasses.dataclass(frozen=True)
class _Job:
    """One source to write: where it goes, and how it is opened."""

    domain: str
    name: str
    inputs: tuple[str, ...]
    open: Callable[[], SequenceSource]

    @property
    def folder(self) -> str:
        """Where it goes, below the output."""
        return f"{self.domain}/{self.name}"


def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    domain: str | None = None,
    name: str | None = None,
    frequency: str | None = None,
    join: bool = False,
    names: ColumnNames | None = None,
    encoding: str = "utf-8",
    dtype: str = "float32",
    progress: bool = True,
    report_path: str | os.PathLike[str] | None = None,
) -> ConversionReport:
    """Converts files of series to Time-300B folders OUT/DOMAIN/NAME.

    Each file, each Time-300B folder and each Hugging Face dataset folder below `path` becomes one
    source, named after it and the folders it lies in. A series that has no points, no observed
    value, or a value too large for `dtype` is left out and counted.

    Args:
      path: a file or a folder.
      out: the folder of domains, made if needed. A source that exists already is an error.
      domain: the folder in `out`; by default the published domain that a Time-300B folder lies in,
        else the first folder below `path` that a file lies in, or "other". Joined files have the
        domain that they all have.
      name: of the source, where there is only one.
      frequency: the sampling frequency of every series, for example "h"; by default what the file
        says, also for each series.
      join: whether all files become one source.
      names: which columns of tables are which, where their names do not say.
      encoding: of .tsf files.
      dtype: "float32", or "float64" to keep every digit.
      progress: whether to show a progress bar.
      report_path: where to write the report as JSON; by default OUT.report.json.

    Raises:
      DataError: a file cannot be read or written, or two sources would have the same place.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"{root} does not exist; give {SUPPORTED}")
    files, skipped = find_files(root)
    if not files:
        raise DataError(f"{root} holds no series that can be read; give {SUPPORTED}")
    opener = functools.partial(_open, names=names, encoding=encoding)
    if name is not None and len(files) > 1 and not join:
        raise DataError(
            f"name is {name!r}, but {root} holds {len(files)} sources; join them, or leave the "
            "name out"
        )
    jobs = [_job(root, file, domain, name, opener) for file in files]
    if join:
        jobs = [_joined(jobs, name or _stem(root))]
    return _write_all(jobs, Path(out), frequency, dtype, progress, report_path, skipped)


def convert_frame(
    frame: Any,
    out: str | os.PathLike[str],
    *,
    name: str,
    domain: str = DEFAULT_DOMAIN,
    frequency: str | None = None,
    names: ColumnNames | None = None,
    dtype: str = "float32",
    progress: bool = False,
    report_path: str | os.PathLike[str] | None = None,
) -> ConversionReport:
    """Converts a pandas DataFrame, as `frames.frame_source` takes it, to a folder OUT/DOMAIN/NAME.

    All other arguments are those of `convert`.

    Raises:
      DataError: the frame cannot be understood, or the source exists already.
    """
    job = _Job(domain, name, ("a data frame",), lambda: frame_source(frame, names))
    return _write_all([job], Path(out), frequency, dtype, progress, report_path, ())


def _open(file: Path, names: ColumnNames | None, encoding: str) -> SequenceSource:
    if file.suffix.lower() == ".tsf" and not file.is_dir():
        return TsfSource(file, encoding)
    return open_file(file, names)


def _joined(jobs: Sequence[_Job], name: str) -> _Job:
    domains = {job.domain for job in jobs}
    domain = domains.pop() if len(domains) == 1 else DEFAULT_DOMAIN
    inputs = tuple(path for job in jobs for path in job.inputs)
    return _Job(domain, name, inputs, lambda: ConcatSource([job.open() for job in jobs]))


def _job(
    root: Path,
    file: Path,
    domain: str | None,
    name: str | None,
    opener: Callable[[Path], SequenceSource],
) -> _Job:
    # The folders of splits have the same names in every dataset.
    is_split = file.is_dir() and (file.parent / DATASET_DICT).exists()
    dataset = file.parent if is_split else file
    label = f"{_stem(dataset)}-{_stem(file)}" if is_split else _stem(file)
    inner = dataset.relative_to(root).parts[:-1] if dataset.is_relative_to(root) else ()
    parent = Path(os.path.abspath(dataset)).parent.name
    if domain is None and inner and (inner[0] in DOMAINS or parent not in DOMAINS):
        domain, inner = inner[0], inner[1:]
    elif domain is None and dataset.is_dir() and parent in DOMAINS:
        domain, inner = parent, inner[:-1]
    name = name or "-".join([*inner, label])
    return _Job(domain or DEFAULT_DOMAIN, name, (str(file),), lambda: opener(file))


def _stem(path: Path) -> str:
    whole = Path(os.path.abspath(path))
    return whole.name if path.is_dir() else whole.stem


def _write_all(
    jobs: Sequence[_Job],
    out: Path,
    frequency: str | None,
    dtype: str,
    progress: bool,
    report_path: str | os.PathLike[str] | None,
    skipped: Sequence[Path],
) -> ConversionReport:
    _check(jobs, out, dtype)
    with staged(out, [job.folder for job in jobs]) as scratch:
        done = [_write(job, scratch, frequency, dtype, progress) for job in jobs]
    report = ConversionReport(dtype, tuple(done), tuple(map(str, skipped)))
    write_json(Path(report_path or f"{os.path.abspath(out)}.report.json"), report.as_dict())
    return report


def _check(jobs: Sequence[_Job], out: Path, dtype: str) -> None:
    """Refuses everything that can be wrong with the places, before anything is written."""
    if dtype not in ("float32", "float64"):
        raise DataError(f"dtype is {dtype!r}; it must be float32 or float64")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder to write to")
    if (out / "meta.json").exists():
        raise DataError(f"{out} is itself a source; give a folder of domains")
    by_folder: dict[str, _Job] = {}
    for job in jobs:
        for part, value in (("domain", job.domain), ("name", job.name)):
            if value in ("", ".", "..") or Path(value).name != value or "\0" in value:
                raise DataError(f"{part} is {value!r}; it must be the name of a folder")
        other = by_folder.setdefault(job.folder, job)
        if other is not job:
            raise DataError(
                f"{other.inputs[0]} and {job.inputs[0]} would both become {job.folder}; "
                "rename one, convert them one by one, or join them"
            )


def _write(
    job: _Job, scratch: Path, frequency: str | None, dtype: str, progress: bool
) -> SourceReport:
    source = job.open()
    columns = source.ignored_columns
    report = SourceReport(job.domain, job.name, job.inputs, frequency, ignored_columns=columns)
    folder = scratch / job.folder
    folder.mkdir(parents=True)
    total = int(source.lengths.sum(dtype=np.int64))
    with (
        tqdm(
            desc=job.name, total=total, unit=" points", unit_scale=True, disable=not progress
        ) as bar,
        open(folder / NAMES_FILE, "w", encoding="utf-8") as labels,
    ):
        each: list[str | None] = []  # frequencies
        kept = _kept(source, report, np.dtype(dtype), bar, labels, each)
        files, lengths = write_points(folder, kept, dtype=dtype)
    report.frequencies = {name or UNKNOWN: count for name, count in Counter(each).items()}
    if frequency is None:
        _take_frequencies(report, source.frequency, each)
    common = report.frequency
    own = {name: f', "freq": {json.dumps(name)}' for name in {*each} - {None, common}}
    write_meta(
        folder,
        dtype=dtype,
        files=files,
        entries=((length, own.get(name, "")) for length, name in zip(lengths, each, strict=True)),
        num_sequences=len(lengths),
        frequency=common,
    )
    return report


def _kept(
    source: SequenceSource,
    report: SourceReport,
    dtype: np.dtype,
    bar: Any,
    labels: IO[str],
    frequencies: list[str | None],
) -> Iterator[Float[np.ndarray, " T"]]:
    """Yields the series to write, in their dtype; counts them and those that are left out."""
    for i, values in enumerate(source):
        bar.update(len(values))
        with np.errstate(over="ignore"):
            stored = values.astype(dtype)
        reason = _reason(values, stored)
        if reason is not None:
            report.dropped[reason] += 1
            continue
        report.series += 1
        report.points += len(values)
        missing = np.isnan(values)
        report.missing_points += int(np.count_nonzero(missing))
        report.infinite_points += int(np.count_nonzero(np.isinf(values)))
        if values.dtype.itemsize > dtype.itemsize:
            report.rounded_points += int(np.count_nonzero((stored != values) & ~missing))
        frequencies.append(report.frequency or source.frequency_of(i))
        labels.write(json.dumps(source.label(i), ensure_ascii=True) + "\n")
        yield stored


def _reason(values: Float[np.ndarray, " T"], stored: Float[np.ndarray, " T"]) -> str | None:
    if not len(values):
        return EMPTY
    if np.isnan(values).all():
        return MISSING
    return TOO_LARGE if np.any(np.isinf(stored) & np.isfinite(values)) else None


def _take_frequencies(
    report: SourceReport, of_source: str | None, each: Sequence[str | None]
) -> None:
    """Sets the frequency of the folder, unless it would give one to a series that has none."""
    counts = Counter(each)
    if len(counts) == 1:
        (report.frequency,) = counts
    elif None not in counts:
        report.frequency = of_source
