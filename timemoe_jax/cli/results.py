"""The table of a forecast as a user gets it: its columns, its digits, its file."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.errors import DataError
from timemoe_jax.files import write_text, written_whole

FORMATS = ("csv", "parquet", "json")
COLUMNS = ("quantiles", "levels", "nixtla")
MODEL = "TimeMoE"  # the name of the column of point forecasts for Nixtla's tools
MOST_DIGITS = 15  # decimals of float64 that mean anything
DIGITS_OF_SPREAD = 5  # a forecast is no more precise than this part of how much a series varies


def parse_coverages(text: str) -> tuple[float, ...]:
    """The quantile levels of intervals given in percent, such as "80,95" or "80%"."""
    levels: set[float] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        try:
            coverage = float(part.removesuffix("%"))
        except ValueError:
            coverage = 0.0
        if not 0 < coverage < 100:
            raise DataError(
                f"--levels {text!r}: {part!r} must be above 0 and below 100, in percent"
            )
        if coverage < 1 and not part.endswith("%"):
            raise DataError(
                f"--levels {text!r}: {part!r} is in percent; did you mean {100 * coverage:g}?"
            )
        # Of so many digits that 80 gives 0.1 and 0.9.
        levels |= {round((100 - sign * coverage) / 200, 10) for sign in (-1, 1)}
    return tuple(sorted(levels))


def choose_format(out: Path | None, given: str | None) -> str:
    """The format of the table: as given, else by the suffix of its file; CSV for a terminal.

    Raises:
      DataError: the suffix is none that is written, or the table cannot go where it should.
    """
    if given is None and out is not None and (out.is_file() or not out.exists()):
        suffix = out.suffix.lower().removeprefix(".")
        if suffix not in FORMATS:
            raise DataError(
                f"--out {out} must end in one of {', '.join('.' + f for f in FORMATS)}, or give "
                "--format"
            )
        given = suffix
    if given == "parquet":
        if out is None:
            raise DataError("--format parquet needs a file; give --out FILE.parquet")
        from timemoe_jax.data.formats.columnar_files import import_pyarrow

        import_pyarrow()
    return given or "csv"


def check_outputs(inputs: dict[str, Any], outputs: dict[str, Path | None]) -> None:
    """Refuses to write over what is read, over a folder, or twice to one file.

    Folders that are not there are made when a file is written; a note on standard error names each,
    so that a slip in a path is seen.
    """
    seen = {os.path.realpath(path): flag for flag, path in inputs.items() if path is not None}
    for flag, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise DataError(f"{flag} {path} is a folder; give the name of a file")
        above = next(folder for folder in Path(os.path.abspath(path)).parents if folder.exists())
        if not above.is_dir():
            raise DataError(f"{flag} {path}: {above} is a file, and no folder; give another name")
        if above != Path(os.path.abspath(path)).parent:
            print(f"note: {flag} makes the folder {path.parent}", file=sys.stderr)
        other = seen.get(os.path.realpath(path))
        if other is not None and (path.is_file() or not path.exists()):
            what = "is written, too" if other in outputs else "is read"
            raise DataError(f"{flag} {path} is the file of {other}, which {what}; give another")
        seen[os.path.realpath(path)] = flag


def digits_of(values: Float64[np.ndarray, " T"]) -> int:
    """The decimals that forecasts of a series warrant: one more than its values have.

    They are fewer where the values are written with more digits than their spread has any use for.
    """
    observed = values[~np.isnan(values)]
    spread = float(observed.std())
    most = MOST_DIGITS
    if spread > 0:
        most = DIGITS_OF_SPREAD - int(np.floor(np.log10(spread)))
    sample = observed[-1000:]
    for digits in range(MOST_DIGITS):
        # Sums such as 0.1 + 0.2 are written with digits that mean nothing.
        if np.isclose(np.round(sample, digits), sample, rtol=1e-12, atol=0).all():
            return max(0, min(digits + 1, most))
    return max(0, min(most, MOST_DIGITS))


def round_table(frame: Any, digits: Sequence[int]) -> Any:
    """Rounds the forecasts of N series, which take as many rows each, to the digits of each."""
    rounded = frame.copy(deep=False)
    rows = len(frame) // len(digits)
    numbers = frame.columns[list(frame.columns).index("predictions") :]
    for name in numbers:
        values = frame[name].to_numpy(np.float64).reshape(len(digits), rows)
        rounded[name] = np.concatenate(
            [np.round(row, places) for row, places in zip(values, digits, strict=True)]
        )
    return rounded


def rename_columns(frame: Any, style: str, levels: Sequence[float], several: bool) -> Any:
    """Names the columns of forecasts by quantile, by level, or as Nixtla's tools expect them.

    `several` says whether there is more than one target, so that the name of each is needed.
    """
    if style == "quantiles":
        return frame
    prefix = f"{MODEL}-" if style == "nixtla" else ""
    names = {str(float(level)): prefix + _bound(level) for level in levels}
    if style == "nixtla":
        names["predictions"] = MODEL
        frame = frame if several else frame.drop(columns="target_name")
    return frame.rename(columns=names)


def _bound(level: float) -> str:
    """The bound of an interval that a quantile is: lo-80 or hi-80."""
    return f"{'lo' if level < 0.5 else 'hi'}-{round(abs(100 - 200 * level), 8):g}"


def write_table(frame: Any, out: Path | None, kind: str) -> None:
    """Writes a table to a file, which appears whole or not at all, or to standard output."""
    if kind == "parquet":
        assert out is not None
        with written_whole(out) as beside:
            frame.to_parquet(beside, index=False)
        return
    text = _json(frame) if kind == "json" else frame.to_csv(index=False, lineterminator="\n")
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(out, text)


def _json(frame: Any) -> str:
    """A list of a record for each row, in a line each; times as text, missing numbers as null."""
    columns = {}
    for name in frame.columns:
        column = frame[name]
        plain = column.dtype.kind in "iuf"
        values = column.tolist() if plain else column.astype(str).tolist()
        columns[str(name)] = [None if value != value else value for value in values]
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    return "[\n" + ",\n".join(lines) + "\n]\n"
