"""Windows: where they lie, and what they hold."""

import copy
import warnings

import numpy as np
import pytest

from timemoe_jax.data.pipeline import standardize
from timemoe_jax.data.pipeline.standardize import Statistics, statistics
from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import DataError


def lengths(*values):
    return np.array(values, np.int64)


def located(index, *numbers):
    sequences, starts = index.locate(np.array(numbers, np.int64))
    return list(zip(sequences.tolist(), starts.tolist(), strict=True))


def all_of(index):
    return located(index, *range(len(index)))


def test_windows_by_hand():
    # Windows of 4 + 1 points. Of 9 points: 0..4 and 4..8. Of 12: 0, 4; from 8 only 4 points.
    index = WindowIndex(lengths(9, 0, 3, 1, 12, 5, 2), 4)
    assert all_of(index) == [(0, 0), (0, 4), (2, 0), (4, 0), (4, 4), (5, 0), (6, 0)]
    assert index.skipped_sequences == 2
    assert index.padded_points == 2 + 3
    assert index.uncovered_points == 1 + 3


@pytest.mark.parametrize(("stride", "starts"), [(1, 6), (3, 2), (5, 2), (6, 1), (100, 1)])
def test_stride(stride, starts):
    index = WindowIndex(lengths(10), 4, stride)
    assert all_of(index) == [(0, k * stride) for k in range(starts)]
    covered = {p for k in range(starts) for p in range(k * stride, k * stride + 5)}
    assert index.uncovered_points == 10 - len(covered)


def test_the_published_window_count_of_etth1():
    # Seven columns of the 8640 hours of the training part.
    assert len(WindowIndex(lengths(*[8640] * 7), 1024)) == 56


def test_many_sequences_take_little_memory():
    index = WindowIndex(np.full(1000, 10**12), 1, 1)
    assert len(index) == 1000 * (10**12 - 1)
    assert located(index, len(index) - 1) == [(999, 10**12 - 2)]


def test_bounds():
    index = WindowIndex(lengths(9), 4)
    for i in (-1, 2):
        with pytest.raises(IndexError):
            located(index, i)
    assert len(WindowIndex(lengths(), 4)) == 0
    for length, stride in ((0, 1), (4, 0)):
        with pytest.raises(DataError, match="at least 1"):
            WindowIndex(lengths(9), length, stride)


def source_of(*series, length=4, stride=None):
    source = ArraySource([np.asarray(s, np.float64) for s in series])
    return WindowSource(source, WindowIndex(source.lengths, length, stride))


def test_values_by_hand():
    # Mean 3, population variance (4 + 0 + 4) / 3.
    source = source_of([1.0, 3.0, np.nan, 5.0], [np.inf, 7.0, 7.0])
    z = 2.0 / np.sqrt(8.0 / 3.0)
    window = source[0]
    np.testing.assert_allclose(window["values"], [-z, 0.0, 0.0, z, 0.0], rtol=1e-6)
    assert window["mask"].tolist() == [True, True, False, True, False]
    assert window["sequence"] == 0
    assert (window["values"].dtype, window["mask"].dtype) == (np.float32, bool)
    assert window["sequence"].dtype == np.int64
    # A constant series is centered only.
    assert source[1]["values"].tolist() == [0.0] * 5
    assert source[1]["mask"].tolist() == [False, True, True, False, False]


def test_a_window_is_scaled_by_its_whole_series_whatever_was_read_before():
    series = np.arange(9.0) ** 2
    source = source_of(series)
    expected = (series - series.mean()) / series.std()
    for order in ((0, 1, 0), (1, 0, 1)):
        fresh = copy.deepcopy(source)
        for i in order:
            np.testing.assert_allclose(
                fresh[i]["values"], expected[4 * i : 4 * i + 5], rtol=1e-6, atol=1e-7
            )


@pytest.mark.parametrize("values", [[np.nan] * 6, [np.nan, 3.0, np.nan], [np.inf, -np.inf, 1.0]])
def test_a_series_with_fewer_than_two_values_never_contributes(values):
    source = source_of(values)
    for i in [*range(len(source)), 0]:
        assert not source[i]["mask"].any()
        assert not source[i]["values"].any()


@pytest.mark.parametrize("unit", [1e-300, 1e-20, 1e20, 1e150, 1.7e308])
def test_magnitude_does_not_matter(unit):
    small = np.random.default_rng(0).uniform(-1.0, 1.0, 9)
    small[:2] = -1.0, 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled = source_of(small * unit)[1]["values"]
        offset = source_of(np.array([unit, unit, np.nan, unit]))[0]
    expected = (small - small.mean()) / small.std()
    if unit < 1e308:
        np.testing.assert_allclose(scaled, expected[4:], rtol=1e-4)
    assert np.all(np.isfinite(scaled))
    assert np.all(offset["values"] == 0.0)


@pytest.mark.parametrize("constant", [0.1, 1e9 + 0.1, -1e-20, 123456.789])
def test_a_constant_series_has_no_spread(constant):
    assert statistics(np.full(1001, constant)) == Statistics(1001, constant, 0.0)


def test_statistics_of_parts(monkeypatch):
    series = np.random.default_rng(1).normal(5.0, 3.0, 101)
    series[10:14] = np.nan
    whole = source_of(series, length=10)
    monkeypatch.setattr(standardize, "_CHUNK_POINTS", 4)
    parts = source_of(series, length=10)
    for i in (3, 3, 0):
        np.testing.assert_allclose(parts[i]["values"], whole[i]["values"], rtol=1e-5, atol=1e-6)


def test_an_index_of_other_series():
    with pytest.raises(DataError, match="made for 2 series, but the source has 1"):
        WindowSource(ArraySource([np.ones(5)]), WindowIndex(lengths(5, 5), 4))


def test_cache_smaller_than_the_source(monkeypatch):
    series = [np.arange(5.0) * (k + 1) + k for k in range(7)]
    full = source_of(*series)
    monkeypatch.setattr(standardize, "_CACHE_SLOTS", 3)
    small = source_of(*series)
    for i in (0, 3, 6, 0, 0, 4, 1, 4, 6):
        np.testing.assert_array_equal(small[i]["values"], full[i]["values"])
