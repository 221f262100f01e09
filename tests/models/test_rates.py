"""Long contexts at two rates: by hand with a forecast that is a formula, and of a model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TWO_BLOCKS

from timemoe_jax.errors import ConfigError
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import create_params
from timemoe_jax.models.decoding import Decoded
from timemoe_jax.models.time_moe.rates import LEAST, SLOW, decode_at_rates

NEAR, RATE, HORIZON = 8, 4, 6
SLOWER = dataclasses.replace(
    TWO_BLOCKS,
    use_dense=True,
    patch_size=4,
    horizon_lengths=(4, 8),
    quantile_levels=(0.1, 0.5, 0.9),
    point_heads=False,
    default_context=NEAR,
    slower=RATE,
    max_position_embeddings=64,
)


def last_value(x: jax.Array, mask: jax.Array, horizon: int) -> Decoded:
    """The last value, and it less and more a half and one; a mean is the last one's own."""
    point = jnp.repeat(x[:, -1:], horizon, axis=1)
    return Decoded(point, point[..., None] + jnp.array([-0.5, 0.0, 1.0]))


def at_rates(x, mask=None) -> Decoded:
    mask = jnp.ones(x.shape, bool) if mask is None else jnp.asarray(mask)
    return decode_at_rates(last_value, jnp.asarray(x), mask, HORIZON, NEAR, RATE)


def test_half_of_the_way_to_what_is_forecast_of_means():
    x = np.random.default_rng(0).normal(size=(2, NEAR * LEAST + 3)).astype(np.float32)
    said = at_rates(x)
    slow = x[:, -4:].mean(axis=1)
    point = x[:, -1] + SLOW * (slow - x[:, -1])
    np.testing.assert_allclose(said.point, np.repeat(point[:, None], HORIZON, 1), rtol=1e-5)
    means = x[:, -24:].reshape(2, 6, 4).mean(axis=2)
    means = np.concatenate([x[:, :3].mean(axis=1, keepdims=True), means], axis=1)
    spread = (1 - SLOW) * x[:, -NEAR:].std(axis=1) + SLOW * means.std(axis=1)
    quantiles = point[:, None] + spread[:, None] * [-0.5, 0.0, 1.0]
    np.testing.assert_allclose(said.quantiles[:, -1], quantiles, rtol=1e-4)


def test_only_rows_that_are_long_enough_are_read_slowly():
    """One that begins late in a padded batch is forecast as alone."""
    x = np.random.default_rng(1).normal(size=(3, NEAR * LEAST)).astype(np.float32)
    mask = np.ones(x.shape, bool)
    mask[1, :1] = mask[2, : NEAR + 3] = False
    said = at_rates(np.where(mask, x, 1e6), mask)
    alone = at_rates(x[1:, -NEAR:])
    np.testing.assert_allclose(said.point[1:], alone.point, rtol=1e-5)
    # What is read no further than `near` is not scaled once more.
    np.testing.assert_allclose(at_rates(x[:, -NEAR:]).quantiles[:, 0, 2], x[:, -1] + 1, rtol=1e-5)
    assert (np.asarray(said.point[0]) != np.asarray(last_value(x, mask, HORIZON).point[0])).all()


def test_missing_points_are_not_part_of_means():
    x = np.ones((1, NEAR * LEAST), np.float32)
    mask = np.ones(x.shape, bool)
    mask[0, [-2, -3, 5, 6]] = False
    said = at_rates(np.where(mask, x, 1e6), mask)
    np.testing.assert_allclose(said.point, 1.0, rtol=1e-5)


def test_a_model_forecasts_alike_whatever_the_batch_and_the_scale():
    forecaster = Forecaster(SLOWER, create_params(SLOWER, 1))
    assert "context at most 32 points" in repr(forecaster)
    rng = np.random.default_rng(2)
    long, short = rng.normal(size=60), rng.normal(size=20)
    together = forecaster.forecast([long, short], HORIZON)
    for i, series in enumerate((long, short)):
        alone = forecaster.forecast([series], HORIZON).point[0]
        np.testing.assert_allclose(together.point[i], alone, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        forecaster.forecast([5 * long + 3], HORIZON).point[0], 5 * together.point[0] + 3, rtol=1e-3
    )
    near = forecaster.forecast([long], HORIZON, context_length=NEAR).point[0]
    assert np.abs(near - together.point[0]).max() > 1e-3
    # Points before the 32 that are read change nothing.
    np.testing.assert_array_equal(
        forecaster.forecast([long[-32:]], HORIZON).point[0],
        forecaster.forecast([long], HORIZON).point[0],
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"default_context": 0}, "slower is 4, which takes a default_context .it is 0"),
        ({"point_heads": True}, "without point_heads"),
        ({"slower": 0}, "slower must be positive"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SLOWER, **fields)
