"""Series in `.jsonl` files: one JSON value a line."""

import json
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.formats.reading import LineSource, open_binary
from timemoe_jax.errors import DataError

_NUMBERS = {int, float, type(None)}


class JsonlSource(LineSource):
    """The series of a text file with one JSON object `{"sequence": [...]}`, or list, per line.

    Opening reads the file once, a line at a time, and keeps where each line begins. `null` is a
    missing value; blank lines are no series. Reading a part parses the whole line.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        with open_binary(self._path) as stream:
            self._scan(stream, 1, lambda line, number: len(self._parse(line, number)))

    def _parse(self, line: bytes, number: int) -> Float[np.ndarray, " T"]:
        where = f"{self._path} line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not valid JSON: {error}") from None
        if isinstance(values, dict):
            if "sequence" not in values:
                raise DataError(f'{where} has no "sequence", but {sorted(values)}')
            values = values["sequence"]
        if not isinstance(values, list):
            raise DataError(f'{where} must be {{"sequence": [...]}} or a list of numbers')
        # Types rather than isinstance: true and false are whole numbers to Python.
        if not set(map(type, values)) <= _NUMBERS:
            at, value = next((k, v) for k, v in enumerate(values) if type(v) not in _NUMBERS)
            raise DataError(
                f"{where}: value {at} is {str(value)[:40]!r}; it must be a number or null"
            )
        try:
            return np.array(values, np.float64)
        except OverflowError:
            raise DataError(f"{where} holds a whole number too large for float64") from None
