"""The validator of series, and the statistics that normalize them."""

import numpy as np
import pytest

from timemoe_jax.data.series import location_and_scale, validate_series
from timemoe_jax.errors import DataError


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([1, 2, 3], [[1.0, 2.0, 3.0]]),
        (np.arange(3, dtype=np.int16), [[0.0, 1.0, 2.0]]),
        ([[1.0, 2.0], [3.0]], [[1.0, 2.0], [3.0]]),
        (np.ones((2, 2), np.float32), [[1.0, 1.0], [1.0, 1.0]]),
        ([1, None, 3], [[1.0, np.nan, 3.0]]),
        ([True, False], [[1.0, 0.0]]),
        (7.0 * np.ones(1), [[7.0]]),
    ],
)
def test_accepted_inputs(inputs, expected):
    series = validate_series(inputs)
    assert len(series) == len(expected)
    for got, wanted in zip(series, expected, strict=True):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no series"),
        (np.zeros((0, 5)), "no series"),
        ([[]], "series 0 is empty"),
        ([[1.0], []], "series 1 is empty"),
        (np.full(4, np.nan), "series 0 has no observed value: all 4"),
        ([[1.0], [0.0, -np.inf]], "series 1 is infinite at position 1"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        ([np.zeros((2, 2)), np.zeros(3)], r"series 0 must be one-dimensional"),
        (np.array(["a", "b"]), "must hold numbers"),
        ([object(), 1.0], "must hold numbers"),
        (np.array([1 + 2j]), "complex"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
    ],
)
def test_refused_inputs(inputs, message):
    with pytest.raises(DataError, match=message):
        validate_series(inputs)


def test_names_stand_in_errors():
    with pytest.raises(DataError, match=r"^load\.csv: column 'x' is empty"):
        validate_series([[]], ["load.csv: column 'x'"])


def test_the_input_is_not_modified():
    array = np.array([1.0, np.nan, 3.0])
    before = array.copy()
    validate_series(array)
    np.testing.assert_array_equal(array, before)


def test_location_and_scale_by_hand():
    rows = np.array([[1.0, np.nan, 3.0], [5.0, 5.0, 5.0]])
    mean, std = location_and_scale(rows)
    np.testing.assert_array_equal(mean, [2.0, 5.0])
    np.testing.assert_array_equal(std, [1.0, 0.0])


@pytest.mark.parametrize("level", [0.1, 1e20, -1e-20, 1e300])
def test_a_constant_has_no_deviation_at_all(level):
    mean, std = location_and_scale(np.full((1, 977), level))
    assert mean[0] == level
    assert std[0] == 0.0


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1.0, 1e20, 1e300])
def test_scale_survives_squares_that_overflow(scale):
    values = np.random.default_rng(0).normal(size=(1, 50))
    mean, std = location_and_scale(values * scale)
    np.testing.assert_allclose(mean, values.mean() * scale, rtol=1e-12)
    np.testing.assert_allclose(std, values.std() * scale, rtol=1e-12)
