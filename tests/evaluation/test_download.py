"""Downloads from a server on this machine that can be told to misbehave."""

import contextlib
import hashlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation import download as module
from timemoe_jax.evaluation.download import FILES, RemoteFile, download

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /data/a.csv, and notes the range of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges: list[str | None] = []
        self.supports_range = True
        self.wrong_range = False
        self.cut_at: int | None = None
        self.status: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if self.path != "/data/a.csv" or server.status:
            self.send_error(server.status or 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if asked and server.supports_range and start >= len(server.content):
            self.send_error(416)
            return
        if asked and server.supports_range:
            self.send_response(206)
            if server.wrong_range:
                start = 0
            end = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        else:
            start = 0
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut_at])


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """The server is on this machine, whatever the environment says of proxies."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, folder: Path, md5: str = MD5, name: str = "a.csv") -> list[Path]:
    files = {"small": (RemoteFile(name, server.url, md5),)}
    return download("small", folder, progress=False, files=files)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert fetch(server, folder) == [folder / "a.csv"]
    assert (folder / "a.csv").read_bytes() == CONTENT
    assert names(folder) == ["a.csv"]
    assert fetch(server, folder) == [folder / "a.csv"]
    assert server.ranges == [None]


@pytest.mark.parametrize("supports_range", [True, False])
def test_what_was_cut_short_is_resumed(server, tmp_path, supports_range):
    server.supports_range = supports_range
    server.cut_at = 100_000
    with pytest.raises(DataError, match=r"a\.csv was cut short at 100000 of 300000 bytes") as error:
        fetch(server, tmp_path)
    assert server.url in str(error.value)
    assert names(tmp_path) == ["a.csv.part"]
    assert (tmp_path / "a.csv.part").read_bytes() == CONTENT[:100_000]
    server.cut_at = None
    fetch(server, tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert names(tmp_path) == ["a.csv"]
    assert server.ranges == [None, "bytes=100000-"]


def test_resuming_twice(server, tmp_path):
    server.cut_at = 100_000
    for _ in range(2):
        with pytest.raises(DataError, match="was cut short"):
            fetch(server, tmp_path)
    server.cut_at = None
    fetch(server, tmp_path)
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert (tmp_path / "a.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [300_000, 400_000])
def test_a_part_that_is_as_long_as_the_file_is_fetched_again(server, tmp_path, size):
    (tmp_path / "a.csv.part").write_bytes(b"x" * size)
    fetch(server, tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert server.ranges == [f"bytes={size}-", None]


def test_a_server_that_sends_another_range_is_asked_for_all(server, tmp_path):
    (tmp_path / "a.csv.part").write_bytes(CONTENT[:1000])
    server.wrong_range = True
    fetch(server, tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize("part", [b"", b"something else"])
def test_other_content_is_refused_and_removed(server, tmp_path, part):
    if part:
        (tmp_path / "a.csv.part").write_bytes(part)
    else:
        server.content = b"date,a\n"
    with pytest.raises(DataError, match="has the MD5") as error:
        fetch(server, tmp_path)
    found = hashlib.md5(part + server.content[len(part) :]).hexdigest()
    for text in ("a.csv", found, MD5):
        assert text in str(error.value)
    assert names(tmp_path) == []
    server.content = CONTENT
    fetch(server, tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == CONTENT


def test_a_file_of_the_user_is_not_overwritten(server, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"a\.csv is there already, but its MD5 is .* instead"):
        fetch(server, tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == b"mine"
    assert server.ranges == []


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_of_the_server_names_the_url(server, tmp_path, status):
    server.status = status
    with pytest.raises(DataError, match=f"the server says {status}") as error:
        fetch(server, tmp_path)
    assert f"{server.url}/a.csv" in str(error.value)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == []


def test_nobody_listens(server, tmp_path):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(DataError, match=f"{url}/ETTh1.csv cannot be fetched: .*refused"):
        download("ett", tmp_path, base_url=url, progress=False)


def test_a_server_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match=r"no answer within 0\.2 seconds") as error:
            download("weather", tmp_path, base_url=url, progress=False)
    assert f"{url}/weather.csv" in str(error.value)


def test_a_mirror(server, tmp_path):
    files = {"small": (RemoteFile("a.csv", "http://127.0.0.1:1/elsewhere", MD5),)}
    download("small", tmp_path, base_url=server.url + "/", progress=False, files=files)
    assert names(tmp_path) == ["a.csv"]


def test_the_bar_counts_bytes(server, tmp_path, capsys):
    files = {"small": (RemoteFile("a.csv", server.url, MD5),)}
    download("small", tmp_path, files=files)
    bar = capsys.readouterr().err
    assert "a.csv" in bar
    assert "300k/300k" in bar
    fetch(server, tmp_path / "quiet")
    assert capsys.readouterr().err == ""


def test_arguments_that_are_refused(tmp_path):
    with pytest.raises(DataError, match="dataset is 'traffic'; it must be one of ett, weather"):
        download("traffic", tmp_path)
    with pytest.raises(DataError, match="must begin with http"):
        download("ett", tmp_path, base_url="ftp://somewhere", progress=False)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file cannot be written"):
        download("ett", tmp_path / "file", progress=False)


def test_the_table_of_files():
    assert {name: [file.name for file in files] for name, files in FILES.items()} == {
        "ett": ["ETTh1.csv", "ETTh2.csv", "ETTm1.csv", "ETTm2.csv"],
        "weather": ["weather.csv"],
    }
    for files in FILES.values():
        for file in files:
            assert re.fullmatch("[0-9a-f]{32}", file.md5)
            assert file.base_url.startswith("https://")
