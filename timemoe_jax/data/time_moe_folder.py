"""The Time-300B layout: a folder of series in binary files, with a meta.json that places them."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from timemoe_jax.data.sequence_source import SequenceSource, float_of
from timemoe_jax.errors import DataError

_DTYPES = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bfloat16": "<u2",
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
}


class TimeMoeFolderSource(SequenceSource):
    """The series of one folder in the Time-300B layout, in their original units.

    Args:
      folder: holds `meta.json` and the binary files that it names.

    Raises:
      DataError: a file is missing, damaged, or at odds with `meta.json`.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = Path(folder)
        path = self._folder / "meta.json"
        meta = _read_meta(path)
        dtype = meta["dtype"]
        if dtype not in _DTYPES:
            raise DataError(f"{path}: dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}")
        self._is_bfloat16 = dtype == "bfloat16"
        self._dtype = np.dtype(_DTYPES[dtype])
        self._files, points = _data_files(path, meta["files"], self._dtype.itemsize)
        # The first point of each file, then the total.
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(points)])
        self._offsets, self.lengths = _extents(path, meta, int(self._starts[-1]))
        self._mean, self._std = _scales(path, meta["scales"])

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        begin, end = int(self._offsets[i]) + start, int(self._offsets[i]) + stop
        parts = []
        # A file without points shares its start with the next one: side="right" passes it over.
        file = int(np.searchsorted(self._starts, begin, side="right")) - 1
        while begin < end:
            upto = min(end, int(self._starts[file + 1]))
            parts.append(self._read_file(file, begin - int(self._starts[file]), upto - begin))
            begin, file = upto, file + 1
        raw = np.concatenate(parts) if parts else np.zeros(0, self._dtype)
        if self._is_bfloat16:
            # The upper half of a float32.
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        if not np.isnan(self._std[i]):
            return raw.astype(np.float64) * self._std[i] + self._mean[i]
        return raw.astype(float_of(raw.dtype), copy=False)

    def _read_file(self, file: int, first: int, count: int) -> np.ndarray:
        path = self._folder / self._files[file]
        values = np.fromfile(path, self._dtype, count, offset=first * self._dtype.itemsize)
        if len(values) != count:
            raise DataError(f"{path} has become shorter since it was opened; open it again")
        return values

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"{self._folder} sequence {i}"


def _read_meta(path: Path) -> dict[str, Any]:
    """Reads meta.json and checks that it has the four entries of the right kinds."""
    try:
        with open(path, "rb") as stream:
            meta = json.load(stream)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; a Time-300B folder must hold it") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(meta, dict):
        raise DataError(f"{path} must hold a JSON object, not a {type(meta).__name__}")
    for key, kind in (("num_sequences", int), ("dtype", str), ("files", dict), ("scales", list)):
        if key not in meta:
            raise DataError(f"{path} has no entry {key!r}")
        if not isinstance(meta[key], kind) or isinstance(meta[key], bool):
            raise DataError(
                f"{path}: {key} must be of type {kind.__name__}, not {type(meta[key]).__name__}"
            )
    if meta["num_sequences"] != len(meta["scales"]):
        raise DataError(
            f"{path}: num_sequences is {meta['num_sequences']}, but scales has "
            f"{len(meta['scales'])} entries; they must be equal"
        )
    return meta


def _data_files(
    path: Path, files: dict[str, Any], itemsize: int
) -> tuple[list[str], Int64[np.ndarray, " F"]]:
    """Returns the data files in order with their numbers of points, each checked on disk."""

    def order(name: str) -> int:
        parts = name.split("-")
        if len(parts) < 2 or not parts[1].isdecimal() or Path(name).name != name:
            raise DataError(f"{path}: file {name!r} must be named like data-1-of-2.bin")
        return int(parts[1])

    names = sorted(files, key=order)
    for name in names:
        points = files[name]
        if not isinstance(points, int) or isinstance(points, bool) or points < 0:
            raise DataError(f"{path}: file {name!r} must have a number of points, not {points!r}")
        try:
            size = os.path.getsize(path.parent / name)
        except OSError:
            raise DataError(f"{path.parent / name} is missing; {path} names it") from None
        if size != points * itemsize:
            raise DataError(
                f"{path.parent / name} has {size} bytes, but {path} gives it {points} points of "
                f"{itemsize} bytes, {points * itemsize} in all"
            )
    return names, np.array([files[name] for name in names], np.int64)


