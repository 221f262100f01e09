"""Forecasts by the head that covers what remains, beside the published plan."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TINY

from timemoe_jax import Forecaster
from timemoe_jax.checkpoints.load import convert, load_model, save_model
from timemoe_jax.config import from_mapping
from timemoe_jax.data.config import DataConfig
from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import abstract_model, create_params
from timemoe_jax.models.decoding import decode_uncached, horizon_plan
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.decoding import decode
from timemoe_jax.models.time_moe.published import TimeMoeFormat
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig, TrainConfig

COVERING = dataclasses.replace(
    TINY, use_dense=True, forecast_plan="covering", max_position_embeddings=128
)
FITTING = dataclasses.replace(COVERING, forecast_plan="fitting")


@pytest.mark.parametrize(
    ("horizon", "plan"),
    [
        *((1, (1,)), (2, (8,)), (8, (8,)), (9, (32,)), (33, (64,)), (64, (64,)), (65, (64, 1))),
        *((70, (64, 8)), (96, (64, 32)), (97, (64, 64)), (720, (64,) * 11 + (32,))),
    ],
)
def test_the_covering_plan_by_hand(horizon, plan):
    assert horizon_plan(horizon, (1, 8, 32, 64), "covering") == plan


def test_one_long_head_covers_every_published_horizon():
    heads = (1, 8, 32, 64, 720)
    plans = [horizon_plan(h, heads, "covering") for h in (1, 24, 64, 96, 192, 336, 720, 721)]
    assert plans == [(1,), (32,), (64,), (720,), (720,), (720,), (720,), (720, 1)]


@given(st.integers(1, 2000), st.sets(st.integers(1, 100), min_size=1, max_size=5))
def test_the_covering_plan_is_as_short_as_can_be(horizon, lengths):
    heads = tuple(sorted(lengths))
    plan = horizon_plan(horizon, heads, "covering")
    longest = heads[-1]
    assert len(plan) == math.ceil(horizon / longest)
    assert set(plan[:-1]) <= {longest}
    remaining = horizon - sum(plan[:-1])
    assert plan[-1] == min(p for p in heads if p >= remaining)
    assert horizon_plan(horizon, heads) == horizon_plan(horizon, heads, "fitting")


@pytest.fixture(scope="module")
def params():
    return create_params(COVERING, seed=2)


@pytest.fixture(scope="module")
def series():
    return np.random.default_rng(3).normal(size=(3, 17)).astype(np.float32)


def forecast(config, params, x, horizon, how=decode, mask=None):
    mask = np.ones(x.shape, bool) if mask is None else mask
    graph, _ = abstract_model(config)

    def run(params, x, mask):
        return how(nnx.merge(graph, params), x, mask, horizon)

    return jax.jit(run)(params, jnp.asarray(x), jnp.asarray(mask))


def test_a_forecast_is_the_first_values_of_its_head(params, series):
    """Of heads 1 and 4: three values are the first of four, not three times the next."""
    model = nnx.merge(abstract_model(COVERING)[0], params)
    last = model(jnp.asarray(series)).predictions[4][:, -1]
    for horizon in (2, 3, 4):
        found = forecast(COVERING, params, series, horizon).point
        np.testing.assert_allclose(found, last[:, :horizon], rtol=0, atol=1e-5)
    published = forecast(FITTING, params, series, 3).point
    assert np.abs(published - last[:, :3]).max() > 1e-2


@pytest.mark.parametrize("horizon", [6, 9, 15])
def test_the_cache_is_a_shortcut(params, series, horizon):
    """Over steps of one head, of both, and under a scan."""
    mask = np.random.default_rng(4).random(series.shape) < 0.8
    mask[:, -1] = True
    cached = forecast(COVERING, params, series, horizon, mask=mask).point
    uncached = forecast(COVERING, params, series, horizon, decode_uncached, mask).point
    assert cached.shape == (3, horizon)
    np.testing.assert_allclose(cached, uncached, rtol=0, atol=1e-5)


def test_quantiles_are_cut_as_points_are(series):
    config = dataclasses.replace(COVERING, quantile_levels=(0.1, 0.5, 0.9))
    params = create_params(config, seed=2)
    three, four = (forecast(config, params, series, h) for h in (3, 4))
    assert three.quantiles.shape == (3, 3, 3)
    np.testing.assert_allclose(three.quantiles, four.quantiles[:, :3], rtol=0, atol=1e-5)


def test_a_shorter_forecast_is_the_beginning_of_a_longer_one(params, series):
    forecaster = Forecaster(COVERING, params)
    longest = forecaster.forecast(series, 4).point
    for horizon in (2, 3):
        found = forecaster.forecast(series, horizon).point
        np.testing.assert_allclose(found, longest[:, :horizon], rtol=0, atol=1e-5)
    published = Forecaster(FITTING, params)
    first, longest = (published.forecast(series, h).point for h in (3, 4))
    assert np.abs(first - longest[:, :3]).max() > 1e-2


# What a model is saved and read as


def test_a_checkpoint_keeps_its_plan(params, series, tmp_path):
    save_model(tmp_path / "model", COVERING, params)
    forecaster = Forecaster.from_pretrained(tmp_path / "model")
    assert forecaster.config.forecast_plan == "covering"
    expected = Forecaster(COVERING, params).forecast(series, 3).point
    np.testing.assert_array_equal(forecaster.forecast(series, 3).point, expected)


def test_a_config_that_names_no_plan_has_the_published_one():
    older = dataclasses.asdict(FITTING)
    del older["forecast_plan"]
    assert from_mapping(TimeMoeConfig, older) == FITTING
    assert TimeMoeConfig().forecast_plan == "fitting"


def test_the_published_format_has_no_such_plan(params, tmp_path):
    message = "forecast_plan is 'covering'; the published implementation has 'fitting'"
    with pytest.raises(ConfigError, match=message):
        TimeMoeFormat().write_config(COVERING)
    save_model(tmp_path / "model", COVERING, params)
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "model", tmp_path / "out", to_safetensors=True)
    assert not (tmp_path / "out").exists()
    published = TimeMoeFormat().write_config(FITTING)
    assert not {"forecast_plan", "default_context"} & set(published)
    config, unknown = TimeMoeFormat().read_config({**published, "forecast_plan": "covering"})
    assert (config.forecast_plan, unknown) == ("fitting", ["forecast_plan"])


def test_a_run_goes_on_under_another_plan(tmp_path, capsys):
    """Resumed, and as the start of another: the parameters mean the same."""

    def run(folder, plan, **fields):
        config = RunConfig(
            model=dataclasses.replace(FITTING, forecast_plan=plan),
            data=DataConfig(synthetic_sequences=5, synthetic_length=60, length=16),
            train=TrainConfig(batch_size=4, log_every=1, **fields),
        )
        return train.run(config, tmp_path / folder, jax.devices()[:1])

    first = run("first", "fitting", num_steps=1)
    again = run("first", "covering", num_steps=1)
    assert (
        "resuming with a changed config: model had forecast_plan fitting" in capsys.readouterr().out
    )
    for a, b in zip(*(jax.tree.leaves(r.state.params) for r in (first, again)), strict=True):
        np.testing.assert_array_equal(a, b)
    tuned = run("tuned", "covering", num_steps=1, init_from=str(tmp_path / "first"))
    assert tuned.step == 1
    assert load_model(tmp_path / "tuned").config.forecast_plan == "covering"
