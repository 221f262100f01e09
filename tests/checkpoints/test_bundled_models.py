"""The models that come with the library: their files, and that forecasts are worth having."""

import jax
import numpy as np
import pytest

from timemoe_jax import Forecaster
from timemoe_jax.checkpoints import bundled
from timemoe_jax.checkpoints.bundle import read_verified
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.data.samples import load_sample
from timemoe_jax.forecasting.scoring.baselines import seasonal_naive

CONTEXT, SEASON = 512, 24
HORIZONS = (24, 96, 192)
ORIGINS = 16  # evenly spread over the last four months of the sample


@pytest.fixture(scope="module", params=bundled.NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def forecaster(name) -> Forecaster:
    return Forecaster.from_pretrained(name)


def test_the_default_is_one_of_them():
    assert bundled.DEFAULT in bundled.NAMES
    assert set(bundled.NEVER_SEEN) == set(bundled.NAMES)


def test_its_checksums_are_right(name):
    read_verified(bundled.find(name))


def test_it_is_small(name):
    sizes = {path.name: path.stat().st_size for path in bundled.find(name).iterdir()}
    assert max(sizes.values()) <= 5_000_000
    assert sum(sizes.values()) <= 20_000_000


def test_it_is_loaded_by_name(tmp_path, monkeypatch, name, forecaster):
    monkeypatch.chdir(tmp_path)
    model = load_model(name)
    assert model.source == str(bundled.find(name))
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


@pytest.mark.parametrize("length", [8, 30])
def test_the_default_has_intervals_from_eight_points_on(length):
    """Of its own: no errors of earlier forecasts are needed."""
    series = 10 + np.sin(np.arange(length))
    out = Forecaster.from_pretrained(bundled.DEFAULT).forecast(
        series, 6, quantile_levels=[0.1, 0.5, 0.9]
    )
    low, middle, high = out.quantiles[0].T
    assert np.isfinite(out.quantiles).all()
    assert (low < middle).all()
    assert (middle < high).all()
    np.testing.assert_array_equal(out.point[0], middle)


def test_the_default_sees_a_yearly_season_in_ten_years():
    """Of sales by the month that grow: half of the error of the last value, or less."""
    t = np.arange(132)
    sales = (100 + 2 * t) * (1 + 0.2 * np.sin(2 * np.pi * t / 12))
    context, target = sales[:120], sales[120:]
    ours = Forecaster.from_pretrained(bundled.DEFAULT).forecast(context, 12).point[0]
    assert np.abs(ours - target).mean() < 0.5 * np.abs(context[-1] - target).mean()
