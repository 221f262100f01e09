"""Forecasts are timed beside a peer: a program of another interpreter, here of stand-ins."""

import dataclasses
import json
import os
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from processes import run_here
from tiny_model import TINY, TRACKER

from benchmarks import forecast
from benchmarks.measure import PublishedError, PublishedProcess
from benchmarks.peers import FEEDBACKS
from benchmarks.published import forecast_values
from timemoe_jax.checkpoints.bundle import write_bundle
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import abstract_model, create_params

PEER = "chronos-bolt-tiny"
# Where the peer itself is there; its fixture hides it from all tests but one.
REAL = tuple(os.environ.get(f"TIMEMOE_PEER_{part}", "") for part in ("PYTHON", "CODE"))
PATCHES = dataclasses.replace(
    TINY,
    patch_size=16,
    use_dense=True,
    horizon_lengths=(32, 192),
    forecast_plan="covering",
    quantile_levels=(0.1, 0.5, 0.9),
    point_heads=False,
)
# What the peer's program asks of PyTorch, on arrays of NumPy.
TORCH = """
import contextlib
import types
import numpy as np

class Tensor(np.ndarray):
    def numpy(self):
        return np.asarray(self)

__version__ = "stand-in"
float32 = "float32"
backends = types.SimpleNamespace(cuda=types.SimpleNamespace(matmul=types.SimpleNamespace()))
inference_mode = contextlib.nullcontext
set_num_threads = manual_seed = lambda number: None
get_num_threads = lambda: 1
from_numpy = lambda array: array.view(Tensor)
cat = lambda tensors, dim: np.concatenate(tensors, axis=dim).view(Tensor)
"""
# Each pass counts on from the last point, a thousandth off for each point it was asked for.
BOLT = """
import numpy as np
from torch import Tensor

class ChronosBoltModelForForecasting:
    def __init__(self, config):
        self.config = config
    def to(self, device, dtype):
        assert (device, dtype) == ("cpu", "float32")
        return self
    def eval(self):
        return self

class ChronosBoltPipeline:
    def __init__(self, model):
        self.model_prediction_length = model.config["chronos_config"]["prediction_length"]
    def predict_quantiles(self, values, prediction_length):
        steps = np.arange(prediction_length) + 1 + prediction_length / 1000
        median = (values[:, -1:] + steps).view(Tensor)
        return np.repeat(median[..., None], 9, axis=2), median
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    for program in ("PUBLISHED", "PEER"):
        for part in ("PYTHON", "CODE"):
            monkeypatch.delenv(f"TIMEMOE_{program}_{part}", raising=False)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as a benchmark sets it
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture
def checkout(tmp_path):
    """A checkout of the peer's code, which lies in `src`, with all that it imports."""
    code = tmp_path / "checkout"
    package = code / "src" / "chronos"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "chronos_bolt.py").write_text(BOLT)
    (package.parent / "torch.py").write_text(TORCH)
    (package.parent / "transformers.py").write_text('T5Config, __version__ = dict, "stand-in"\n')
    return str(code)


def script(*flags: str):
    shape = ("--contexts", "64", "--horizons", "96", "--batches", "2")
    return run_here("benchmarks/forecast.py", "--quick", "--rounds", "1", *shape, *flags)


def test_a_peer_goes_on_from_its_quantiles_or_from_its_median(checkout):
    """By its own way one call says all 96 points; by the median two calls of 64 do, of which the
    second counts on from the last point of the first.
    """
    asked = {"model": PEER, "batch": 3, "context": 16, "horizon": 96, "dtype": "float32"}
    last = forecast_values(3, 16)[:, -1:]
    steps = np.arange(1, 97)
    off = {"quantiles": np.full(96, 0.096), "median": np.where(steps <= 64, 0.064, 0.128)}
    process = PublishedProcess(sys.executable, checkout, "peer", PEER)
    try:
        for feedback, expected in off.items():
            answer = process.ask("forecast", feedback=feedback, **asked)
            np.testing.assert_allclose(answer["forecast"], last + steps + expected, atol=1e-4)
            assert len(process.side("forecast", "cpu")(2)) == 2
        with pytest.raises(PublishedError, match="KeyError"):
            process.ask("forecast", feedback="median", **(asked | {"model": "other"}))
    finally:
        process.close()


