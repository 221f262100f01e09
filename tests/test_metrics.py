import math

import numpy as np
import pytest

from timemoe_jax.errors import DataError
from timemoe_jax.metrics import ErrorSums


def test_means_over_batches_of_different_sizes():
    sums = ErrorSums()
    sums.update(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]]))
    sums.update(np.array([[3.0], [3.0]]), np.array([[3.0], [-1.0]]))
    # Errors 1, -2, 0, 4.
    assert sums.count == 4
    assert sums.mse == (1 + 4 + 0 + 16) / 4
    assert sums.mae == (1 + 2 + 0 + 4) / 4


def test_nothing_yet():
    assert math.isnan(ErrorSums().mse)
    assert math.isnan(ErrorSums().mae)


def test_float32_errors_are_taken_and_summed_in_float64():
    forecast = np.full((1, 1), np.float32(16777216.0))
    sums = ErrorSums()
    sums.update(forecast, np.full((1, 1), np.float32(0.25)))
    assert sums.mae == 16777215.75  # float32 has no such number
    many = ErrorSums()
    for _ in range(3):
        many.update(np.full((1000, 100), np.float32(0.1)), np.zeros((1000, 100), np.float32))
    assert many.mae == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_inputs_stay_as_they_are():
    forecast, target = np.array([[1.0, 2.0]]), np.array([[3.0, 5.0]])
    ErrorSums().update(forecast, target)
    np.testing.assert_array_equal(forecast, [[1, 2]])
    np.testing.assert_array_equal(target, [[3, 5]])


def test_values_that_are_not_finite():
    sums = ErrorSums()
    good = np.zeros((2, 2))
    with pytest.raises(DataError, match="2 of the 4 values of forecast are NaN or infinite"):
        sums.update(np.array([[np.nan, 1.0], [np.inf, 0.0]]), good)
    with pytest.raises(DataError, match="1 of the 4 values of target"):
        sums.update(good, np.array([[np.nan, 1.0], [0.0, 0.0]]))
    with pytest.raises(DataError, match="overflows"):
        sums.update(np.full((1, 1), 1e308), np.full((1, 1), -1e308))
    assert (sums.count, sums.squared, sums.absolute) == (0, 0, 0)
