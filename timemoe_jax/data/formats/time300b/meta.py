"""The meta.json of a Time-300B folder, read a part at a time.

One such file can describe 48 million sequences in gigabytes of text. Its `scales` are read some
thousand at a time, so that memory does not grow with the file; everything else in it is small. The
reader is written by hand, since C libraries that read JSON as a stream took more than twice as long
when measured, and do not stop at text that is nested without end.
"""

import codecs
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from timemoe_jax.errors import DataError

# The layout of numbers in the data files, by the name of the dtype in meta.json.
DTYPES = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bfloat16": "<u2",
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
}

_KINDS = {"num_sequences": int, "dtype": str, "files": dict, "scales": list}
_FREQUENCY = ("freq", "frequency")
# Offset + length fits into 64 bits.
_MOST_POINTS = 1 << 62

# Characters that are read at a time, and that a value other than `scales` may have at most.
_BLOCK = 1 << 22
_LARGEST = 1 << 26
# Characters that the decoder is given at first, and how far from the end of the text a value must
# end or fail so that the cut cannot be the reason.
_AHEAD = 1 << 12
_MARGIN = 16

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Columns(NamedTuple):
    """Some consecutive sequences of meta.json."""

    offsets: Int64[np.ndarray, " n"]  # points of all files before each
    lengths: Int64[np.ndarray, " n"]
    means: Float64[np.ndarray, " n"]  # NaN, as `stds`, where the stored values are not scaled
    stds: Float64[np.ndarray, " n"]
    frequencies: list[str | None]  # None where a sequence has none of its own


class Layout(NamedTuple):
    """What meta.json says about a folder as a whole."""

    dtype: str  # a key of `DTYPES`
    files: dict[str, int]  # the points of each data file
    frequency: str | None  # of sequences that have none of their own


class FolderMeta:
    """Reads an open meta.json; `path` names it in errors, and the data files lie beside it."""

    def __init__(self, path: Path, stream: BinaryIO):
        self._path = path
        self._text = _Text(path, stream)
        self._found: dict[str, Any] = {}

    def columns(self) -> Iterator[Columns]:
        """Reads the file and yields its sequences, some thousand at a time."""
        text = self._text
        if text.peek() not in ("{", ""):
            kind = type(text.value("its content")).__name__
            raise DataError(f"{self._path} must hold a JSON object, not a {kind}")
        text.take("{")
        mark = text.take("}") if text.peek() == "}" else ","
        while mark == ",":
            key = self._key()
            if key == "scales" and text.peek() == "[":
                if {"dtype", "files"} <= self._found.keys():
                    # A missing file is noticed before the long reading.
                    check_files(self._path, self._found["dtype"], self._found["files"])
                self._found[key] = 0
                for entries in text.elements("scales"):
                    yield _columns(self._path, entries, self._found[key])
                    self._found[key] += len(entries)
            else:
                value = text.value(f"entry {key[:40]!r}")
                self._check_kind(key, value)
                self._found[key] = value if key in (*_KINDS, *_FREQUENCY) else None
            mark = text.take(",}")
        if text.peek():
            raise text.error("nothing may follow the object")

    def _key(self) -> str:
        if self._text.peek() != '"':
            raise self._text.error("expected the name of an entry in double quotes")
        key = self._text.value("a name")
        if key in self._found:
            raise self._text.error(f"there is a second entry {key[:40]!r}")
        self._text.take(":")
        return key

    def _check_kind(self, key: str, value: Any) -> None:
        kind = _KINDS.get(key, object)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise DataError(
                f"{self._path}: {key} must be of type {kind.__name__}, not {type(value).__name__}"
            )

    def layout(self) -> Layout:
        """What the whole file says, once `columns` has come to its end."""
        found = self._found
        for key in _KINDS:
            if key not in found:
                raise DataError(f"{self._path} has no entry {key!r}")
        if found["num_sequences"] != found["scales"]:
            raise DataError(
                f"{self._path}: num_sequences is {_short(found['num_sequences'])}, but scales has "
                f"{found['scales']} entries; they must be equal"
            )
        files = check_files(self._path, found["dtype"], found["files"])
        return Layout(found["dtype"], files, _frequency(f"{self._path}", found))


