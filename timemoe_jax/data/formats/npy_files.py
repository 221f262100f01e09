"""Series in `.npy` and `.npz` files."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.formats.reading import reading
from timemoe_jax.data.series_source import SequenceSource, float_of
from timemoe_jax.errors import DataError


class NpySource(SequenceSource):
    """The series of a .npy file: one [T], or the rows of [N, T]; read through a memory map."""

    aligned = True

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        shape = self._array().shape
        self.lengths = np.full(shape[0] if len(shape) == 2 else 1, shape[-1], np.int64)

    def _array(self) -> np.ndarray:
        with reading(self._path, ".npy"):
            values = np.load(self._path, mmap_mode="r", allow_pickle=False)
        if not isinstance(values, np.ndarray):
            values.close()
            raise DataError(f"{self._path} is an archive of arrays; name it .npz")
        _check_array(str(self._path), values.shape, values.dtype)
        return values

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        values = self._array()
        if values.shape[-1] != self.lengths[i] or ((values.ndim == 2) and i >= values.shape[0]):
            raise DataError(f"{self._path} has changed since it was opened; open it again")
        row = values[i, start:stop] if values.ndim == 2 else values[start:stop]
        # A copy, so that what is returned does not keep the file mapped.
        return np.array(row, float_of(values.dtype))

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"{self._path} row {i}"


class NpzSource(SequenceSource):
    """The series of the arrays of a .npz file: each one [T], or the rows of [N, T].

    Opening reads the headers alone; a read unpacks the array that holds the series.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        self._keys: list[str] = []
        lengths, begins = [], [0]
        with reading(self._path, ".npz"), zipfile.ZipFile(self._path) as archive:
            for member in archive.namelist():
                if not member.endswith(".npy"):
                    raise DataError(f"{self._path} holds {member!r}; it must hold arrays alone")
                with archive.open(member) as stream:
                    shape, dtype = _npy_header(stream)
                self._keys.append(member.removesuffix(".npy"))
                _check_array(f"{self._path} array {self._keys[-1]!r}", shape, dtype)
                lengths += [shape[-1]] * (shape[0] if len(shape) == 2 else 1)
                begins.append(len(lengths))
            self.lengths = np.array(lengths, np.int64)
        self._begins = np.array(begins, np.int64)

    def _locate(self, i: int) -> tuple[str, int]:
        which = int(np.searchsorted(self._begins, i, side="right")) - 1
        return self._keys[which], i - int(self._begins[which])

    def _array(self, key: str) -> np.ndarray:
        with (
            reading(self._path, ".npz"),
            zipfile.ZipFile(self._path) as archive,
            archive.open(f"{key}.npy") as stream,
        ):
            return np.lib.format.read_array(stream, allow_pickle=False)

    def _row(self, values: np.ndarray, row: int, i: int, part: slice) -> Float[np.ndarray, " _"]:
        _check_array(self.name(i), values.shape, values.dtype)
        rows = np.atleast_2d(values)
        if row >= len(rows) or rows.shape[1] != self.lengths[i]:
            raise DataError(f"{self._path} has changed since it was opened; open it again")
        return rows[row, part].astype(float_of(rows.dtype))

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        key, row = self._locate(i)
        return self._row(self._array(key), row, i, slice(start, stop))

    def __iter__(self) -> Iterator[Float[np.ndarray, " T"]]:
        for key, begin, end in zip(self._keys, self._begins, self._begins[1:], strict=False):
            values = self._array(key)
            for i in range(begin, end):
                yield self._row(values, i - begin, i, slice(None))

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        key, row = self._locate(i)
        return f"{self._path} array {key} row {row}"

    def label(self, i: int) -> str:
        """The name of the array, and the row in it."""
        key, row = self._locate(i)
        return f"{key} {row}"


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of .npy is not read")
    return shape, dtype


def _check_array(where: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "iuf" or len(shape) not in (1, 2) or min(shape) < 0:
        raise DataError(
            f"{where} holds {dtype} of shape {shape}; it must hold numbers [T], or [N, T] with a "
            "series in each row"
        )
