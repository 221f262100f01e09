"""Monash .tsf files (Godahewa et al., 2021, arXiv 2105.06643) as sources of series."""

import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.formats.frames import is_number
from timemoe_jax.data.formats.reading import LineSource, open_binary
from timemoe_jax.errors import DataError

MISSING = "?"
ENCODINGS = ("utf-8", "cp1252", "latin-1")
NAME = "series_name"

_TYPES = ("string", "numeric", "date")
_YES_OR_NO = {"true": True, "false": False}
_MOST_SHOWN = 40  # characters of a value in a message

# What @frequency says, as pandas calls it.
_ALIASES = {
    **{"secondly": "s", "minutely": "min", "half_hourly": "30min", "hourly": "h", "daily": "D"},
    **{"weekly": "W", "monthly": "MS", "quarterly": "QS", "yearly": "YS"},
    **{"seconds": "s", "minutes": "min", "hours": "h", "days": "D", "weeks": "W", "months": "MS"},
}


class TsfHeader(NamedTuple):
    """What a .tsf file says about all of its series; None where it does not."""

    attributes: tuple[tuple[str, str], ...] = ()  # names and types: "string", "numeric" or "date"
    relation: str | None = None  # the name of the data set
    frequency: str | None = None  # as the file has it, such as "hourly" or "10_minutes"
    horizon: int | None = None  # points to forecast
    missing: bool | None = None  # whether values may be missing
    equal_length: bool | None = None


class TsfSource(LineSource):
    """The series of a Monash .tsf file; `?` is a missing value.

    Opening reads the file once, a line at a time, and keeps where each series begins; a read
    parses the whole series. Blank lines and lines that begin with `#` are no series. `encoding` is
    one of `ENCODINGS`; `frequency` is that of `header`, by its pandas alias where there is one.
    """

    def __init__(self, path: str | os.PathLike[str], encoding: str = "utf-8"):
        self._path = Path(path)
        if encoding not in ENCODINGS:
            raise DataError(f"encoding is {encoding!r}; it must be one of {', '.join(ENCODINGS)}")
        self._encoding = encoding
        with open_binary(self._path) as stream:
            header, before = self._read_header(stream)
            self.header = TsfHeader(**header)
            self._scan(stream, before + 1, lambda line, n: _count(self._split(line, n)[1]))
        if not len(self):
            raise DataError(f"{self._path} has no series after @data; it must have at least one")
        self.frequency = _alias(self.header.frequency)

    def _is_comment(self, line: bytes) -> bool:
        return line.startswith(b"#")

    def attributes(self, i: int) -> dict[str, str]:
        """The attributes of series `i`, by name, as text."""
        i = self._checked(i)
        number = int(self._lines[i])
        parts, values = self._split(self._line(i), number)
        self._check_unchanged(i, _count(values))
        before = [self._text(part, number).strip() for part in parts]
        names = (name for name, _ in self.header.attributes)
        return dict(zip(names, before, strict=True))

    def _read_header(self, stream: BinaryIO) -> tuple[dict[str, Any], int]:
        """Reads up to @data; returns the fields of the header and the number of that line."""
        fields: dict[str, Any] = {"attributes": ()}
        for number, line in enumerate(stream, start=1):
            # Comments may be in any encoding: they are not read.
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip() or line.startswith(b"#"):
                continue
            words = self._text(line, number).split()
            if not words[0].startswith("@"):
                raise DataError(
                    f"{self._path} line {number} must begin with @ or #, since it comes before "
                    f"@data, but is {' '.join(words)[:_MOST_SHOWN]!r}"
                )
            if words[0].lower() == "@data":
                return fields, number
            self._add_field(fields, words, number)
        raise DataError(f"{self._path} has no line @data; it is no .tsf file, or cut short")

    def _add_field(self, fields: dict[str, Any], words: list[str], number: int) -> None:
        tag = words[0].lower().removeprefix("@")
        where = f"{self._path} line {number}: @{tag}"
        if tag == "attribute":
            if len(words) != 3 or words[2].lower() not in _TYPES:
                raise DataError(
                    f"{where} must have a name and one of the types {', '.join(_TYPES)}"
                )
            if words[1] in dict(fields["attributes"]):
                raise DataError(f"{where} {words[1]!r} comes twice; the names must differ")
            fields["attributes"] += ((words[1], words[2].lower()),)
            return
        known = {"relation", "frequency", "horizon", "missing", "equallength"}
        if tag not in known:
            raise DataError(
                f"{where} is not known; there are @attribute, {', '.join(sorted(known))}"
            )
        text = " ".join(words[1:])
        name = "equal_length" if tag == "equallength" else tag
        if not text or name in fields:
            raise DataError(f"{where} must come once, with a value")
        if tag == "horizon":
            if not (text.isascii() and text.isdecimal() and len(text) < 10):
                raise DataError(f"{where} must be a whole number, not {text[:_MOST_SHOWN]!r}")
            fields[name] = int(text)
        elif tag in ("missing", "equallength"):
            if text.lower() not in _YES_OR_NO:
                raise DataError(f"{where} must be true or false, not {text[:_MOST_SHOWN]!r}")
            fields[name] = _YES_OR_NO[text.lower()]
        else:
            fields[name] = text

    def _text(self, line: bytes, number: int) -> str:
        try:
            return line.decode(self._encoding)
        except UnicodeDecodeError:
            others = [name for name in ENCODINGS if name != self._encoding]
            raise DataError(
                f"{self._path} line {number} is not {self._encoding} text; give the encoding: "
                f"{', '.join(others)}"
            ) from None

    def _split(self, line: bytes, number: int) -> tuple[list[bytes], bytes]:
        """The attributes of a series, and its values."""
        *before, values = line.split(b":")
        if len(before) != len(self.header.attributes):
            raise DataError(
                f"{self._path} line {number} has {len(before)} attributes before the values, but "
                f"the header has {len(self.header.attributes)}; each ends with a colon"
            )
        if not values.strip():
            raise DataError(f"{self._path} line {number} has no values; a series needs at least 1")
        return before, values

    def _parse(self, line: bytes, number: int) -> Float64[np.ndarray, " T"]:
        return _numbers(self._split(line, number)[1], f"{self._path} line {number}")

    def label(self, i: int) -> str:
        """The attribute series_name of series `i`, or its number without one."""
        return self.attributes(i).get(NAME, str(i))


def _count(values: bytes) -> int:
    return values.count(b",") + 1


def _numbers(values: bytes, where: str) -> Float64[np.ndarray, " T"]:
    try:
        cells = values.decode("ascii").split(",")
        if MISSING.encode() in values:
            cells = ["nan" if cell.strip() == MISSING else cell for cell in cells]
        # Python reads 1_000 as 1000.
        if b"_" not in values:
            return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        pass
    for position, cell in enumerate(values.split(b",")):
        text = cell.strip().decode("ascii", "replace")
        if text != MISSING and not is_number(text):
            raise DataError(
                f"{where}: value {position} is {text[:_MOST_SHOWN]!r}; it must be a number or "
                f"{MISSING}"
            )
    raise DataError(f"{where} holds values that are no numbers")


def _alias(frequency: str | None) -> str | None:
    """The pandas alias of a frequency such as 10_minutes; the text itself where there is none."""
    if frequency is None:
        return None
    text = frequency.lower()
    count, _, unit = text.partition("_")
    if count.isdecimal() and unit:
        unit = unit if unit in _ALIASES else f"{unit}s"
        return f"{int(count)}{_ALIASES[unit]}" if unit in _ALIASES else frequency
    return _ALIASES.get(text, frequency)
