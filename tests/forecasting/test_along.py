"""All origins of a series in few passes of a causal model."""

import dataclasses

import numpy as np
import pytest
from tiny_model import TINY

from timemoe_jax import Forecaster
from timemoe_jax.forecasting.contexts import Context
from timemoe_jax.forecasting.intervals.along import Along, forecasts_along, passes
from timemoe_jax.forecasting.intervals.conformal import conformal_offsets
from timemoe_jax.forecasting.intervals.rolling import first_observed, rolling_forecasts
from timemoe_jax.models.base import create_params

HEAD = 12


def follow(values, gap, horizon):
    """The last observed value, and how many observed ones there are beside the step."""
    return values[-1] + np.arange(gap + 1, gap + horizon + 1) + 1000 * np.isnan(values).sum()


def predict(contexts, horizon):
    return np.array([follow(c.values, c.gap, horizon) for c in contexts])


def read(contexts, wanted, horizon=3):
    found = []
    for context, points in zip(contexts, wanted, strict=True):
        rows = [
            follow(context.values[: at + 1], gap, horizon)
            if gap + horizon <= HEAD
            else np.full(horizon, np.nan)
            for at, gap in points
        ]
        found.append(np.array(rows))
    return found


ALONG = Along(read, lambda gap: gap < 8)


def test_one_pass_serves_a_short_series():
    origins = np.arange(288, 577, 5)
    (only,) = passes(origins, 512, 0, 0)
    assert (only.begin, only.end) == (origins[-1] - 512, origins[-1])
    assert only.chosen == list(range(len(origins)))


@pytest.mark.parametrize("gap", [0, 3])
def test_every_origin_is_read_once_with_half_a_context_or_all_there_is(gap):
    rng = np.random.default_rng(0)
    for length in (1, 2, 7, 64, 512):
        origins = np.unique(rng.integers(20, 900, 59))
        found = passes(origins, length, gap, 0)
        assert sorted(k for part in found for k in part.chosen) == list(range(len(origins)))
        for part in found:
            assert part.end - part.begin <= length
            held = origins[part.chosen] - gap - part.begin
            assert part.begin == 0 or held.min() * 3 >= length or len(part.chosen) == 1
            assert part.end == origins[part.chosen[-1]] - gap


@pytest.mark.parametrize("gap", [0, 2])
def test_the_same_as_a_forecast_from_each_origin(gap):
    rng = np.random.default_rng(1)
    series = [rng.normal(size=n).cumsum() for n in (60, 90)]
    series[1][[5, 40, 41, 88]] = np.nan
    origins = [np.array([30, 31, 50, 57]), np.array([41, 42, 43, 80])]
    gaps, names = [gap, gap], ["a", "b"]
    along = forecasts_along(series, origins, (3,), ALONG, 100, gaps, names)
    rolled = rolling_forecasts(series, origins, (3,), predict, 100, gaps, names)
    for one, other in zip(along, rolled, strict=True):
        np.testing.assert_allclose(one, other)


def test_where_the_head_does_not_reach_there_is_no_forecast():
    series = np.arange(60.0)
    series[30:45] = np.nan
    (found,) = forecasts_along([series], [np.array([30, 38, 45])], (3,), ALONG, 100, [0], ["a"])
    assert np.isfinite(found[:2]).all()
    assert np.isnan(found[2]).all()
    assert first_observed(series) == 0


def test_origins_span_at_most_one_and_a_half_contexts():
    series = np.random.default_rng(2).normal(size=3000).cumsum()
    found = conformal_offsets([series], 3, [0.1, 0.9], predict, 64, along=ALONG)
    assert found.origins[0][-1] - found.origins[0][0] < 96
    assert (found.counts == 59).all()


def test_a_series_whose_gap_is_too_long_is_forecast_origin_by_origin():
    series = [np.arange(100.0), np.append(np.arange(100.0), [np.nan] * 9)]
    together = conformal_offsets(series, 3, [0.1, 0.9], predict, 64, along=ALONG)
    alone = conformal_offsets(series[1:], 3, [0.1, 0.9], predict, 64, along=ALONG)
    np.testing.assert_array_equal(together.offsets[1], alone.offsets[0])
    assert np.isfinite(together.residuals[1]).all()


@pytest.fixture(scope="module")
def covering():
    config = dataclasses.replace(
        TINY, horizon_lengths=(1, 8), forecast_plan="covering", max_position_embeddings=256
    )
    return Forecaster(config, create_params(config, seed=3))


def test_a_model_says_along_a_series_what_it_forecasts(covering):
    """Without standardization the two are the same computation."""
    series = np.random.default_rng(3).normal(size=60)
    settings = covering.engine.settings(3, 64, "none", "auto", False)
    wanted = [(20, 0), (41, 2), (59, 0)]
    (said,) = covering.engine.along([Context.of(series, 64, "a")], [wanted], settings)
    for (at, gap), row in zip(wanted, said.point, strict=True):
        seen = np.append(series[: at + 1], [np.nan] * gap)
        alone = covering.forecast(seen, 3, context_length=64, normalize="none").point[0]
        np.testing.assert_allclose(row, alone, atol=1e-5)


def test_intervals_take_few_passes(covering):
    calls, call = [], covering.engine._call

    def counted(compute, x, mask, steps):
        calls.append(x.shape)
        return call(compute, x, mask, steps)

    covering.engine._call = counted
    series = np.random.default_rng(4).normal(size=(4, 120))
    out = covering.forecast(series, 5, context_length=64, quantile_levels=[0.1, 0.9])
    point, *others = calls
    assert sum(np.prod(shape) for shape in others) <= 4 * np.prod(point)
    assert (out.quantiles[..., 0] < out.quantiles[..., 1]).all()
    np.testing.assert_allclose(
        covering.forecast(series[2], 5, context_length=64, quantile_levels=[0.1, 0.9]).quantiles[0],
        out.quantiles[2],
        atol=1e-5,
    )
