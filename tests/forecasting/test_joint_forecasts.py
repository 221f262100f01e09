"""Forecasts of a joint model: what depends on what, arrays and data frames, covariates."""

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest
from tiny_model import TINY, TRACKER

from timemoe_jax import DataError, Forecaster
from timemoe_jax.checkpoints.load import save_model
from timemoe_jax.cli.main import main
from timemoe_jax.forecasting.pictures import plot_series
from timemoe_jax.models.base import create_params

T, H = 45, 6  # no whole number of patches, and more than one patch to forecast


@functools.cache
def forecaster(mixing="all"):
    config = dataclasses.replace(TRACKER, mixing=mixing)
    params = create_params(config, seed=2)
    params["blocks"]["attention"]["other"][...] += np.array([0.3, -0.2])
    return Forecaster(config, params)


def values(seed=0, items=2, variates=3):
    return np.cumsum(np.random.default_rng(seed).normal(size=(items, variates, T)), axis=-1) + 50


def test_a_permutation_of_the_variates_permutes_a_joint_forecast():
    """In the units of each; and another mixing is another forecast."""
    x, order = values(), [1, 2, 0]
    for mixing in ("graph", "all"):
        out = forecaster(mixing).forecast(x, H)
        assert out.joint
        assert not out.channelwise
        assert out.point.shape == (2, 3, H)
        permuted = forecaster(mixing).forecast(x[:, order], H).point
        np.testing.assert_allclose(permuted, out.point[:, order], rtol=1e-4)
    scaled = forecaster().forecast(x * [[[1e3], [1.0], [1e-2]]], H).point
    np.testing.assert_allclose(scaled / [[[1e3], [1.0], [1e-2]]], out.point, rtol=1e-4)


def test_series_of_other_items_and_padding_change_nothing():
    """Items are forecast alone, among longer ones, and with variates more, as they are together."""
    x = values()
    out = forecaster("graph").forecast(x, H).point
    alone = forecaster("graph").forecast(x[1:], H, batch_size=1).point
    np.testing.assert_allclose(alone, out[1:], rtol=1e-4)
    early = np.concatenate([np.full((2, 3, 40), np.nan), x], axis=-1)  # longer, but nothing there
    early[0, :, :40] = 50 + values(5)[0, :, :40]
    np.testing.assert_allclose(forecaster("graph").forecast(early, H).point[1], out[1], rtol=1e-4)


def test_missing_values_and_variates_that_start_late_or_end_early():
    x = values()
    x[0, 1, 10:14], x[0, 2, :30], x[1, 0, -5:] = np.nan, np.nan, np.nan
    out = forecaster().forecast(x, H)
    assert np.isfinite(out.point).all()
    np.testing.assert_array_equal(out.missing, [[0, 4, 30], [5, 0, 0]])
    longer = np.concatenate([np.full((2, 3, 7), np.nan), x], axis=-1)
    np.testing.assert_allclose(forecaster().forecast(longer, H).point, out.point, rtol=1e-4)
    others = x.copy()
    others[0, 0] += np.linspace(0, 9, T)
    changed = forecaster().forecast(others, H).point
    assert not np.allclose(changed[0, 1:], out.point[0, 1:], rtol=1e-3)  # they read it


def frame(x):
    """One item as a wide frame, with a daily index."""
    times = pd.date_range("2024-01-01", periods=T, freq="D")
    return pd.DataFrame({"ds": times, **{f"v{i}": row for i, row in enumerate(x)}})


def test_wide_and_long_frames_are_forecast_as_arrays_are():
    """The columns of a wide frame together, and the targets of each id of a long one."""
    x = values()
    expected = forecaster().forecast(x, H).point
    wide = forecaster().predict_df(frame(x[0]), H)
    assert wide.attrs["joint"]
    np.testing.assert_allclose(wide["predictions"], expected[0].ravel(), rtol=1e-4)
    long = pd.concat([frame(x[i]).assign(unique_id=f"s{i}") for i in (0, 1)])
    out = forecaster().predict_df(long, H, target=["v0", "v1", "v2"])
    assert list(out["target_name"].unique()) == ["v0", "v1", "v2"]
    np.testing.assert_allclose(out["predictions"], expected.ravel(), rtol=1e-4)


def test_past_covariates_are_further_variates():
    """As in an array that holds them, but they are not in the result."""
    x = values()[0]
    options = {"target": ["v0", "v1"], "past_covariates": "v2"}
    out = forecaster().predict_df(frame(x), H, **options)
    assert len(out) == 2 * H
    expected = forecaster().forecast(x[None], H).point[0, :2]
    np.testing.assert_allclose(out["predictions"], expected.ravel(), rtol=1e-4)
    adjusted = forecaster().predict_df(frame(x), H, covariates_as="adjustment", **options)
    assert not np.allclose(adjusted["predictions"], out["predictions"], rtol=1e-4)