def check_files(path: Path, dtype: str, files: dict[str, Any]) -> dict[str, int]:
    """Compares the data files on disk with what meta.json says, and returns them in order."""
    if dtype not in DTYPES:
        raise DataError(f"{path}: dtype is {_short(dtype)}; it must be one of {', '.join(DTYPES)}")
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    numbers = {name: _file_number(path, name) for name in files}
    names = sorted(files, key=numbers.__getitem__)
    for before, name in itertools.pairwise(names):
        if numbers[before] == numbers[name]:
            raise DataError(
                f"{path}: files {before!r} and {name!r} have the same number, but numbers say "
                "which comes first"
            )
    for name in names:
        _check_file(path, name, files[name], itemsize)
    return {name: files[name] for name in names}


def _file_number(path: Path, name: str) -> int:
    parts = name.split("-")
    # No name of a file has more than 255 characters.
    fits = len(name) <= 255 and Path(name).name == name
    if not fits or len(parts) < 2 or not parts[1].isdecimal():
        raise DataError(f"{path}: file {_short(name)} must be named like data-1-of-2.bin")
    return int(parts[1])


def _check_file(path: Path, name: str, points: Any, itemsize: int) -> None:
    if type(points) is not int or points < 0:
        raise DataError(f"{path}: file {name!r} must have a number of points, not {_short(points)}")
    try:
        size = os.path.getsize(path.parent / name)
    except (OSError, ValueError):
        raise DataError(f"{path.parent / name} is missing; {path} names it") from None
    if size != points * itemsize:
        raise DataError(
            f"{path.parent / name} has {size} bytes, but {path} gives it {_short(points)} points "
            f"of {itemsize} bytes each"
        )


def _columns(path: Path, entries: list[Any], first: int) -> Columns:
    """Turns entries of `scales` into columns; `first` is the number of the first entry."""
    try:
        counts = [[entry[key] for entry in entries] for key in ("offset", "length")]
    except (KeyError, TypeError):
        for i, entry in enumerate(entries, first):
            _check_entry(path, i, entry)
        raise
    statistics: list[list[Any]] = [[entry.get(key) for entry in entries] for key in ("mean", "std")]
    frequencies = [entry.get("freq", entry.get("frequency")) for entry in entries]
    # Entries are checked all at once where possible, and one by one to name the one that is wrong.
    named = set(map(type, frequencies)) <= {str, type(None)} and "" not in frequencies
    if not (named and _are_counts(*counts) and _are_scales(*statistics)):
        for i, entry in enumerate(entries, first):
            _check_entry(path, i, entry)
    offsets, lengths = (np.array(values, np.int64) for values in counts)
    means, stds = (np.array(values, np.float64) for values in statistics)
    return Columns(offsets, lengths, means, stds, frequencies)


def _are_counts(*columns: list[Any]) -> bool:
    # Types rather than isinstance: true and false are whole numbers to Python.
    return all(
        set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= _MOST_POINTS
        for values in columns
    )


def _are_scales(means: list[Any], stds: list[Any]) -> bool:
    if set(map(type, means)) | set(map(type, stds)) == {float}:
        return min(stds) > 0 and bool(np.isfinite(means).all() and np.isfinite(stds).all())
    return all(map(_is_scale, means, stds))


def _is_scale(mean: Any, std: Any) -> bool:
    if mean is None or std is None:
        return mean is std
    most = sys.float_info.max
    return {type(mean), type(std)} <= {int, float} and abs(mean) <= most and 0 < std <= most


