"""Compiled programs on disk: made by one process, found by the next."""

import os
import subprocess
import sys

import jax
import pytest
from places import ROOT

from timemoe_jax.runtime import compilation_cache

PROGRAM = """
import sys
import jax
from timemoe_jax.runtime import compilation_cache

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
assert str(compilation_cache.use()) == sys.argv[1]
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

import numpy as np
from timemoe_jax import Forecaster

forecaster = Forecaster.from_pretrained("tests/golden/moe_tiny")
point = forecaster.forecast(np.sin(np.arange(60.0)), 4).point
print(sum(name == "/jax/compilation_cache/cache_hits" for name in hits), point.tolist())
"""


def run(folder):
    environment = {**os.environ, "TIMEMOE_CACHE": str(folder)}
    command = [sys.executable, "-c", PROGRAM, str(folder / "programs")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hits, point = done.stdout.split(" ", 1)
    return int(hits), point


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    cold, first = run(tmp_path)
    stored = {path.name for path in (tmp_path / "programs").iterdir()}
    warm, second = run(tmp_path)
    assert cold == 0
    assert warm > 0
    assert any("jit_run" in name for name in stored)
    # Nothing had to be compiled anew, and the forecast is the same.
    made = {path.name for path in (tmp_path / "programs").iterdir()} - stored
    assert not {name for name in made if name.endswith("-cache")}
    assert first == second


@pytest.fixture
def settings(monkeypatch):
    """What JAX was told of its cache, kept from JAX itself; at first nothing."""
    told = {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": True}
    monkeypatch.setattr(compilation_cache, "_setting", told.get)
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    return told


def test_a_folder_is_used_by_default(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("TIMEMOE_CACHE", str(tmp_path / "new"))
    assert compilation_cache.use_by_default() == tmp_path / "new" / "programs"
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "new" / "programs")


@pytest.mark.parametrize("reason", ["off", "a folder of JAX", "nothing kept", "no folder"])
def test_no_folder_where_somebody_decided_otherwise(settings, monkeypatch, tmp_path, reason):
    monkeypatch.setenv("TIMEMOE_CACHE", "off" if reason == "off" else str(tmp_path / "a"))
    if reason == "a folder of JAX":
        settings["jax_compilation_cache_dir"] = "/elsewhere"
    if reason == "nothing kept":
        settings["jax_enable_compilation_cache"] = False
    if reason == "no folder":
        (tmp_path / "a").write_text("a file")
    before = dict(settings)
    assert compilation_cache.use_by_default() is None
    assert settings == before


def test_the_programs_that_were_not_used_for_longest_are_removed(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    compilation_cache.trim(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 3
    compilation_cache.trim(tmp_path, 150)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    compilation_cache.trim(tmp_path / "absent", 150)
