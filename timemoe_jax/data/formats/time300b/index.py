"""A compact binary form of the meta.json of a Time-300B folder, made once and then mapped.

The index lies beside meta.json as `meta.index`, or, where that folder cannot be written to, in
$TIMEMOE_CACHE, by default ~/.cache/timemoe_jax. It holds a column per field, each in the narrowest
dtype that keeps every value exactly:

    lengths | offsets | means | stds | frequencies | header (JSON) | footer

Its contents were checked when it was made, and the header says of which meta.json. Opening compares
the header and the lengths with checksums; every other column is compared a block at a time, when
the block is first read. A small meta.json has no index, since it is read as quickly.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Int, Int64

from timemoe_jax.data.formats.reading import open_binary
from timemoe_jax.data.formats.time300b.meta import Columns, FolderMeta, Layout, check_files
from timemoe_jax.errors import DataError

# From this size of meta.json on, an index is kept on disk: it saves a tenth of a second.
INDEX_FROM_BYTES = 1 << 20
# From this size on, an index is mapped into memory; every map holds a file open.
_MAP_FROM_BYTES = 1 << 23

_MAGIC = b"TMOE-IX1"
_FOOTER = struct.Struct("<QI8s")  # where the header begins, its checksum, the magic
_ALIGNMENT = 64
_BLOCK = 1 << 14  # values under one checksum
_CHUNK = _BLOCK << 6  # values copied at a time
_MOST_FREQUENCIES = (1 << 16) - 1

Scratch = Callable[[], IO[bytes]]


class Entry(NamedTuple):
    """Where a sequence begins, and what undoes its scaling: NaN where it is stored as it was."""

    offset: int  # points of all files before it
    mean: float
    std: float


class FolderIndex:
    """The sequences of a Time-300B folder, without their values.

    `lengths` holds the points of each sequence [num_sequences], read-only, int32 if all fit;
    `layout` the data files and their dtype; `made_from` the size in bytes and the time of
    modification in ns of the meta.json; `checksum` is that of the header. A damaged index is a
    ValueError.
    """

    def __init__(self, buffer: bytes | mmap.mmap, path: Path | None = None):
        self._buffer = buffer
        self._path = path
        header, self.checksum = _read_header(buffer)
        self.layout = Layout(*header["layout"])
        self.made_from: tuple[int, int] = tuple(header["made_from"])
        self._frequency_names: list[str] = header["frequencies"]
        count = header["num_sequences"]
        self._columns: dict[str, np.ndarray] = {}
        self._checksums: dict[str, list[int]] = {}
        for name, column in header["columns"].items():
            dtype = np.dtype(column["dtype"])
            self._columns[name] = np.frombuffer(buffer, dtype, count, column["at"])
            self._checksums[name] = column["checksums"]
        self.lengths: Int[np.ndarray, " num_sequences"] = self._columns["length"]
        self._offsets = self._columns["offset"]
        self._means, self._stds = self._columns.get("mean"), self._columns.get("std")
        blocks = -(-count // _BLOCK)
        for block in range(blocks):
            self._compare("length", block)
        self._compared = np.zeros(blocks, bool)

    def entry(self, i: int) -> Entry:
        """Looks up where sequence `i` lies."""
        self._check_block(i // _BLOCK)
        offset = self._offsets.item(i)
        if self._means is None or self._stds is None:
            return Entry(offset, math.nan, math.nan)
        return Entry(offset, self._means.item(i), self._stds.item(i))

    def frequency(self, i: int) -> str | None:
        """Looks up the sampling frequency of sequence `i`: its own, else that of the folder."""
        if "frequency" not in self._columns:
            return self.layout.frequency
        self._check_block(i // _BLOCK)
        code = int(self._columns["frequency"][i])
        return self._frequency_names[code - 1] if code else self.layout.frequency

    def _check_block(self, block: int) -> None:
        if self._compared.item(block):
            return
        try:
            for name in self._columns:
                self._compare(name, block)
        except ValueError:
            raise DataError(f"{self._path} is damaged; delete it, and open again") from None
        self._compared[block] = True

    def _compare(self, name: str, block: int) -> None:
        values = self._columns[name][block * _BLOCK : (block + 1) * _BLOCK]
        if zlib.crc32(values.data) != self._checksums[name][block]:
            raise ValueError(f"{name} of block {block} is damaged")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            return FolderIndex, (bytes(self._buffer),)
        return _reopened, (self._path, self.checksum)


def _reopened(path: Path, checksum: int) -> FolderIndex:
    """Opens in another process the index that one process has open."""
    with contextlib.suppress(OSError, ValueError):
        index = FolderIndex(_contents(path), path)
        if index.checksum == checksum:
            return index
    raise DataError(f"{path} has changed since it was opened; open the folder again")


def _read_header(buffer: bytes | mmap.mmap) -> tuple[dict[str, Any], int]:
    if len(buffer) < len(_MAGIC) + _FOOTER.size:
        raise ValueError("too short")
    at, checksum, magic = _FOOTER.unpack(buffer[-_FOOTER.size :])
    text = buffer[at : -_FOOTER.size]
    if magic != _MAGIC or zlib.crc32(text) != checksum:
        raise ValueError("the header is damaged")
    return json.loads(text), checksum


def _contents(path: Path) -> bytes | mmap.mmap:
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size < _MAP_FROM_BYTES:
            return stream.read()
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def open_index(path: Path) -> FolderIndex:
    """Opens the index of a meta.json, and makes it where there is none."""
    version = _version(path)
    if version[0] < INDEX_FROM_BYTES:
        return _made_in_memory(path)
    places = list(_places(path))
    for place in places:
        try:
            index = FolderIndex(_contents(place), place)
        except (OSError, ValueError):
            # There is no index, or a damaged one: it is made again.
            continue
        if index.made_from == version:
            check_files(path, index.layout.dtype, index.layout.files)
            return index
    logging.info("%s: making an index of it, once", path)
    for place in places:
        # If this folder cannot be written to, or is full, the next one is tried.
        with contextlib.suppress(OSError):
            _make(path, place)
            return FolderIndex(_contents(place), place)
    logging.warning(
        "%s: its index could be written to none of %s, so it is kept in memory and made anew by "
        "each process; $TIMEMOE_CACHE names another folder",
        path,
        " and ".join(map(str, places)),
    )
    return _made_in_memory(path)


def _version(path: Path) -> tuple[int, int]:
    """The size and time of modification: if they differ, meta.json has changed."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} does not exist; a Time-300B folder must hold it") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def _places(path: Path) -> Iterator[Path]:
    """Where the index of a meta.json may lie, the preferred path first."""
    yield path.with_name("meta.index")
    folder = os.path.expanduser(os.environ.get("TIMEMOE_CACHE") or "~/.cache/timemoe_jax")
    if not folder.startswith("~"):
        key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
        yield Path(folder) / f"{key}.index"