def test_the_commands_read_the_variates_of_a_table_together(tmp_path, capsys):
    """A forecast with covariates is that of `predict_df`; a picture shows the links."""
    x, table = values()[0], tmp_path / "table.csv"
    frame(x).to_csv(table, index=False)
    future(x).to_csv(tmp_path / "plan.csv", index=False)
    model = forecaster("graph")
    save_model(tmp_path / "model", model.config, model.engine.params)
    asked = [str(table), "--checkpoint", str(tmp_path / "model")]
    out = ["--out", str(tmp_path / "out.csv"), "--levels", "", "--digits", "6"]
    main(["forecast", *asked, "--horizon", str(H), "--future", str(tmp_path / "plan.csv"), *out])
    expected = model.predict_df(frame(x), H, future_df=future(x))["predictions"]
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")["predictions"], expected, 1e-4)
    main(["plot", *asked, "--graph", str(tmp_path / "links.png")])
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'links.png'}\n")
    assert (tmp_path / "links.png").stat().st_size > 5_000


def future(x, changed=0.0):
    times = pd.date_range("2024-02-15", periods=H, freq="D")
    return pd.DataFrame({"ds": times, "v2": x[2, -1] + np.arange(H) + changed})


def test_what_is_known_ahead_is_read_at_the_points_to_forecast():
    x = values()[0]
    options = {"target": ["v0", "v1"], "quantile_levels": None}
    out = forecaster().predict_df(frame(x), H, future_df=future(x), **options)
    assert len(out) == 2 * H
    # A later part of the future has a say in a later part of the forecast alone: in that of the
    # second patch, which is read after the first is forecast.
    later = np.where(np.arange(H) >= 4, 30.0, 0.0)
    second = forecaster().predict_df(frame(x), H, future_df=future(x, later), **options)
    by_step = [f["predictions"].to_numpy().reshape(2, H) for f in (out, second)]
    np.testing.assert_allclose(by_step[0][:, :4], by_step[1][:, :4], rtol=1e-6)
    assert not np.allclose(by_step[0][:, 4:], by_step[1][:, 4:], rtol=1e-4)
    swings = 30 * np.cos(np.pi * np.arange(H))
    first = forecaster().predict_df(frame(x), H, future_df=future(x, swings), **options)
    assert not np.allclose(first["predictions"][:4], out["predictions"][:4], rtol=5e-5)
    # Where the targets end early, covariates and their future are still where they were.
    gap = frame(x)
    gap.loc[T - 3 :, ["v0", "v1"]] = np.nan
    assert np.isfinite(
        forecaster().predict_df(gap, H, future_df=future(x), **options)["predictions"]
    ).all()


def test_the_units_of_a_covariate_change_nothing():
    """Nor where it is the same throughout the context: it is scaled by all of its past then."""
    x = values()[0]
    x[2, 10:] = 3.0
    for context in (None, 20):
        options = {"target": ["v0", "v1"], "context_length": context}
        found = []
        for unit in (1.0, 1000.0):
            past, ahead = frame(x).assign(v2=unit * x[2]), future(x)
            ahead["v2"] *= unit
            found.append(forecaster().predict_df(past, H, future_df=ahead, **options))
        np.testing.assert_allclose(*(each["predictions"] for each in found), rtol=1e-5)


def test_covariates_of_a_model_that_reads_series_apart_cannot_be_variates():
    config = dataclasses.replace(TINY, max_position_embeddings=64)
    single = Forecaster(config, create_params(config, seed=0))
    with pytest.raises(DataError, match="the model reads each series by itself"):
        single.predict_df(frame(values()[0]), H, past_covariates="v2", covariates_as="variates")
    with pytest.raises(DataError, match="covariates_as must be one of auto, adjustment, variates"):
        forecaster().predict_df(frame(values()[0]), H, covariates_as="columns")


def test_a_picture_shows_the_joint_forecast(tmp_path):
    """Drawn from what `forecast` says of the item as a whole."""
    x, outs = values()[0], []

    def forecast(inputs, names):
        outs.append(forecaster().forecast(inputs, H, names=names))
        return outs[-1]

    path = plot_series(tmp_path / "joint.png", forecast, list(x), ["a", "b", "c"], items=[0, 0, 0])
    assert path.stat().st_size > 5000
    assert outs[0].joint
    expected = forecaster().forecast(x[None], H).point[0]
    np.testing.assert_allclose(outs[0].point, expected, rtol=1e-4)
