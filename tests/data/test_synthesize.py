"""`timemoe data synthesize`: the same bits whatever the workers, and whole or not at all."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from timemoe_jax.cli import main as cli
from timemoe_jax.data.corpus import synthesize as synthesis
from timemoe_jax.data.corpus.synthesize import BLOCK, synthesize
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource
from timemoe_jax.data.generators.generated_source import draw_block
from timemoe_jax.data.generators.registry import FAMILIES, make_generator
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import DataError

QUIET = {"progress": False, "workers": 1}


def digests(folder: Path) -> dict[str, str]:
    """Every file by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def values_of(folder: Path) -> list[np.ndarray]:
    return list(TimeMoeFolderSource(folder))


def test_it_writes_every_family_in_the_layout(tmp_path):
    manifest = synthesize(tmp_path / "out", 50_000, length=64, **QUIET)
    assert list(manifest["families"]) == list(FAMILIES)
    source = open_source(str(tmp_path / "out" / "synthetic"))
    assert int(source.lengths.sum()) == manifest["points"] >= 50_000
    assert len(source) == manifest["sequences"]
    assert manifest["points"] - 50_000 < 64 * len(FAMILIES)
    for name, family in manifest["families"].items():
        series = values_of(tmp_path / "out" / family["folder"])
        assert len(series) == family["sequences"]
        assert all(len(values) == 64 and np.isfinite(values).all() for values in series)
        assert family["parameters"] == json.loads(json.dumps(make_generator(name).parameters()))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest


def test_bits_do_not_depend_on_the_workers(tmp_path):
    choice = {"families": "arima,gaussian_process,chaos:2", "length": 40, "seed": 3}
    for workers in (1, 3):
        synthesize(tmp_path / str(workers), 20_000, **choice, workers=workers, progress=False)
    one = digests(tmp_path / "1")
    assert one == digests(tmp_path / "3")
    assert len(one) == 1 + 3 * 2
    synthesize(tmp_path / "other", 20_000, **(choice | {"seed": 4}), **QUIET)
    assert not set(one.values()) & set(digests(tmp_path / "other").values()) - {
        digest for name, digest in one.items() if name.endswith("meta.json")
    }


def test_a_series_does_not_depend_on_how_many_others_there_are(tmp_path):
    synthesize(tmp_path / "few", 3000, families="ets", length=30, **QUIET)
    synthesize(tmp_path / "many", 9000, families="arima,ets", length=30, **QUIET)
    few = values_of(tmp_path / "few" / "synthetic" / "ets")
    many = values_of(tmp_path / "many" / "synthetic" / "ets")
    assert len(few) == 100 > BLOCK
    assert len(many) == 150
    np.testing.assert_array_equal(few, many[:100])


def test_weights_decide_the_shares(tmp_path):
    manifest = synthesize(tmp_path / "a", 4000, families="ets:3,arima", length=10, **QUIET)
    assert manifest["families"]["ets"]["sequences"] == 300
    assert manifest["families"]["arima"]["sequences"] == 100
    assert manifest["families"]["ets"]["weight"] == 3.0


def test_real_series_are_mixed(tmp_path):
    real = ArraySource([np.arange(1.0, 500.0)])
    manifest = synthesize(tmp_path / "a", 400, families="tsmixup", length=20, real=real, **QUIET)
    assert manifest["families"]["tsmixup"]["parameters"]["source"]["points"] == 499
    assert all(np.all(np.diff(v) > 0) for v in values_of(tmp_path / "a/synthetic/tsmixup"))


def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def fails_in_the_third_block(*arguments):
        drawn.append(arguments)
        if len(drawn) == 3:
            raise OSError(28, "No space left on device")
        return draw_block(*arguments)

    monkeypatch.setattr(synthesis, "draw_block", fails_in_the_third_block)
    with pytest.raises(DataError, match="No space left on device"):
        synthesize(tmp_path / "out", 20_000, families="ets", length=20, **QUIET)
    assert len(drawn) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").write_text("mine")
    for out in (tmp_path / "used", tmp_path / "used" / "notes"):
        with pytest.raises(DataError, match="already exists"):
            synthesize(out, 100, length=10, **QUIET)
    assert (tmp_path / "used" / "notes").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    synthesize(tmp_path / "empty", 100, families="ets", length=10, **QUIET)
    assert (tmp_path / "empty" / "manifest.json").exists()


@pytest.mark.parametrize(
    "changes", [{"points": 0}, {"length": 1}, {"seed": -1}, {"workers": 0}, {"families": "arma"}]
)
def test_wrong_arguments(tmp_path, changes):
    arguments = {"points": 100, "length": 10} | QUIET | changes
    with pytest.raises(DataError, match=r"at least|unknown"):
        synthesize(tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def start(out: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "timemoe_jax.cli.main", "data", "synthesize", str(out), *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def workers_of(pid: int) -> list[int]:
    """The processes that it started and that draw, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and "spawn_main" in (path / "cmdline").read_text():
                found.append(int(path.name))
        except (OSError, IndexError):
            continue
    return found


def wait_for(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_it_leaves_no_corpus_and_no_workers(tmp_path):
    """The next run says what is left, and is not disturbed by it."""
    out = tmp_path / "corpus"
    flags = ("--points", "1000000000", "--length", "512", "--workers", "2")
    process = start(out, *flags)
    try:
        written = lambda: any(tmp_path.glob(".corpus.*.partial/synthetic/*/data-*.part"))  # noqa: E731
        assert wait_for(written), process.stderr
        workers = workers_of(process.pid)
        assert len(workers) == 2
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert not out.exists()
    assert wait_for(lambda: not any(alive(pid) for pid in workers))
    with pytest.warns(UserWarning, match="left from a run that was killed"):
        synthesize(out, 1000, families="ets", length=20, **QUIET)
    assert len(open_source(str(out / "synthetic"))) == 50


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_worker_that_is_killed_is_said_and_nothing_is_written(tmp_path):
    process = start(tmp_path / "corpus", "--points", "1000000000", "--workers", "2")
    try:
        assert wait_for(lambda: len(workers_of(process.pid)) == 2)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2
    assert (
        "error: a worker process was ended, perhaps for lack of memory; nothing was written"
        in err.splitlines()[-1]
    )
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path, capsys):
    arguments = ["--points", "1000", "--families", "ets", "--length", "10", "--workers", "1"]
    cli.main(["data", "synthesize", str(tmp_path / "out"), *arguments])
    assert "wrote 100 series of 1,000 points" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "synthesize", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2
    assert "already exists" in capsys.readouterr().err
    real = tmp_path / "real.npy"
    np.save(real, np.arange(1.0, 100.0)[None])
    arguments[3] = "tsmixup"
    cli.main(["data", "synthesize", str(tmp_path / "mixed"), *arguments, "--real", str(real)])
    assert len(open_source(str(tmp_path / "mixed" / "synthetic"))) == 100
