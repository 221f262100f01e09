"""A forecaster as a method: its quantiles, contexts too short for them, and windows of one past."""

import numpy as np
import pytest

from timemoe_jax import Forecaster
from timemoe_jax.evaluation.methods.model import TOO_SHORT, ModelMethod
from timemoe_jax.evaluation.methods.running import run_method

LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture(scope="module")
def forecaster(golden):
    return Forecaster.from_pretrained(golden)


def test_points_and_intervals_are_those_of_the_forecaster(forecaster):
    rng = np.random.default_rng(0)
    series = rng.normal(size=60).cumsum()
    # The last two are too short for intervals, and without anything observed.
    contexts = [series, series[:50], series, series[:9], np.full(30, np.nan)]
    calls = []

    class Counting:
        config, usable_context = forecaster.config, forecaster.usable_context

        def forecast(self, inputs, *rest, **options):
            calls.append(len(inputs))
            return forecaster.forecast(inputs, *rest, **options)

    method = ModelMethod(Counting(), "tiny", context_length=24)
    found = method.predict(contexts, 4, 7, LEVELS)
    assert calls == [2, 1]  # the third is the first again
    own = forecaster.forecast(contexts[:2], 4, context_length=24, quantile_levels=LEVELS)
    np.testing.assert_allclose(found.point[:2], own.point, rtol=1e-6)
    np.testing.assert_allclose(found.quantiles[:2], own.quantiles, rtol=1e-6)
    np.testing.assert_array_equal(found.quantiles[2], found.quantiles[0])
    assert set(found.failures) == {3, 4}
    assert set(found.failures.values()) == {TOO_SHORT}
    alone = forecaster.forecast(contexts[3], 4, context_length=24)
    np.testing.assert_allclose(found.point[3], alone.point[0], rtol=1e-5)
    # Nine points have two changes over a season of seven.
    changes = series[7:9] - series[:2]
    around = np.quantile(changes, LEVELS)
    np.testing.assert_allclose(found.quantiles[3], found.point[3][:, None] + around, rtol=1e-6)
    assert np.isnan(found.point[4]).all()
    run = run_method(method, contexts[3:], 4, 7, LEVELS)
    assert np.isfinite(run.forecast.quantiles).all()
    assert set(run.forecast.failures) == {0, 1}


def test_the_median_of_heads_is_the_point():
    """And an error of one context is its own."""

    class Heads:
        class config:  # noqa: N801
            quantile_levels = LEVELS

        def forecast(self, inputs, horizon, quantile_levels):
            from timemoe_jax.errors import DataError

            if any(len(each) == 3 for each in inputs):
                raise DataError("a context of three points")
            point = np.array([[each[-1]] * horizon for each in inputs])

            class Out:
                pass

            out = Out()
            out.point, out.quantiles = point + 100, point[..., None] + np.arange(3.0)
            return out

    contexts = [np.arange(5.0), np.arange(3.0), np.arange(4.0)]
    found = ModelMethod(Heads()).predict(contexts, 2, 1, LEVELS)
    np.testing.assert_array_equal(found.point[[0, 2], 0], [5, 4])
    assert found.failures == {1: "a context of three points"}
    assert np.isnan(found.point[1]).all()
