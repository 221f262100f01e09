"""Which heads a forecast reads, and that the cache is a mere shortcut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TWO_BLOCKS as TINY

from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import abstract_model, create_params
from timemoe_jax.models.decoding import decode_as, decode_uncached, horizon_plan
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.decoding import decode

PUBLISHED = (1, 8, 32, 64)


@pytest.mark.parametrize(
    ("horizon", "plan"),
    [
        (96, (64, 32)),
        (192, (64,) * 3),
        (336, (64,) * 5 + (8, 8)),
        (720, (64,) * 11 + (8, 8)),
        (6, (1,) * 6),
        (1, (1,)),
    ],
)
def test_plan_of_published_horizons(horizon, plan):
    assert horizon_plan(horizon, PUBLISHED) == plan


@pytest.mark.parametrize(
    ("horizon", "heads", "plan"),
    [(6, (4,), (4, 4)), (3, (4, 9), (4,)), (14, (4, 9), (9, 4, 4)), (9, (4, 9), (9,))],
)
def test_plan_without_a_head_of_one_ends_past_the_horizon(horizon, heads, plan):
    assert horizon_plan(horizon, heads) == plan


@given(st.integers(1, 2000), st.sets(st.integers(1, 100), min_size=1, max_size=5))
def test_plan_is_greedy_and_ends_with_the_horizon(horizon, lengths):
    heads = tuple(sorted(lengths))
    plan = horizon_plan(horizon, heads)
    assert set(plan) <= lengths
    assert sum(plan[:-1]) < horizon <= sum(plan)
    if 1 in lengths:
        assert sum(plan) == horizon
    for i, step in enumerate(plan):
        remaining = horizon - sum(plan[:i])
        fitting = [p for p in heads if p <= remaining]
        assert step == (max(fitting) if fitting else min(heads))


class Decoder:
    """A small model's forecasts."""

    def __init__(self, config: TimeMoeConfig):
        self.params = create_params(config, seed=2)
        graph, _ = abstract_model(config)

        def run(how, params, x, mask, horizon):
            return how(nnx.merge(graph, params), x, mask, horizon)

        self._run = jax.jit(run, static_argnums=(0, 4))

    def __call__(self, x, horizon: int, mask=None, how=decode) -> np.ndarray:
        mask = np.ones(x.shape, bool) if mask is None else mask
        out = self._run(how, self.params, jnp.asarray(x), jnp.asarray(mask), horizon)
        return np.asarray(out.point)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(TINY)


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(3, 17)).astype(np.float32)


def test_left_padding_changes_nothing(decoder, series):
    """A short series in a batch of longer ones, over steps of both heads: each as if alone."""
    ragged = series.copy()
    ragged[0, :6] = np.nan
    together = decoder(ragged, 6, np.isfinite(ragged))
    alone = decoder(series[:1, 6:], 6)
    assert np.abs(alone).max() > 1e-2
    np.testing.assert_allclose(together[:1], alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(together[1:], decoder(series, 6)[1:], rtol=0, atol=1e-5)


def test_cache_with_gaps_is_a_shortcut(decoder, series):
    """Missing points inside the context stay unread at every later step."""
    mask = np.random.default_rng(4).random(series.shape) < 0.7
    mask[:, -1] = True
    cached = decoder(np.where(mask, series, np.nan), 6, mask)
    uncached = decoder(np.where(mask, series, 3.0), 6, mask, decode_uncached)
    assert cached.dtype == uncached.dtype == np.float32
    np.testing.assert_allclose(cached, uncached, rtol=0, atol=1e-5)
    assert np.abs(cached - decoder(series, 6)).max() > 1e-3


@pytest.mark.parametrize("horizon", [3, 6])
def test_a_mirrored_forecast_turns_with_its_series(series, horizon):
    """It is the mean of two forecasts, in points and quantiles; values may be missing."""
    levels = (0.1, 0.5, 0.9)
    config = dataclasses.replace(TINY, quantile_levels=levels, mirrored=True)
    params = create_params(config, seed=2)
    graph, _ = abstract_model(config)
    mask = jnp.asarray(np.random.default_rng(4).random(series.shape) < 0.8).at[:, -1].set(True)

    def plain(x, mask):
        return decode(nnx.merge(graph, params), x, mask, horizon)

    up, down = plain(jnp.asarray(series), mask), plain(-jnp.asarray(series), mask)
    both = decode_as(config, plain, jnp.asarray(series), mask)
    np.testing.assert_allclose(both.point, (up.point - down.point) / 2, atol=1e-5)
    for i, level in enumerate(levels):
        opposite = down.quantiles[..., levels.index(round(1 - level, 6))]
        expected = (up.quantiles[..., i] - opposite) / 2
        np.testing.assert_allclose(both.quantiles[..., i], expected, atol=1e-5)
    turned = decode_as(config, plain, -jnp.asarray(series), mask)
    np.testing.assert_allclose(turned.point, -both.point, atol=1e-5)
    assert np.abs(up.point + down.point).max() > 1e-3  # the model itself does not turn
    once = decode_as(dataclasses.replace(config, mirrored=False), plain, jnp.asarray(series), mask)
    np.testing.assert_array_equal(once.point, up.point)


def test_mirrored_quantiles_come_in_pairs():
    with pytest.raises(ConfigError, match="a level of 1 - a for every level a, but"):
        dataclasses.replace(TINY, quantile_levels=(0.1, 0.5), mirrored=True)


def test_forecast_is_cut_at_the_horizon(series):
    """Without a head of 1 the last step predicts more than is asked for."""
    decoder = Decoder(dataclasses.replace(TINY, horizon_lengths=(4,)))
    six = decoder(series, 6)
    assert six.shape == (3, 6)
    np.testing.assert_allclose(six, decoder(series, 6, how=decode_uncached), rtol=0, atol=1e-5)


def test_one_step_is_the_prediction_at_the_last_point(decoder, series):
    graph, _ = abstract_model(TINY)
    predictions = nnx.merge(graph, decoder.params)(jnp.asarray(series)).predictions
    np.testing.assert_allclose(decoder(series, 4), predictions[4][:, -1], rtol=0, atol=1e-5)
