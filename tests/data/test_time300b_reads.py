"""Files that stay open: bounded, per thread, and never in the way of one another."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from timemoe_jax.data.formats.time300b import reads as open_files
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource, write_time_moe_folder
from timemoe_jax.errors import DataError


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


def _corpus(folder, start, length=10):
    write_time_moe_folder(folder, [np.arange(float(length)) + start])
    return TimeMoeFolderSource(folder)


@pytest.mark.parametrize("length", [10, 7, 20])
@pytest.mark.parametrize("positioned", [True, False])
def test_a_folder_written_anew_at_its_path_is_read_anew(length, positioned, tmp_path, monkeypatch):
    if not positioned:
        monkeypatch.delattr(os, "preadv", raising=False)
    folder = tmp_path / "corpus"
    old = _corpus(folder, 0.0)
    np.testing.assert_array_equal(old.read(0, 0, 3), [0, 1, 2])
    # The new file may be given the inode of the old one.
    shutil.rmtree(folder)
    new = _corpus(folder, 100.0, length)
    np.testing.assert_array_equal(new.read(0, 0, 3), [100, 101, 102])
    with pytest.raises(DataError, match="has changed since it was opened; open it again"):
        old.read(0, 0, 3)
    np.testing.assert_array_equal(new[0], np.arange(float(length)) + 100)


def test_a_file_written_over_in_place_is_read_anew_alone(tmp_path):
    source = _corpus(tmp_path / "corpus", 0.0)
    np.testing.assert_array_equal(source.read(0, 0, 2), [0, 1])
    (file,) = (tmp_path / "corpus").glob("*.bin")
    file.write_bytes(np.full(10, 7, np.float32).tobytes())
    anew = TimeMoeFolderSource(tmp_path / "corpus")
    np.testing.assert_array_equal(anew.read(0, 0, 2), [7, 7])
    with pytest.raises(DataError, match="open it again"):
        source.read(0, 0, 2)
