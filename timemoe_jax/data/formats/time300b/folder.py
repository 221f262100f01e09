"""The Time-300B layout: a folder of series in binary files, with a meta.json that places them."""

import json
import math
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.formats.time300b.index import open_index
from timemoe_jax.data.formats.time300b.meta import DTYPES
from timemoe_jax.data.formats.time300b.reads import read_points, stamp_of
from timemoe_jax.data.series_source import SequenceSource, float_of
from timemoe_jax.errors import DataError

# The published folders lie in folders of these names.
DOMAINS = (
    "energy",
    "finance",
    "healthcare",
    "nature",
    "other",
    "sales",
    "synthetic",
    "transport",
    "web",
)


class TimeMoeFolderSource(SequenceSource):
    """The series of one folder in the Time-300B layout, in their original units.

    A large meta.json is converted once to an index that later openings use: see
    `timemoe_jax.data.formats.time300b.index`. `lengths` is read-only, int32 where that suffices;
    `source_name` is the name of the folder; `domain` is the name of the folder around it if that is
    one of `DOMAINS`, else None; `frequency` is that of series without one of their own.

    Raises:
      DataError: a file is missing, damaged, or at odds with `meta.json`.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = Path(folder)
        absolute = Path(os.path.abspath(self._folder))
        self.source_name = absolute.name
        self.domain = absolute.parent.name if absolute.parent.name in DOMAINS else None
        self._index = open_index(self._folder / "meta.json")
        layout = self._index.layout
        self.frequency = layout.frequency
        self._is_bfloat16 = layout.dtype == "bfloat16"
        self._dtype = np.dtype(DTYPES[layout.dtype])
        self._is_float32 = self._dtype == np.float32
        self._files = [str(self._folder / name) for name in layout.files]
        # A folder that is written anew at this path is another one.
        self._stamps = [stamp_of(file) for file in self._files]
        # The first point of each file, then the total.
        self._starts = np.cumsum([0, *layout.files.values()], dtype=np.int64).tolist()
        self.lengths = self._index.lengths

    def __getstate__(self) -> dict[str, Any]:
        # The lengths are part of the index, which another process opens for itself.
        return {name: value for name, value in self.__dict__.items() if name != "lengths"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lengths = self._index.lengths

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        entry = self._index.entry(i)
        stored = self._stored(entry.offset + start, entry.offset + stop)
        if not math.isnan(entry.std):
            return stored.astype(np.float64) * entry.std + entry.mean
        return stored

    def read_stored(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """As `SequenceSource.read_stored` says."""
        offset, _, std = self._index.entry(i)
        if std <= 0:  # the stored values are no positive multiple; NaN: they are not scaled
            return self._read(i, start, stop)
        return self._stored(offset + start, offset + stop)

    def _stored(self, begin: int, end: int) -> Float[np.ndarray, " _"]:
        """Points `begin` to `end` of all files, in a dtype that holds every value exactly."""
        raw = np.empty(end - begin, self._dtype)
        read_points(self._files, self._starts, begin, raw, self._stamps)
        if self._is_bfloat16:
            # The upper half of a float32.
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw if self._is_float32 else raw.astype(float_of(raw.dtype), copy=False)

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"{self._folder} sequence {i}"

    def frequency_of(self, i: SupportsIndex) -> str | None:
        """The sampling frequency of series `i`: its own, else that of the folder, else None."""
        return self._index.frequency(self._checked(i))


def write_time_moe_folder(
    folder: str | os.PathLike[str],
    sequences: Iterable[np.ndarray],
    *,
    dtype: str = "float32",
    points_per_file: int = 1 << 28,
) -> None:
    """Writes series [T] in the Time-300B layout, as they are (not standardized).

    The folder is made if it does not exist. The series are taken one at a time, so that a source
    can be given. `dtype` is "float16", "float32" or "float64"; a file that has `points_per_file` is
    full, and a series may continue in the next.

    Raises:
      DataError: the folder holds a meta.json, or a series is not [T] or does not fit `dtype`.
    """
    files, lengths = write_points(folder, sequences, dtype=dtype, points_per_file=points_per_file)
    entries = ((length, "") for length in lengths)
    write_meta(folder, dtype=dtype, files=files, entries=entries, num_sequences=len(lengths))


def write_points(
    folder: str | os.PathLike[str],
    sequences: Iterable[np.ndarray],
    *,
    dtype: str = "float32",
    points_per_file: int = 1 << 28,
) -> tuple[dict[str, int], Sequence[int]]:
    """As `write_time_moe_folder`, but without meta.json; returns the points of files and series."""
    folder = Path(folder)
    if dtype not in ("float16", "float32", "float64") or points_per_file < 1:
        raise DataError(
            f"dtype {dtype!r} must be float16, float32 or float64, and points_per_file "
            f"{points_per_file} at least 1"
        )
    if (folder / "meta.json").exists():
        raise DataError(f"{folder / 'meta.json'} already exists; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    counts: list[int] = []
    lengths = array("q")  # there may be millions
    for i, sequence in enumerate(sequences):
        values = _cast(sequence, dtype, i)
        lengths.append(len(values))
        _append(folder, values, counts, points_per_file)
    names = [f"data-{k}-of-{len(counts)}.bin" for k in range(1, len(counts) + 1)]
    for k, name in enumerate(names, start=1):
        os.replace(folder / f"data-{k}.part", folder / name)
    return dict(zip(names, counts, strict=True)), lengths


def write_meta(
    folder: str | os.PathLike[str],
    *,
    dtype: str,
    files: Mapping[str, int],
    entries: Iterable[tuple[int, str]],
    num_sequences: int,
    frequency: str | None = None,
) -> None:
    """Writes the meta.json of a folder whose sequences follow each other in its data files.

    `files` holds the points of each data file. `entries` are taken one at a time: of each sequence
    its points, and the JSON of what else is known of it, such as `', "mean": 1.5, "std": 2.0'`.
    """
    folder = Path(folder)
    head: dict[str, Any] = {} if frequency is None else {"frequency": frequency}
    head |= {"num_sequences": num_sequences, "dtype": dtype, "files": dict(files)}
    with open(folder / "meta.part", "w", encoding="utf-8") as stream:
        stream.write(f'{json.dumps(head).removesuffix("}")}, "scales": [')
        offset, separator = 0, ""
        for length, members in entries:
            stream.write(f'{separator}{{"offset": {offset}, "length": {length}{members}}}')
            offset, separator = offset + length, ", "
        stream.write("]}")
    # meta.json gets its name last, so that a folder that is half written is not read as a source.
    os.replace(folder / "meta.part", folder / "meta.json")


def _append(folder: Path, values: np.ndarray, counts: list[int], points_per_file: int) -> None:
    """Adds values to the last file, then to new ones; `counts` holds the points of each."""
    while len(values):
        if not counts or counts[-1] == points_per_file:
            counts.append(0)
        part, values = np.split(values, [points_per_file - counts[-1]])
        with open(folder / f"data-{len(counts)}.part", "ab" if counts[-1] else "wb") as stream:
            stream.write(part.tobytes())
        counts[-1] += len(part)


def _cast(sequence: np.ndarray, dtype: str, i: int) -> np.ndarray:
    values = np.asarray(sequence)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise DataError(
            f"sequence {i} has shape {values.shape} and dtype {values.dtype}; it must be "
            "one-dimensional and numeric"
        )
    with np.errstate(over="ignore"):
        stored = values.astype(np.dtype(dtype).newbyteorder("<"))
    if np.any(np.isinf(stored) & np.isfinite(values)):
        raise DataError(f"sequence {i} holds a value too large for {dtype}; give a wider dtype")
    return stored
