"""Downloads the public benchmark files, checks their MD5, and resumes what was cut short."""

import contextlib
import dataclasses
import hashlib
import http.client
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from timemoe_jax.errors import DataError

TIMEOUT_SECONDS = 30.0
_BLOCK = 1 << 16


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file to fetch from BASE_URL/NAME, and its MD5 in hex."""

    name: str
    base_url: str
    md5: str


_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small"
_LIBRARY = "https://huggingface.co/datasets/thuml/Time-Series-Library/resolve/main"

FILES: Mapping[str, Sequence[RemoteFile]] = {
    "ett": (
        RemoteFile("ETTh1.csv", _ETT, "8381763947c85f4be6ac456c508460d6"),
        RemoteFile("ETTh2.csv", _ETT, "51a229a3fc13579dd939364fefe9c7ab"),
        RemoteFile("ETTm1.csv", _ETT, "82d6bd89109c63d075d99c1077b33f38"),
        RemoteFile("ETTm2.csv", _ETT, "7687e47825335860bf58bccb31be0c56"),
    ),
    "weather": (
        RemoteFile("weather.csv", f"{_LIBRARY}/weather", "2e79e5e4c921d3542684c4a34c6748b4"),
    ),
}


def download(
    dataset: str,
    destination: str | os.PathLike[str],
    base_url: str | None = None,
    progress: bool = True,
    files: Mapping[str, Sequence[RemoteFile]] = FILES,
) -> list[Path]:
    """Fetches the files of a dataset that are not there yet, and checks each.

    A transfer that was cut short leaves `NAME.part`, which the next call continues where the server
    can. A file gets its name only once its MD5 is right, and none is ever overwritten.

    Args:
      dataset: a key of `files`: "ett" or "weather".
      destination: the folder to write to, made if needed.
      base_url: a mirror, which has each file at BASE_URL/NAME.
      progress: whether to show a progress bar for each file.
      files: the files of each dataset.

    Returns:
      the paths of all files of the dataset.

    Raises:
      DataError: the dataset is unknown, the server cannot be reached or answers with an error, the
        transfer is cut short, a file cannot be written, or it has another MD5.
    """
    if dataset not in files:
        raise DataError(f"dataset is {dataset!r}; it must be one of {', '.join(files)}")
    folder = Path(destination)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_fetch(file, folder, base_url, progress) for file in files[dataset]]
    except OSError as error:
        path, reason = error.filename or folder, error.strerror or error
        raise DataError(f"{path} cannot be written: {reason}") from None


def _fetch(file: RemoteFile, folder: Path, base_url: str | None, progress: bool) -> Path:
    path, part = folder / file.name, folder / f"{file.name}.part"
    if path.exists():
        if (md5 := _md5(path)) != file.md5:
            raise DataError(
                f"{path} is there already, but its MD5 is {md5} instead of {file.md5}; move or "
                "remove it to fetch it again"
            )
        return path
    url = f"{(base_url or file.base_url).rstrip('/')}/{file.name}"
    _transfer(url, part, progress)
    if (md5 := _md5(part)) != file.md5:
        part.unlink()
        raise DataError(
            f"{file.name} from {url} has the MD5 {md5} instead of {file.md5}; what was fetched is "
            "removed: try again, or another base_url"
        )
    os.replace(part, path)
    return path


def _transfer(url: str, part: Path, progress: bool) -> None:
    """Writes the content of `url` to `part`, which it continues if the server can do that."""
    size = part.stat().st_size if part.exists() else 0
    with _naming(url):
        response, start = _request(url, size)
    with contextlib.closing(response):
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        with (
            open(part, "ab" if start else "wb") as out,
            tqdm(
                desc=part.stem,
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar,
        ):
            for block in _blocks(response, url):
                out.write(block)
                bar.update(len(block))
            size = out.tell()
    if total is not None and size < total:
        raise DataError(f"{url} was cut short at {size} of {total} bytes; call again to resume")


def _request(url: str, start: int) -> tuple[Any, int]:
    """Asks for the bytes from `start` on, or for all where the server cannot send those.

    Returns the response, and its first byte.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url} cannot be fetched; the URL must begin with http:// or https://")
    # Bytes of a compressed transfer would not continue those of an uncompressed one.
    headers = {"Accept-Encoding": "identity", "User-Agent": "timemoe_jax"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _request(url, 0)
        raise DataError(
            f"{url} cannot be fetched: the server says {error.code} {error.reason}"
        ) from None
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return response, 0
    if re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
        return response, start
    response.close()
    if not start:
        raise DataError(f"{url} cannot be fetched: the server sends a part that nobody asked for")
    return _request(url, 0)


def _blocks(response: Any, url: str) -> Iterator[bytes]:
    while True:
        with _naming(url):
            block = response.read(_BLOCK)
        if not block:
            return
        yield block


@contextlib.contextmanager
def _naming(url: str) -> Iterator[None]:
    """Turns what the network raises into an error that names the URL."""
    try:
        yield
    except DataError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = str(reason) or type(reason).__name__
        if isinstance(reason, TimeoutError):
            text = f"no answer within {TIMEOUT_SECONDS:g} seconds"
        kept = "; what arrived is kept, call again to resume" if reason is error else ""
        raise DataError(f"{url} cannot be fetched: {text}{kept}") from None


def _md5(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
