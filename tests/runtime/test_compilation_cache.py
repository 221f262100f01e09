"""Compiled programs on disk: made by one process, found by the next."""

import os
import subprocess
import sys

from places import ROOT

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
