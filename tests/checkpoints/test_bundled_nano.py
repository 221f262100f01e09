"""The model that comes with the library: its files, and that its forecasts are worth having."""

import jax
import numpy as np
import pytest

from timemoe_jax import Forecaster
from timemoe_jax.checkpoints import bundled
from timemoe_jax.checkpoints.bundle import read_verified
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.data.samples import load_sample
from timemoe_jax.forecasting.scoring.baselines import seasonal_naive

NAME = "nano"
CONTEXT, SEASON = 512, 24
HORIZONS = (24, 96, 192)
ORIGINS = 16  # evenly spread over the last four months of the sample


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return Forecaster.from_pretrained(NAME)


def test_its_checksums_are_right():
    read_verified(bundled.find(NAME))


def test_it_is_small():
    sizes = {path.name: path.stat().st_size for path in bundled.find(NAME).iterdir()}
    assert max(sizes.values()) <= 5_000_000
    assert sum(sizes.values()) <= 20_000_000


def test_it_is_loaded_by_name(tmp_path, monkeypatch, forecaster):
    monkeypatch.chdir(tmp_path)
    model = load_model(NAME)
    assert model.source == str(bundled.find(NAME))
    assert forecaster.digest == model.digest
    flat = [np.asarray(p) for p in jax.tree.leaves(model.params)]
    assert sum(p.size for p in flat) <= 10_000_000
    assert all(np.isfinite(p.astype(np.float32)).all() for p in flat)


@pytest.mark.parametrize("horizon", HORIZONS)
def test_it_beats_seasonal_naive(forecaster, horizon):
    """In both errors, over windows of a temperature; both read the same points."""
    series = load_sample("greensboro_hourly").values[:, 1]
    first, last = len(series) - 24 * 120, len(series) - horizon
    origins = np.linspace(first, last, ORIGINS).astype(int)
    contexts = np.stack([series[at - CONTEXT : at] for at in origins])
    targets = np.stack([series[at : at + horizon] for at in origins])
    ours = forecaster.forecast(contexts, horizon, context_length=CONTEXT).point
    theirs = seasonal_naive(contexts, horizon, SEASON)
    assert np.square(ours - targets).mean() < np.square(theirs - targets).mean()
    assert np.abs(ours - targets).mean() < np.abs(theirs - targets).mean()