def _check_entry(path: Path, i: int, entry: Any) -> None:
    if not isinstance(entry, dict) or not {"offset", "length"} <= entry.keys():
        raise DataError(
            f"{path}: scales[{i}] must be an object with offset and length, not {_short(entry)}"
        ) from None
    for key in ("offset", "length"):
        if not _are_counts([entry[key]]):
            raise DataError(
                f"{path}: sequence {i} has {key} {_short(entry[key])}; it must be a whole number "
                "from 0 to the points of the files"
            )
    mean, std = entry.get("mean"), entry.get("std")
    if not _is_scale(mean, std):
        raise DataError(
            f"{path}: sequence {i} has mean {_short(mean)} and std {_short(std)}; they must both "
            "be finite with std > 0, or both be left out"
        )
    _frequency(f"{path}: sequence {i}", entry)


def _frequency(where: str, entry: dict[str, Any]) -> str | None:
    value = entry.get("freq", entry.get("frequency"))
    if value is not None and (not isinstance(value, str) or not value):
        raise DataError(
            f"{where} has frequency {_short(value)}; it must be text such as 'H', or be left out"
        )
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Text:
    """The JSON text of a file from a position on; only a part of it is in memory."""

    def __init__(self, path: Path, stream: BinaryIO):
        self._path = path
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text = ""
        self._at = 0
        self._dropped = 0
        self._ended = False

    def error(self, message: str, at: int | None = None) -> DataError:
        """An error that names the file and a character, by default that at the position."""
        character = self._dropped + (self._at if at is None else at)
        return DataError(f"{self._path} is not valid JSON at character {character}: {message}")

    def peek(self) -> str:
        """The next character that is not blank, without taking it; "" at the end."""
        while True:
            match = _WHITESPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._ahead(1)

    def take(self, marks: str) -> str:
        """Takes the next character, which must be one of `marks`."""
        mark = self.peek()
        if not mark or mark not in marks:
            raise self.error(f"expected {' or '.join(marks)}, not {mark or 'the end'!r}")
        self._at += 1
        return mark

    def value(self, what: str) -> Any:
        """Takes a value as a whole."""
        self.peek()
        size = _AHEAD
        while True:
            self._ahead(size)
            near_end = len(self._text) - _MARGIN
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos > near_end or error.msg.startswith("Unterminated")
                if self._ended or not cut:
                    raise self.error(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self.error(f"{what}: {error}") from None
            else:
                # A number could continue in text that is not read yet.
                if self._ended or end <= near_end:
                    self._at = end
                    return value
            if size >= _LARGEST:
                raise self.error(f"{what} is longer than {_LARGEST} characters")
            size *= 8

    def elements(self, what: str) -> Iterator[list[Any]]:
        """Takes an array, and yields its elements, some at a time."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        more = True
        while more:
            self._ahead(_BLOCK)
            elements = self._objects()
            if not elements:
                elements, more = self._each(what)
            yield elements

    def _objects(self) -> list[Any]:
        """Takes many elements at once if the text ahead holds only objects, else none."""
        cut = self._text.rfind("},", self._at) + 1
        if cut == 0:
            return []
        # JSON is read from left to right: if the part is valid between brackets, then it was cut
        # where an element ends, and not inside of one.
        try:
            elements = json.loads(f"[{self._text[self._at : cut]}]")
        except (ValueError, RecursionError):
            return []
        self._at = cut + 1
        return elements

    def _each(self, what: str) -> tuple[list[Any], bool]:
        """Takes elements one by one from the text in memory, and says whether more follow."""
        elements: list[Any] = []
        stop = self._dropped + len(self._text)
        while True:
            elements.append(self.value(what))
            if self.take(",]") == "]":
                return elements, False
            if self._dropped + self._at >= stop:
                return elements, True

    def _ahead(self, size: int) -> None:
        """Reads until `size` characters lie ahead, or the file ends."""
        if len(self._text) - self._at >= size or self._ended:
            return
        parts, count = [self._text[self._at :]], len(self._text) - self._at
        while count < size and not self._ended:
            try:
                data = self._stream.read(_BLOCK)
                part = self._decode(data, final=not data)
            except OSError as error:
                raise DataError(f"{self._path} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError as error:
                raise DataError(f"{self._path} is not UTF-8 text: {error.reason}") from None
            self._ended = not data
            parts.append(part)
            count += len(part)
        self._dropped += self._at
        self._text, self._at = "".join(parts), 0
