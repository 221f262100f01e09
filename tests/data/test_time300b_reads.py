"""Files that stay open: bounded, per thread, and never in the way of one another."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from timemoe_jax.data.formats.time300b import reads as open_files


def read(path, offset, size):
    values = np.zeros(size, np.uint8)
    count = open_files.read(str(path), values, offset)
    return bytes(values[:count])


def descriptors_of(folder):
    """How many descriptors of this process are of files in a folder."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(link).startswith(str(folder))
        except OSError:
            continue
    return found


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{k}.bin" for k in range(2 * open_files.MOST_OPEN)]
    for k, path in enumerate(paths):
        path.write_bytes(bytes([k]) * 10 + bytes(range(10)))
    return paths


def test_reads_anywhere_and_says_where_the_file_ends(files):
    assert read(files[3], 8, 4) == bytes([3, 3, 0, 1])
    assert read(files[3], 18, 4) == bytes([8, 9])
    assert read(files[3], 100, 4) == b""


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none", 0, 1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_more_than_a_few_stay_open_and_none_beyond_its_thread(files, tmp_path):
    def work():
        for _ in range(2):
            for k, path in enumerate(files):
                assert read(path, 0, 2) == bytes([k, k])
        inside.append(descriptors_of(tmp_path))

    inside: list[int] = []
    before = descriptors_of(tmp_path)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before + open_files.MOST_OPEN]
    assert descriptors_of(tmp_path) == before


def test_threads_read_side_by_side(files):
    wrong = []

    def work(seed):
        for k in np.random.default_rng(seed).integers(0, len(files), 500).tolist():
            if read(files[k], 0, 3) != bytes([k, k, k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_positioned_reads(files, monkeypatch):
    monkeypatch.delattr(os, "preadv", raising=False)
    assert read(files[5], 9, 3) == bytes([5, 0, 1])
