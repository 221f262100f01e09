"""Files that appear whole or not at all, and rows of a table."""

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from timemoe_jax.errors import DataError


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the path of a new file to write beside `path`, and gives it that name at the end.

    An earlier file stays as it was until then, and where the writing fails. The folder is made if
    needed. What is no regular file, such as /dev/stdout, is written itself.

    Raises:
      DataError: the file cannot be written: the disk is full, the folder is a file, and the like.
    """
    path = Path(path)
    # Beside the file that a link leads to, so that the link stays.
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            yield path
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, target)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes text as UTF-8; see `written_whole`."""
    with written_whole(path) as beside, open(beside, "w", encoding="utf-8", newline="\n") as out:
        out.write(text)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON with an indent of 2; see `written_whole`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_rows(path: str | os.PathLike[str], columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file of exactly these columns, in this order.

    Raises:
      DataError: the file cannot be read, has other columns, or no rows.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows, found = list(reader), tuple(reader.fieldnames or ())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if found != tuple(columns) or not rows:
        raise DataError(f"{path} must have rows, and the columns {', '.join(columns)}, not {found}")
    return rows