def _made_in_memory(path: Path) -> FolderIndex:
    target = BytesIO()
    _write(target, *_read(path, BytesIO))
    return FolderIndex(target.getvalue())


def _make(path: Path, place: Path) -> None:
    """Writes the index of a meta.json; other processes never see a part of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # These files have no name: nothing is left of them if the process is killed.
        def scratch() -> IO[bytes]:
            return stack.enter_context(tempfile.TemporaryFile(dir=place.parent))

        table, header = _read(path, scratch)
        descriptor, part = tempfile.mkstemp(".part", f"{place.name}.", place.parent)
        try:
            with open(descriptor, "wb") as target:
                # Who may read meta.json may read the index.
                os.chmod(part, os.stat(path).st_mode & 0o666)
                _write(target, table, header)
            os.replace(part, place)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise


def _read(path: Path, scratch: Scratch) -> tuple["_Table", dict[str, Any]]:
    """Reads a meta.json into columns, which grow in files that `scratch` makes."""
    version = _version(path)
    table = _Table(path, scratch)
    with open_binary(path) as stream:
        meta = FolderMeta(path, stream)
        for columns in meta.columns():
            table.add(columns)
    layout = meta.layout()
    table.check(sum(layout.files.values()))
    if _version(path) != version:
        raise DataError(f"{path} has changed while it was read; open it again")
    return table, {
        "layout": layout,
        "made_from": version,
        "num_sequences": table.count,
        "frequencies": list(table.frequencies),
    }


def _write(target: BinaryIO, table: "_Table", header: dict[str, Any]) -> None:
    target.write(_MAGIC)
    text = json.dumps({**header, "columns": table.write(target)}).encode()
    at = target.tell()
    target.write(text + _FOOTER.pack(at, zlib.crc32(text), _MAGIC))


class _Table:
    """The columns of an index while it is made."""

    def __init__(self, path: Path, scratch: Scratch):
        self._path = path
        self._columns = {
            "length": _Column(scratch(), "<i4", "<i8"),
            "offset": _Column(scratch(), "<u4", "<i8"),
            "mean": _Column(scratch(), "<f4", "<f8"),
            "std": _Column(scratch(), "<f4", "<f8"),
            "frequency": _Column(scratch(), "<u1", "<u2"),
        }
        self.count = 0
        self.frequencies: dict[str, int] = {}
        self._has_statistics = False
        # The end of the sequence that reaches furthest, that sequence, and whether each sequence
        # begins at or after the end of the one before.
        self._end = 0
        self._furthest = (0, 0, 0)
        self._ascending = True
        self._last_stop = 0

    def add(self, columns: Columns) -> None:
        """Takes the next sequences."""
        self._follow(columns.offsets, columns.lengths)
        self._has_statistics |= not np.isnan(columns.stds).all()
        codes = self._codes(columns.frequencies)
        values = (columns.lengths, columns.offsets, columns.means, columns.stds, codes)
        for column, added in zip(self._columns.values(), values, strict=True):
            column.add(added)
        self.count += len(columns.lengths)

    def _codes(self, frequencies: list[str | None]) -> np.ndarray:
        """Numbers frequencies: 0 for none, else 1 + the position among those seen."""
        new = set(frequencies) - {None}
        if not new:
            return np.zeros(len(frequencies), np.uint16)
        for name in sorted(map(str, new - self.frequencies.keys())):
            if len(self.frequencies) == _MOST_FREQUENCIES:
                raise DataError(
                    f"{self._path} has more than {_MOST_FREQUENCIES} different frequencies"
                )
            self.frequencies[name] = len(self.frequencies) + 1
        codes: dict[str | None, int] = {None: 0}
        codes.update(self.frequencies)
        return np.fromiter((codes[name] for name in frequencies), np.uint16, len(frequencies))

    def _follow(self, offsets: Int64[np.ndarray, " n"], lengths: Int64[np.ndarray, " n"]) -> None:
        stops = offsets + lengths
        at = int(np.argmax(stops))
        if stops[at] > self._end:
            self._end = int(stops[at])
            self._furthest = (self.count + at, int(offsets[at]), int(lengths[at]))
        filled = lengths > 0
        starts, stops = offsets[filled], stops[filled]
        if starts.size:
            within = bool(np.all(starts[1:] >= stops[:-1]))
            self._ascending &= within and int(starts[0]) >= self._last_stop
            self._last_stop = int(stops[-1])

    def check(self, total: int) -> None:
        """Refuses sequences that reach beyond the points of the files, or that share points."""
        if self._end > total:
            i, offset, length = self._furthest
            raise DataError(
                f"{self._path}: sequence {i} has offset {offset} and length {length}, beyond the "
                f"{total} points of the files"
            )
        if self._ascending:
            return
        lengths, offsets = self._columns["length"].values(), self._columns["offset"].values()
        order = np.flatnonzero(lengths)
        order = order[np.argsort(offsets[order], kind="stable")]
        starts = offsets[order]
        shared = np.flatnonzero(starts[1:] < (starts + lengths[order])[:-1])
        if shared.size:
            # Training would see them twice, and they could be held out and trained on at once.
            a, b = order[shared[0]], order[shared[0] + 1]
            raise DataError(
                f"{self._path}: sequence {a} with offset {offsets[a]} and length {lengths[a]} "
                f"shares points with sequence {b} with offset {offsets[b]} and length "
                f"{lengths[b]}; each point must belong to one sequence"
            )

    def write(self, target: BinaryIO) -> dict[str, dict[str, Any]]:
        """Writes the columns that say anything; returns where each lies."""
        unused = set() if self._has_statistics else {"mean", "std"}
        unused |= set() if self.frequencies else {"frequency"}
        return {
            name: column.write(target)
            for name, column in self._columns.items()
            if name not in unused
        }


class _Column:
    """A column that grows in a file, in the wide dtype that any value fits."""

    def __init__(self, stream: IO[bytes], narrow: str, wide: str):
        self._stream = stream
        self._narrow, self._wide = np.dtype(narrow), np.dtype(wide)
        self._fits = True

    def add(self, values: np.ndarray) -> None:
        """Adds values at the end."""
        if self._fits:
            with np.errstate(over="ignore"):
                narrow = values.astype(self._narrow)
            equal_nan = values.dtype.kind == "f"
            self._fits = np.array_equal(narrow, values, equal_nan=equal_nan)
        self._stream.write(values.astype(self._wide, copy=False).tobytes())

    def values(self) -> np.ndarray:
        """All values at once, in the wide dtype."""
        self._stream.seek(0)
        return np.frombuffer(self._stream.read(), self._wide)

    def write(self, target: BinaryIO) -> dict[str, Any]:
        """Writes the values in the narrowest dtype that keeps them; returns how and where."""
        dtype = self._narrow if self._fits else self._wide
        target.write(bytes(-target.tell() % _ALIGNMENT))
        at, checksums = target.tell(), []
        self._stream.seek(0)
        while data := self._stream.read(_CHUNK * self._wide.itemsize):
            values = np.frombuffer(data, self._wide).astype(dtype)
            target.write(values.tobytes())
            checksums += [
                zlib.crc32(values[first : first + _BLOCK].data)
                for first in range(0, len(values), _BLOCK)
            ]
        return {"dtype": dtype.str, "at": at, "checksums": checksums}
