"""Made-up series: repeatable, finite, different from one another, and fast."""

import time

import numpy as np
import pytest

from timemoe_jax.data.generators.families import components as synthetic
from timemoe_jax.data.generators.families.components import SyntheticSource
from timemoe_jax.errors import DataError


def test_a_series_depends_on_seed_and_number_only():
    source = SyntheticSource(50, 300, seed=3)
    again = SyntheticSource(10, 300, seed=3)
    for i in (7, 0, 9):
        np.testing.assert_array_equal(source[i], again[i])
        np.testing.assert_array_equal(source.read(i, 20, 40), again[i][20:40])
    assert not np.array_equal(source[0], source[1])
    assert not np.array_equal(source[0], SyntheticSource(50, 300, seed=4)[0])
    assert source[0].dtype == np.float32
    assert source.name(4) == "synthetic series 4 of seed 3"


@pytest.mark.parametrize("length", [1, 2, 3, 7, 100, 1025])
def test_every_series_is_finite(length):
    for values in SyntheticSource(150, length, seed=0):
        assert values.shape == (length,)
        assert np.all(np.isfinite(values))


def test_few_series_are_constant():
    spread = [np.std(values) for values in SyntheticSource(300, 400, seed=1)]
    assert np.count_nonzero(spread) >= 298


def recurrence(values):
    """The highest autocorrelation of first differences at a lag from 4 on."""
    changes = np.diff(values.astype(np.float64))
    changes = (changes - changes.mean()) / max(changes.std(), 1e-12)
    spectrum = np.abs(np.fft.rfft(changes, 2 * len(changes))) ** 2
    return np.max((np.fft.irfft(spectrum) / len(changes))[4:200])


def test_most_series_recur_and_some_do_not():
    found = np.array([recurrence(values) for values in SyntheticSource(300, 800, seed=2)])
    assert 0.35 < np.mean(found > 0.4) < 0.9
    assert np.mean(found < 0.2) > 0.1


def test_autoregressive_noise_has_the_correlation_asked_for():
    values = synthetic.autoregressive(np.random.default_rng(0), 50_000, 0.9)
    centered = values - values.mean()
    measured = np.mean(centered[1:] * centered[:-1]) / np.mean(centered**2)
    assert abs(measured - 0.9) < 0.02
    assert abs(values.std() - 1.0) < 0.1


def test_daylight_is_dark_for_a_part_of_each_cycle():
    for seed in range(20):
        values = synthetic.daylight(np.random.default_rng(seed), 480)
        assert np.min(values) == 0.0
        assert 0.1 < np.mean(values == 0.0) < 0.9


def test_profiles_are_standardized():
    for seed in range(50):
        shape = synthetic.profile(np.random.default_rng(seed))
        assert abs(shape.mean()) < 1e-9
        assert abs(shape.std() - 1.0) < 1e-9


def test_speed():
    source = SyntheticSource(100, 1025, seed=0)
    begin = time.process_time()
    points = sum(len(values) for values in source)
    # Many times faster in fact; the bound leaves room for a busy machine and type checks.
    assert points / (time.process_time() - begin) > 5e6 / 60


@pytest.mark.parametrize(("n", "length", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_arguments(n, length, seed):
    with pytest.raises(DataError, match="at least"):
        SyntheticSource(n, length, seed)
