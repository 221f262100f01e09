"""Exponential smoothing beside a model: computed by hand, and exact on what it is made for."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TWO_BLOCKS

from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import create_params
from timemoe_jax.nn import smoothing


def row(values: np.ndarray, length: int) -> tuple[jnp.ndarray, jnp.ndarray]:
    """One series at the end of a row, NaN where a point is missing: x [1, T] and its mask."""
    full = np.full((1, length), np.nan)
    full[0, length - len(values) :] = values
    mask = np.isfinite(full)
    return jnp.asarray(np.where(mask, full, 9.0), jnp.float32), jnp.asarray(mask)


@pytest.mark.parametrize("season", [4, 7, 12, 24])
def test_a_season_on_a_line_goes_on(season):
    """Steady growth, and the shape of each season where it has none of its own, are found."""
    shape = np.random.default_rng(season).normal(0, 1, season)
    shape -= np.polyval(np.polyfit(np.arange(season), shape, 1), np.arange(season))
    times = np.arange(4 * season + 30)
    values = 0.1 * times + shape[times % season]
    said = smoothing.smooth(*row(values[:-30], 128), 30)
    np.testing.assert_allclose(said[0], values[-30:], atol=1e-3)


def test_the_best_level_by_hand():
    """Of 0, 1, ..., 0 the level that follows least errs least; seven points have no season."""
    values = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    level = 0.0
    for value in values[1:]:
        level += 0.2 * (value - level)
    np.testing.assert_allclose(smoothing.smooth(*row(values, 16), 3)[0], level, atol=1e-5)


def test_a_walk_keeps_its_last_value_and_its_mean_growth():
    """Steps of one size apart from growth: the level that follows closely is the best."""
    values = np.cumsum(np.random.default_rng(3).choice([-1.0, 1.0], 40))
    said = np.asarray(smoothing.smooth(*row(values, 64), 2))[0]
    slope = np.polyfit(np.arange(40), values, 1)[0]
    np.testing.assert_allclose(said, values[-1] + slope * np.array([1, 2]), atol=1e-4)


def test_missing_points_and_padding_are_not_read():
    values = np.arange(40) * 0.5
    values[[3, 10, 11, 25]] = np.nan
    for length in (40, 64, 200):
        x, mask = row(values, length)
        np.testing.assert_allclose(
            smoothing.smooth(x, mask, 4)[0], 20 + np.arange(4) / 2, atol=1e-4
        )
        x = jnp.where(mask, x, -1e6)
        np.testing.assert_allclose(
            smoothing.smooth(x, mask, 4)[0], 20 + np.arange(4) / 2, atol=1e-4
        )


@pytest.mark.parametrize("values", [[2.0], [2.0, 3.0], [5.0] * 30])
def test_next_to_nothing_is_forecast_by_what_is_there(values):
    said = np.asarray(smoothing.smooth(*row(np.array(values), 32), 3))
    assert np.isfinite(said).all()
    slope = values[-1] - values[-2] if len(values) == 2 else 0.0
    np.testing.assert_allclose(said[0], values[-1] + slope * np.array([1, 2, 3]), atol=1e-5)


def test_it_is_of_the_series_whatever_its_scale():
    values = np.random.default_rng(1).normal(0, 1, 50).cumsum()
    said = np.asarray(smoothing.smooth(*row(values, 64), 6))
    moved = np.asarray(smoothing.smooth(*row(-3 * values + 5, 64), 6))
    np.testing.assert_allclose(moved, -3 * said + 5, atol=1e-4)


def test_the_weight_is_half_of_few_points_and_nothing_of_many():
    weights = np.asarray(smoothing.weights_of(jnp.array([20, 72, 144, 512, 4096]), 12))
    few = np.minimum((72 / np.array([20.0, 72, 144])) ** 2, 1) - (72 / 512) ** 2
    near = 1 - np.arange(1, 13) / (np.array([[20], [72], [144]]) / 2)
    np.testing.assert_allclose(weights[:3], 0.5 * few[:, None] * np.maximum(near, 0), rtol=1e-5)
    assert (weights[3:] == 0).all()
    assert (weights[0, 10:] == 0).all()
    assert (weights[0, :9] > 0).all()


def test_quantiles_go_with_the_point_and_stay_in_order():
    x, mask = row(np.arange(30.0), 64)
    point = jnp.zeros((1, 4))
    quantiles = point[..., None] + jnp.array([-1.0, 0.0, 2.0])
    moved, said = map(np.asarray, smoothing.beside(point, quantiles, x, mask))
    weights = np.asarray(smoothing.weights_of(jnp.array([30]), 4))
    np.testing.assert_allclose(moved, weights * (30 + np.arange(4)), rtol=1e-4)
    np.testing.assert_allclose(said[..., 1], moved, rtol=1e-5)
    np.testing.assert_allclose(np.diff(said)[0, :, 0], np.sqrt(1 + weights[0] ** 2), rtol=1e-5)
    assert smoothing.beside(point, None, x, mask)[1] is None


def test_a_model_that_is_smoothed_forecasts_short_series_so_and_no_others():
    config = dataclasses.replace(TWO_BLOCKS, max_position_embeddings=1024)
    params = create_params(config, 0)
    plain = Forecaster(config, params)
    smoothed = Forecaster(dataclasses.replace(config, smoothed=True), params)
    values = np.random.default_rng(2).normal(5, 2, 600).cumsum()
    short, long = values[:40], values
    by_hand = np.asarray(smoothing.smooth(*row(short - short[0], 64), 3))[0] + short[0]
    weights = np.asarray(smoothing.weights_of(jnp.array([40]), 3))[0]
    before = plain.forecast(short, 3).point
    np.testing.assert_allclose(
        smoothed.forecast(short, 3).point, before + weights * (by_hand - before), rtol=1e-4
    )
    np.testing.assert_array_equal(smoothed.forecast(long, 3).point, plain.forecast(long, 3).point)
