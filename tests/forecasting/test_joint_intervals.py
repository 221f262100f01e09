"""Intervals and backtests of joint models: their errors are those of joint forecasts."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from timemoe_jax import Forecaster
from timemoe_jax.forecasting.contexts import Beside
from timemoe_jax.forecasting.intervals.rolling import Together, rolling_forecasts
from timemoe_jax.models.base import Family, ModelConfig, ModelOutput, create_params, register
from timemoe_jax.models.decoding import Decoded

LEVELS = (0.1, 0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class LeadConfig(ModelConfig):
    family: str = "joint_lead"
    horizon_lengths: tuple[int, ...] = (1,)


class LeadModel(nnx.Module):
    """Forecasts each variate by what the next one said last, and the last one by itself."""

    def __init__(self, config):
        self.config, self.weight = config, nnx.Param(jnp.ones(1))

    def __call__(self, x, mask=None, segments=None):
        present = jnp.any(mask, axis=-1)
        after = jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)
        there = jnp.concatenate([present[:, 1:], present[:, -1:]], axis=1)
        hidden = (jnp.where(there[..., None], after, x) * self.weight[...])[..., None]
        return ModelOutput({1: hidden}, hidden)


class LeadFamily(Family):
    name, config, joint = "joint_lead", LeadConfig, True

    def make(self, config, rngs):
        return LeadModel(config)

    def decode_known(self, model, x, mask, horizon):
        """The first variate follows what is known of the next ones at the same point."""
        known = jnp.where(mask[..., -horizon:], x[..., -horizon:], 0.0)
        return Decoded(jnp.broadcast_to(known.sum(axis=1, keepdims=True), known.shape), None)


register(LeadFamily())


@functools.cache
def forecaster():
    config = LeadConfig(max_position_embeddings=40)
    return Forecaster(config, create_params(config, 0), disk_cache=False)


def coupled(items, length=140, noise=0.3):
    """Of two variates the first says, under noise, what the second said a point before."""
    rng = np.random.default_rng(0)
    leader = rng.normal(size=(items, length + 1))
    follower = leader[:, :-1] + noise * rng.normal(size=(items, length))
    return np.stack([follower, leader[:, 1:]], axis=1)


def widths(out):
    return (out.quantiles[..., -1] - out.quantiles[..., 0])[..., 0]


def test_the_intervals_of_coupled_variates_are_those_of_their_joint_errors():
    """They are narrower than those of the variates alone, and hold about their share."""
    x = coupled(items=40)
    past, truth = x[..., :-1], x[:, 0, -1]
    joint = forecaster().forecast(past, 1, quantile_levels=LEVELS)
    alone = forecaster().forecast(past[:, 0], 1, quantile_levels=LEVELS)
    follower = joint.quantiles[:, 0, 0]
    assert np.median(widths(joint)[:, 0]) < 0.5 * np.median(widths(alone))
    assert 0.65 <= np.mean((follower[:, 0] <= truth) & (truth <= follower[:, 2])) <= 0.95
    leader = forecaster().forecast(past[:, 1], 1, quantile_levels=LEVELS)
    np.testing.assert_allclose(joint.quantiles[:, 1], leader.quantiles, rtol=1e-4, atol=1e-5)


def test_other_items_calibrate_by_their_joint_errors_and_backtests_have_them():
    x = coupled(items=6)
    found = [
        forecaster().forecast(x[:1, :, -30:], 1, quantile_levels=LEVELS, calibration=others)
        for others in (x[1:], x[1:].reshape(-1, x.shape[-1]))
    ]
    assert widths(found[0])[0, 0] < 0.8 * widths(found[1])[0, 0]
    scores = [forecaster().backtest(v, 1, folds=20).series[0].model.mae for v in (x, x[:, 0])]
    assert scores[0] < 0.5 * scores[1]


def test_intervals_know_what_was_known_ahead_of_earlier_forecasts():
    """The target follows a plan, which nothing else tells."""
    rng = np.random.default_rng(1)
    plan = rng.normal(size=141)
    times = pd.date_range("2024-01-01", periods=141, freq="D")
    table = pd.DataFrame({"ds": times, "y": plan + 0.1 * rng.normal(size=141), "plan": plan})
    options = {"target": "y", "quantile_levels": LEVELS}
    known = forecaster().predict_df(
        table[:140], 1, future_df=table[["ds", "plan"]][140:], **options
    )
    apart = forecaster().predict_df(table[["ds", "y"]][:140], 1, **options)
    width = [float(each["0.9"].iloc[0] - each["0.1"].iloc[0]) for each in (known, apart)]
    assert width[0] < 0.3 * width[1]


@pytest.mark.parametrize("gap", [0, 2])
def test_an_origin_is_forecast_from_what_was_there_of_all(gap):
    """Of series that end with missing values as many are hidden, and covariates are cut alike."""
    t = np.arange(20.0)
    short = t.copy()
    short[20 - gap :] = np.nan
    ahead = np.arange(20.0, 23)
    beside = (
        Beside(100 + t, 7, "plan", "plan", "b", ahead),
        Beside(200 + t, 7, "past", "past", "b", None),
        Beside(300 + t, 0, "other", "other", "a", None),
    )
    seen = []

    def predict(contexts, horizon):
        seen.extend(contexts)
        return np.arange(len(contexts) * horizon, dtype=float).reshape(-1, horizon)

    origins = [np.array([9]), np.array([9, 12]), np.array([12])]
    gaps, names = [0, 0, gap], ["a", "b0", "b1"]
    together = Together([0, 7, 7], beside)
    rest = (5, gaps, names, together)
    out = rolling_forecasts([t, 10 + t, short], origins, (3,), predict, *rest)
    windows = {n: [c for c in seen if c.item == n] for n in {c.item for c in seen}}
    assert [len(w) for w in windows.values()] == [2, 4, 4]  # item 0 at 9, item 7 at 9 and at 12
    last = [(c.values[-1], c.gap) for c in windows[2]]
    assert last == [(21, 0), (11 - gap, gap), (111, 0), (211, 0)]
    np.testing.assert_array_equal(windows[2][2].ahead, [112, 113, 114])
    rows = [
        next(i for i, c in enumerate(seen) if c is w) for w in (*windows[1][:1], *windows[2][:2])
    ]
    found = [out[1][0], out[1][1], out[2][0]]
    np.testing.assert_array_equal(found, [np.arange(3) + 3 * row for row in rows])