@pytest.mark.parametrize(
    ("flags", "name"), [((), PEER), (("--peer-feedback", "median"), f"{PEER} median")]
)
def test_a_checkpoint_beside_a_peer(checkout, tmp_path, flags, name):
    folder, path = tmp_path / "patches", tmp_path / "rows.json"
    write_bundle(folder, PATCHES, create_params(PATCHES, seed=0))
    side = ("--peer", PEER, "--peer-python", sys.executable, "--peer-code", checkout, *flags)
    done = script("--checkpoint", str(folder), "--clock", "cpu", "--json", str(path), *side)
    assert done.returncode == 0, done.stderr
    assert f"{name}: torch stand-in, transformers stand-in, cpu, 1 threads" in done.stdout
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    ours, theirs = "64+96 x2 float32 patches", f"{name} 64+96 x2 float32 patches"
    beside = {row for row in rows if rows[row]["reference"] == name}
    more = ("series", "throughput", "peak memory", "first call")
    assert beside == {ours, *(f"{ours} {what}" for what in more)}
    for what in ("", " peak memory", " first call"):
        ratio = rows[ours + what]["value"] / rows[theirs + what]["value"]
        assert rows[ours + what]["ratio"] == pytest.approx(ratio)
    assert rows[f"{ours} series"]["ratio"] == pytest.approx(1 / rows[ours]["ratio"])
    assert f"{ours} difference" not in rows


def test_without_the_peer_a_line_says_so():
    done = script("--peer", PEER)
    assert done.returncode == 0, done.stderr
    message = f"{PEER}: skipped, --peer-python and --peer-code are not both given"
    assert message in done.stdout


def test_beside_a_peer_ours_forecasts_as_its_users_call_it(monkeypatch, tmp_path):
    """Standardized, with the quantiles of its heads; beside the published one raw, without."""
    folder = tmp_path / "patches"
    write_bundle(folder, PATCHES, create_params(PATCHES, seed=0))
    work = forecast.Work(str(folder), 64, 96, 2, "float32")
    calls = []

    def called(self, values, horizon, context, **options):
        calls.append(options)
        return SimpleNamespace(point=np.zeros((2, 96)))

    monkeypatch.setattr(Forecaster, "forecast", called)
    for peer in (True, False):
        assert forecast.Ours(work, folder, peer)().shape == (2, 96)
    assert calls == [
        {"normalize": "instance", "quantile_levels": (0.1, 0.5, 0.9)},
        {"normalize": "none"},
    ]


def test_the_work_of_patches_and_quantiles_by_hand(tmp_path):
    """96 points are one read of the head of 192, after 4 patches; 200 are two, and what is read
    between them is 12 patches more.
    """
    folder = tmp_path / "patches"
    write_bundle(folder, PATCHES, create_params(PATCHES, seed=0))
    params = abstract_model(PATCHES)[1]
    total, heads = (
        sum(p.size for p in jax.tree.leaves(held)) for held in (params, params["quantile_heads"])
    )
    body = total - heads
    for horizon, read, points in ((96, 4, 192), (200, 4 + 12, 192 + 32)):
        scores = sum(2 * 2 * 16 * tokens for tokens in range(1, read + 1))
        one = 2 * body * read + scores + 2 * 16 * 3 * points
        assert forecast.Work(str(folder), 64, horizon, 1, "float32").flops == one
        assert forecast.Work(str(folder), 50, horizon, 2, "float32").flops == 2 * one


def test_what_is_no_checkpoint_is_said(tmp_path):
    done = script("--checkpoint", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "--checkpoint: " in done.stderr
    assert "does not exist" in done.stderr
    write_bundle(tmp_path / "tracker", TRACKER, create_params(TRACKER, seed=0))
    done = script("--checkpoint", str(tmp_path / "tracker"))
    assert done.returncode == 2
    assert "must hold a Time-MoE, but" in done.stderr


@pytest.mark.skipif(not all(REAL), reason="needs $TIMEMOE_PEER_PYTHON and $TIMEMOE_PEER_CODE")
def test_the_class_of_the_peer():
    """It takes the geometry, and the two ways to go on agree within the first pass alone."""
    asked = {"model": PEER, "batch": 2, "context": 64, "horizon": 96, "dtype": "float32"}
    process = PublishedProcess(*REAL, "peer", PEER)
    try:
        quantiles, median = (
            np.array(process.ask("forecast", feedback=feedback, **asked)["forecast"])
            for feedback in FEEDBACKS
        )
    finally:
        process.close()
    np.testing.assert_allclose(quantiles[:, :64], median[:, :64], rtol=1e-4, atol=1e-4)
    assert np.abs(quantiles[:, 64:] - median[:, 64:]).max() > 1e-3