def _extents(
    path: Path, meta: dict[str, Any], total: int
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Returns the offset and length of each sequence, checked to lie within `total` points."""
    columns = []
    for key in ("offset", "length"):
        values = _column(path, meta["scales"], key)
        for i, value in enumerate(values):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= total:
                raise DataError(
                    f"{path}: sequence {i} has {key} {value!r}; it must be a whole number from 0 "
                    f"to the {total} points of the files"
                )
        columns.append(np.array(values, np.int64))
    offsets, lengths = columns
    beyond = np.flatnonzero(offsets + lengths > total)
    if beyond.size:
        i = beyond[0]
        raise DataError(
            f"{path}: sequence {i} has offset {offsets[i]} and length {lengths[i]}, beyond the "
            f"{total} points of the files"
        )
    return offsets, lengths


def _scales(
    path: Path, scales: list[Any]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Returns mean and std of each sequence, both NaN for one that is stored as it was."""
    means = _column(path, scales, "mean", required=False)
    stds = _column(path, scales, "std", required=False)
    for i, (mean, std) in enumerate(zip(means, stds, strict=True)):
        if mean is None and std is None:
            continue
        if not all(isinstance(v, int | float) and np.isfinite(v) for v in (mean, std)) or std <= 0:
            raise DataError(
                f"{path}: sequence {i} has mean {mean!r} and std {std!r}; they must both be "
                "finite with std > 0, or both be left out"
            )
    return np.array(means, np.float64), np.array(stds, np.float64)


def _column(path: Path, scales: list[Any], key: str, required: bool = True) -> list[Any]:
    try:
        return [scale[key] if required else scale.get(key) for scale in scales]
    except (KeyError, TypeError, AttributeError):
        for i, scale in enumerate(scales):
            if not isinstance(scale, dict) or key not in scale:
                raise DataError(
                    f"{path}: scales[{i}] must be an object with offset and length, not {scale!r}"
                ) from None
        raise


def write_time_moe_folder(
    folder: str | os.PathLike[str],
    sequences: Iterable[np.ndarray],
    *,
    dtype: str = "float32",
    points_per_file: int = 1 << 28,
) -> None:
    """Writes series in the Time-300B layout, as they are (not standardised).

    Args:
      folder: made if it does not exist; must not hold a meta.json.
      sequences: one-dimensional series; taken one at a time, so a source can be given.
      dtype: "float16", "float32" or "float64".
      points_per_file: where to begin the next file, if need be in the middle of a series.

    Raises:
      DataError: the folder is in use, or a series is not one-dimensional or does not fit `dtype`.
    """
    folder = Path(folder)
    if dtype not in ("float16", "float32", "float64") or points_per_file < 1:
        raise DataError(
            f"dtype {dtype!r} must be float16, float32 or float64, and points_per_file "
            f"{points_per_file} at least 1"
        )
    if (folder / "meta.json").exists():
        raise DataError(f"{folder / 'meta.json'} already exists; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    scales: list[dict[str, int]] = []
    counts: list[int] = []
    offset = 0
    for i, sequence in enumerate(sequences):
        values = _cast(sequence, dtype, i)
        scales.append({"offset": offset, "length": len(values)})
        offset += len(values)
        _append(folder, values, counts, points_per_file)
    names = [f"data-{k}-of-{len(counts)}.bin" for k in range(1, len(counts) + 1)]
    for k, name in enumerate(names, start=1):
        os.replace(folder / f"data-{k}.part", folder / name)
    meta = {
        "num_sequences": len(scales),
        "dtype": dtype,
        "files": dict(zip(names, counts, strict=True)),
        "scales": scales,
    }
    # Written last: a folder that was only half written is not taken for a source.
    (folder / "meta.json").write_text(json.dumps(meta))


def _append(folder: Path, values: np.ndarray, counts: list[int], points_per_file: int) -> None:
    """Adds values to the last file, and to new ones when full; `counts` is points per file."""
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
