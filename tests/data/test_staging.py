"""Output that appears whole, and folders that one process at a time writes to."""

import contextlib
import subprocess
import sys

import pytest
from places import ROOT

from timemoe_jax.data.corpus.staging import claimed, staged
from timemoe_jax.errors import DataError

HOLDER = """
import sys, time
from pathlib import Path
from timemoe_jax.data.corpus.staging import claimed
with claimed(Path(sys.argv[1])) as is_ours:
    print(is_ours, flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    folder = tmp_path / "new" / "folder"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    with claimed(folder) as is_ours:
        assert not is_ours
    process.kill()
    process.wait()
    process.stdout.close()
    with claimed(folder) as is_ours, claimed(folder) as again:
        assert is_ours
        assert not again
    with claimed(folder) as is_ours:
        assert is_ours


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "above" / "out"
    with staged(out) as scratch:
        (scratch / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    plain = tmp_path / "plain"
    plain.mkdir()
    assert out.stat().st_mode == plain.stat().st_mode
    with contextlib.suppress(KeyboardInterrupt), staged(tmp_path / "other") as scratch:
        (scratch / "a").write_text("1")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["above", "plain"]


def test_what_is_there_is_refused_but_for_parts_that_are_not(tmp_path):
    with staged(tmp_path / "out", ["a/b"]) as scratch:
        (scratch / "a/b").mkdir(parents=True)
        (scratch / "a/b/file").write_text("1")
    with staged(tmp_path / "out", ["a/c"]) as scratch:
        (scratch / "a/c").mkdir(parents=True)
    assert {path.name for path in (tmp_path / "out/a").iterdir()} == {"b", "c"}
    for parts, path in (((), "out"), (["a/b"], "out/a/b")):
        with (
            pytest.raises(DataError, match=f"{path} already exists"),
            staged(tmp_path / "out", parts),
        ):
            pytest.fail("the block must not run")
    assert (tmp_path / "out/a/b/file").read_text() == "1"


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"), staged(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(DataError, match=r"No space left"), staged(tmp_path / "out"):
        raise OSError(28, "No space left on device")
