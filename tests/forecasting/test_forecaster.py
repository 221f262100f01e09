"""Forecaster: the published numbers, invariances, and every kind of bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import TINY

from timemoe_jax import ConfigError, DataError, Forecaster
from timemoe_jax.models.base import create_params

HORIZON = 9  # of a head of 8 and one of 1


@pytest.fixture(scope="module")
def forecaster(golden):
    return Forecaster.from_pretrained(golden)


@pytest.fixture(scope="module")
def expected(golden):
    return np.load(golden / "expected.npz")


def _series(seed, lengths):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=n).cumsum() for n in lengths]


def test_raw_forecasts_are_the_published_ones(forecaster, expected):
    out = forecaster.forecast(expected["input"], 96, normalize="none")
    np.testing.assert_allclose(out.point, expected["generate_96"], atol=1e-4, rtol=0)


def test_one_series_of_any_rank_is_one_row(forecaster, expected):
    x = expected["input"][0, -64:]
    flat = forecaster.forecast(x, HORIZON).point
    assert flat.shape == (1, HORIZON)
    np.testing.assert_array_equal(flat, forecaster.forecast([x], HORIZON).point)
    np.testing.assert_array_equal(flat, forecaster.forecast(x[None], HORIZON).point)


def test_the_model_gives_every_head(forecaster, expected):
    out = forecaster.model(jnp.asarray(expected["input"]))
    for p in (1, 8, 32, 64):
        assert out.predictions[p].shape == (*expected["input"].shape, p)
        np.testing.assert_allclose(out.predictions[p], expected[f"head_{p}"], atol=2e-5)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.lists(st.sampled_from([1, 9, 40]), min_size=2, max_size=4))
def test_a_series_does_not_depend_on_its_batch(forecaster, seed, lengths):
    series = _series(seed, lengths)
    together = forecaster.forecast(series, HORIZON).point
    backwards = forecaster.forecast(series[::-1], HORIZON, batch_size=2).point[::-1]
    for i, s in enumerate(series):
        alone = forecaster.forecast(s, HORIZON).point[0]
        scale = max(s.std(), 1e-9)
        np.testing.assert_allclose(together[i] / scale, alone / scale, atol=1e-5)
        np.testing.assert_allclose(backwards[i] / scale, alone / scale, atol=1e-5)


@settings(max_examples=15)
@given(
    st.integers(0, 10**6),
    st.floats(1e-3, 1e3),
    st.floats(-1e3, 1e3),
)
def test_scaling_and_shifting_go_through(forecaster, seed, scale, shift):
    (s,) = _series(seed, [60])
    point = forecaster.forecast(s, HORIZON).point
    moved = forecaster.forecast(shift + scale * s, HORIZON).point
    np.testing.assert_allclose((moved - shift) / (scale * s.std()), point / s.std(), atol=1e-5)


def test_a_mirrored_model_forecasts_up_and_down_alike():
    """Points and quantiles; the model itself does not turn with its series."""
    config = dataclasses.replace(TINY, quantile_levels=(0.1, 0.5, 0.9), mirrored=True)
    params = create_params(config, seed=1)
    series = _series(5, (30, 12))
    up = Forecaster(config, params).forecast(series, 6, quantile_levels=[0.1, 0.9])
    down = Forecaster(config, params).forecast([-s for s in series], 6, quantile_levels=[0.1, 0.9])
    np.testing.assert_allclose(up.point, -down.point, atol=1e-5)
    np.testing.assert_allclose(up.quantiles, -down.quantiles[..., ::-1], atol=1e-5)
    plain = Forecaster(dataclasses.replace(config, mirrored=False), params)
    points = plain.forecast(series, 6).point
    np.testing.assert_allclose(
        up.point, (points - plain.forecast([-s for s in series], 6).point) / 2, atol=1e-5
    )
    assert np.abs(up.point - points).max() > 1e-3


def test_leading_missing_values_are_no_values(forecaster):
    (s,) = _series(0, [60])
    padded = np.concatenate([np.full(40, np.nan), s])
    np.testing.assert_array_equal(
        forecaster.forecast(padded, HORIZON).point, forecaster.forecast(s, HORIZON).point
    )


def test_trailing_missing_values_are_forecast_too(forecaster):
    (s,) = _series(1, [60])
    gap = 4  # a size of its own: see test_gaps_share_programs for the others
    out = forecaster.forecast(np.concatenate([s, np.full(gap, np.nan)]), HORIZON - gap)
    np.testing.assert_array_equal(out.point, forecaster.forecast(s, HORIZON).point[:, gap:])
    np.testing.assert_array_equal(out.missing, [gap])


def test_a_gap_keeps_its_place_in_time(forecaster):
    (s,) = _series(2, [64])
    holed, closed = s.copy(), np.delete(s, slice(20, 30))
    holed[20:30] = np.nan
    a, b = forecaster.forecast(holed, HORIZON).point, forecaster.forecast(closed, HORIZON).point
    assert np.abs(a - b).max() > 1e-4  # a closed gap would shift the phase of every cycle


def test_only_the_context_counts(forecaster):
    (s,) = _series(3, [200])
    out = forecaster.forecast(s, HORIZON, context_length=64)
    np.testing.assert_array_equal(out.point, forecaster.forecast(s[-64:], HORIZON).point)
    assert out.context_length == 64


@pytest.mark.parametrize("level", [3.7, 0.0, 1e20, -1e-20])
def test_a_constant_is_forecast_as_itself(forecaster, level):
    out = forecaster.forecast(np.full(50, level), HORIZON)
    np.testing.assert_array_equal(out.point, np.full((1, HORIZON), level))


@pytest.mark.parametrize("scale", [1e-20, 1e20, 1e100])
def test_extreme_magnitudes(forecaster, scale):
    (s,) = _series(4, [50])
    point = forecaster.forecast(s * scale, HORIZON).point / scale
    np.testing.assert_allclose(point, forecaster.forecast(s, HORIZON).point, atol=1e-4)


def test_one_point_is_enough(forecaster):
    np.testing.assert_array_equal(forecaster.forecast([4.0], HORIZON).point, [[4.0] * HORIZON])


def test_integers(forecaster):
    s = np.arange(40) % 7
    np.testing.assert_array_equal(
        forecaster.forecast(s, HORIZON).point, forecaster.forecast(s.astype(float), HORIZON).point
    )


def test_the_input_is_not_modified(forecaster):
    s = np.array([1.0, np.nan, 3.0, 2.0])
    before = s.copy()
    forecaster.forecast(s, HORIZON)
    np.testing.assert_array_equal(s, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon must be an integer of at least 1, but is 0"),
        ({"horizon": 2.5}, "horizon must be an integer"),
        ({"horizon": True}, "horizon must be an integer"),
        ({"horizon": 4096}, "max_position_embeddings 4096"),
        ({"horizon": 97, "context_length": 4000}, "context_length 4000 .* horizon 97 exceeds"),
        ({"horizon": 1, "context_length": 0}, "context_length must be"),
        ({"horizon": 1, "batch_size": 0}, "batch_size must be"),
        ({"horizon": 1, "normalize": "robust"}, "normalize must be none or instance"),
    ],
)
def test_bad_arguments(forecaster, arguments, message):
    with pytest.raises(DataError, match=message):
        forecaster.forecast([1.0, 2.0], **arguments)


def test_a_context_without_values(forecaster):
    s = np.concatenate([np.ones(10), np.full(20, np.nan)])
    with pytest.raises(DataError, match="series 0 has no observed value among its last 16"):
        forecaster.forecast(s, 4, context_length=16)


def test_raw_values_too_large_are_named(forecaster):
    with pytest.raises(DataError, match=r"series 1 is not finite; .*'instance'"):
        forecaster.forecast([[1.0, 2.0], [1e30, 2e30]], HORIZON, normalize="none")


def test_parameters_that_are_not_finite_are_named(forecaster):
    params = jax.tree.map(lambda p: p * jnp.nan, nnx.state(forecaster.model, nnx.Param))
    broken = Forecaster(forecaster.config, params)
    broken.engine._decode = forecaster.engine._decode  # which takes any parameters
    with pytest.raises(DataError, match="parameters are not finite"):
        broken.forecast([1.0, 2.0, 3.0], HORIZON)


def test_dtypes(golden, forecaster):
    with pytest.raises(ConfigError, match="dtype must be auto, float32 or bfloat16"):
        Forecaster.from_pretrained(golden, dtype="float16")
    (s,) = _series(5, [64])
    half = Forecaster.from_pretrained(golden, dtype="bfloat16").forecast(s, HORIZON).point
    full = forecaster.forecast(s, HORIZON).point
    assert np.abs(half - full).max() < 0.05 * s.std()  # bfloat16 keeps 8 bits of each product
    assert np.abs(half - full).max() > 0
