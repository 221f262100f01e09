"""Random access to whole series that lie in files, without reading the files into memory.

A source knows the length of each of its series as soon as it is open, and reads a series only when
asked. It holds no more than a few files open between reads, so that a corpus of thousands of files
stays within the limit on open files. A source can be sent to another process, several threads can
read from it, and a file that was cut short meanwhile is an error rather than a crash.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from timemoe_jax.data.formats.columnar import (
    DATASET_DICT,
    is_cache,
    is_dataset_folder,
    open_columnar,
    open_dataset_folder,
)
from timemoe_jax.data.formats.columnar_files import ARROW_ENDINGS, PARQUET_ENDINGS
from timemoe_jax.data.formats.csv_files import read_csv_frame
from timemoe_jax.data.formats.frames import frame_source
from timemoe_jax.data.formats.jsonl_files import JsonlSource
from timemoe_jax.data.formats.npy_files import NpySource, NpzSource
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource
from timemoe_jax.data.formats.tsf_files import TsfSource
from timemoe_jax.data.series_source import ConcatSource, SequenceSource
from timemoe_jax.errors import DataError

SUPPORTED = (
    "a folder with meta.json and data-1-of-N.bin (the Time-300B layout), a Hugging Face dataset "
    "saved to disk, .jsonl, .npy, .npz, .csv, .tsf, .parquet, .arrow or .feather, or a folder "
    "that holds any of these"
)


def open_source(paths: str, names: ColumnNames | None = None) -> SequenceSource:
    """Opens files and folders as one source of all their series, in order.

    `paths` is a file, a folder, or several with commas between. A folder with meta.json is in the
    Time-300B layout, one with .arrow files and state.json a Hugging Face dataset; any other is
    searched, in sorted order, for such folders and for files of a kind that is read. What a search
    passes over is listed in `skipped_files`. `names` says which columns of a table are which.

    Raises:
      DataError: a path does not exist or is of no supported kind, or nothing was found.
    """
    return open_parts(paths, names)[0]


def find_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Finds what `open_file` opens, in sorted order; returns that, and the files passed over."""
    if not path.is_dir() or _is_one_source(path):
        if not path.is_dir() and path.suffix.lower() not in _KINDS:
            raise DataError(f"{path} has an ending that is not read; give {SUPPORTED}")
        return [path], []
    files: list[Path] = []
    skipped: list[Path] = []
    for inner in sorted(path.iterdir()):
        if inner.name.startswith("."):
            # Hidden files belong to other programs, or to a conversion that is not finished.
            skipped.append(inner)
        elif inner.is_dir():
            deeper, passed = find_files(inner)
            files += deeper
            skipped += passed
        elif inner.suffix.lower() in _KINDS and not is_cache(inner):
            files.append(inner)
        elif inner.name != DATASET_DICT:
            skipped.append(inner)
    return files, skipped


def open_file(path: Path, names: ColumnNames | None = None) -> SequenceSource:
    """Opens one file, or one folder that is a source by itself, as `find_files` gives it."""
    if path.is_dir():
        if (path / "meta.json").exists():
            return TimeMoeFolderSource(path)
        return open_dataset_folder(path, names)
    return _KINDS[path.suffix.lower()](path, names)


def _is_one_source(folder: Path) -> bool:
    return (folder / "meta.json").exists() or is_dataset_folder(folder)


_KINDS: dict[str, Callable[[Path, ColumnNames | None], SequenceSource]] = {
    ".jsonl": lambda path, _: JsonlSource(path),
    ".npy": lambda path, _: NpySource(path),
    ".npz": lambda path, _: NpzSource(path),
    ".csv": lambda path, names: frame_source(read_csv_frame(path, names), names, str(path)),
    ".tsf": lambda path, _: TsfSource(path),
    **dict.fromkeys(
        (*PARQUET_ENDINGS, *ARROW_ENDINGS), lambda path, names: open_columnar([path], names)
    ),
}


@dataclasses.dataclass(frozen=True)
class SourcePart:
    """The series of a source that one file or folder holds: from `first` to before `stop`."""

    domain: str
    name: str
    first: int
    stop: int
    endless: bool = False  # generated: in random order already, and more than any run takes

    @property
    def label(self) -> str:
        """Its domain and name."""
        return f"{self.domain}/{self.name}"


def open_parts(
    paths: str, names: ColumnNames | None = None
) -> tuple[SequenceSource, list[SourcePart]]:
    """Opens files and folders as `open_source` does, and says which series each of them holds.

    The domain of a part is the name of the folder that it lies in, unless its source has a domain
    of its own.
    """
    sources: list[SequenceSource] = []
    parts: list[SourcePart] = []
    skipped: list[str] = []
    # A path may itself hold a comma.
    each = [paths] if os.path.exists(paths) else [path.strip() for path in paths.split(",")]
    for path in map(Path, filter(None, each)):
        if not path.exists():
            raise DataError(f"{path} does not exist; give {SUPPORTED}")
        files, passed_over = find_files(path)
        if not files:
            raise DataError(f"{path} holds no series that can be read; give {SUPPORTED}")
        for file in files:
            sources.append(open_file(file, names))
            parts.append(_part_of(sources[-1], file, parts[-1].stop if parts else 0))
        skipped.extend(map(str, passed_over))
    if not sources:
        raise DataError(f"no path was given; give {SUPPORTED}")
    single = len(sources) == 1 and not skipped
    return sources[0] if single else ConcatSource(sources, skipped), parts


def _part_of(source: SequenceSource, file: Path, first: int) -> SourcePart:
    path = Path(os.path.abspath(file))
    domain = getattr(source, "domain", None) or path.parent.name
    name = getattr(source, "source_name", None) or path.name
    return SourcePart(domain, name, first, first + len(source))
