"""The bundled model's forecasts and ten updates of the smoke run, as they were once written down.

On the machine and versions that wrote them they are the same bits; elsewhere they agree closely.
`TIMEMOE_WRITE_GOLDEN=1 pytest tests/test_golden_numbers.py` writes them anew, after a change that
is meant to change numbers.
"""

import hashlib
import json
import os
import platform
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from places import GOLDEN

from configs import smoke
from timemoe_jax import Forecaster
from timemoe_jax.config import from_mapping
from timemoe_jax.data.samples import load_sample
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.loop import Loop
from timemoe_jax.training.metrics_log import read_metrics

FOLDER = GOLDEN / "numbers"
# Where other bits may be right. Losses agree to 1e-6; forecasts agree to a part of their series'
# standard deviation, since float32 through a whole network differs that much between compilers.
TOLERANCE = 1e-6
FORECAST_TOLERANCE = 2e-5


def machine() -> str:
    """What bits may depend on: processor, versions and flags of the compiler."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    processor = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    parts = [*processor, jax.__version__, jax.lib.__version__, np.__version__]
    return hashlib.sha256("\n".join([*parts, os.environ["XLA_FLAGS"]]).encode()).hexdigest()


def forecasts() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Forecasts by name, and the standard deviation of each series that they are of."""
    forecaster = Forecaster.from_pretrained("nano")
    hourly = list(load_sample("greensboro_hourly").values.T)
    daily = list(load_sample("new_york_daily").values.T)
    plain = forecaster.forecast(hourly, horizon=96)
    ragged = [*daily, daily[0][:100]]
    short = forecaster.forecast(ragged, horizon=30, normalize="none")
    bands = forecaster.forecast(daily, horizon=8, quantile_levels=[0.1, 0.5, 0.9])
    arrays = {"hourly": plain.point, "ragged": short.point, "bands": bands.quantiles}
    series = {"hourly": hourly, "ragged": ragged, "bands": daily}
    return arrays, {name: np.array([np.nanstd(s) for s in each]) for name, each in series.items()}


def ten_updates(workdir: Path) -> tuple[dict[str, np.ndarray], str]:
    """Losses of each update, norms of the parameters after the last, and a hash of their bits."""
    config = smoke.get_config()
    config.train.num_steps = 10
    config.optimizer.warmup_steps = 5
    config.train.log_every = 1
    with mock.patch.object(Loop, "_validate"):  # which changes nothing of the updates
        run = train.run(from_mapping(RunConfig, config), workdir, devices=jax.devices()[:1])
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]
    leaves = jax.tree_util.tree_leaves_with_path(run.state.params)
    arrays = [np.asarray(leaf) for _, leaf in leaves]
    digest = hashlib.sha256()
    for (path, _), array in zip(leaves, arrays, strict=True):
        digest.update(jax.tree_util.keystr(path).encode() + array.tobytes())
    norms = np.array([np.linalg.norm(array.astype(np.float64)) for array in arrays])
    losses = np.array([row["loss"] for row in rows])
    return {"losses": losses, "parameter_norms": norms}, digest.hexdigest()


@pytest.mark.parametrize("kind", ["forecasts", "updates"])
def test_numbers_are_those_written_down(kind, tmp_path):
    digest, scales = "", {}
    if kind == "forecasts":
        arrays, scales = forecasts()
    else:
        arrays, digest = ten_updates(tmp_path)
    if os.environ.get("TIMEMOE_WRITE_GOLDEN"):
        FOLDER.mkdir(parents=True, exist_ok=True)
        np.savez(FOLDER / f"{kind}.npz", **arrays)
        content = {"machine": machine(), "parameters": digest}
        (FOLDER / f"{kind}.json").write_text(json.dumps(content, indent=2) + "\n")
    written = json.loads((FOLDER / f"{kind}.json").read_text())
    same_machine = written["machine"] == machine()
    with np.load(FOLDER / f"{kind}.npz") as golden:
        assert set(golden.files) == set(arrays)
        for name, expected in golden.items():
            if same_machine:
                np.testing.assert_array_equal(arrays[name], expected)
            elif kind == "updates":
                np.testing.assert_allclose(arrays[name], expected, rtol=TOLERANCE, atol=TOLERANCE)
            else:
                scale = scales[name].reshape(-1, *[1] * (expected.ndim - 1))
                error = (arrays[name] - expected) / scale
                np.testing.assert_allclose(error, 0.0, rtol=0, atol=FORECAST_TOLERANCE)
    if same_machine:
        assert written["parameters"] == digest
