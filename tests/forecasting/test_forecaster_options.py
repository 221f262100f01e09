"""What a forecaster offers beyond points: intervals, paths, channels, buckets, memory, meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from tiny_model import TINY

from timemoe_jax import ConfigError, DataError, Forecaster
from timemoe_jax.forecasting import device, engine
from timemoe_jax.models.base import create_params
from timemoe_jax.models.decoding import Decoded
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig

HORIZON = 5
LEVELS = (0.1, 0.5, 0.9)
# Of most calls, so that they need few programs of a model: mostly for 1, 2 and 64 contexts.
FEW = {"context_length": 16, "batch_size": 64}


def make(**changes):
    """A forecaster with programs of its own."""
    config = dataclasses.replace(TINY, max_position_embeddings=256, **changes)
    return Forecaster(config, parameters(config))


@functools.cache
def parameters(config):
    return create_params(config, seed=3)


def like(model, **changes):
    """A forecaster that has found nothing to fit yet, with the programs of another."""
    another = Forecaster(dataclasses.replace(model.config, **changes), model.engine.params)
    another.engine._decode = model.engine._decode
    return another


@pytest.fixture(scope="module")
def forecaster():
    return make()


@pytest.fixture(scope="module")
def with_heads():
    return make(quantile_levels=(0.1, 0.25, 0.5, 0.75, 0.9))


def walks(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=n).cumsum() for n in lengths]


# Contexts


def test_a_model_may_say_how_much_it_reads(forecaster):
    short = like(forecaster, default_context=9)
    (series,) = walks(150)
    out = short.forecast(series, HORIZON)
    assert out.context_length == 9
    np.testing.assert_array_equal(out.point, short.forecast(series[-9:], HORIZON).point)
    assert short.forecast(series, HORIZON, context_length=16).context_length == 16
    # No more than there are positions for, and without a word as much as that.
    whole = like(forecaster, default_context=256)
    assert whole.usable_context(None, HORIZON) == 256 - HORIZON
    assert forecaster.usable_context(None, HORIZON) == 256 - HORIZON
    assert short.usable_context(None, 250) == 6
    with pytest.raises(ConfigError, match=r"default_context \(300\) exceeds .* \(256\)"):
        like(forecaster, default_context=300)


# Intervals


def test_conformal_quantiles_are_around_the_point_and_ordered(forecaster):
    series = walks(120, 90)
    out = forecaster.forecast(series, HORIZON, quantile_levels=LEVELS, **FEW)
    assert out.quantiles.shape == (2, HORIZON, 3)
    assert out.quantile_levels == LEVELS
    assert out.intervals == "conformal"
    np.testing.assert_array_equal(out.quantiles[..., 1], out.point)
    assert (np.diff(out.quantiles, axis=-1) > 0).all()
    np.testing.assert_array_equal(out.point, forecaster.forecast(series, HORIZON, **FEW).point)
    alone = forecaster.forecast(series[1], HORIZON, quantile_levels=LEVELS, **FEW)
    np.testing.assert_allclose(alone.quantiles[0], out.quantiles[1], atol=1e-4)


def test_quantiles_scale_and_shift_with_the_series(forecaster):
    """Of earlier contexts from 16 points to 25, which are batches of two sizes."""
    (series,) = walks(30)
    out = forecaster.forecast(series, HORIZON, quantile_levels=LEVELS)
    moved = forecaster.forecast(70 + 3 * series, HORIZON, quantile_levels=LEVELS)
    scale = 3 * series.std()
    expected = 70 + 3 * out.quantiles
    np.testing.assert_allclose(moved.quantiles / scale, expected / scale, atol=1e-5)


def test_quantiles_of_heads(with_heads):
    series = walks(16, 9)
    out = with_heads.forecast(series, HORIZON, quantile_levels=(0.1, 0.4, 0.9))
    assert out.intervals == "heads"
    assert (np.diff(out.quantiles, axis=-1) > 0).all()
    every = with_heads.forecast(series, HORIZON, quantile_levels=with_heads.config.quantile_levels)
    np.testing.assert_array_equal(out.quantiles[..., [0, 2]], every.quantiles[..., [0, 4]])
    between = (every.quantiles[..., 1] < out.quantiles[..., 1]) & (
        out.quantiles[..., 1] < every.quantiles[..., 2]
    )
    assert between.all()
    with pytest.raises(DataError, match=r"quantile_levels holds 0.05, but the model has heads for"):
        with_heads.forecast(series, HORIZON, quantile_levels=(0.05,))
    conformal = with_heads.forecast(
        walks(100), HORIZON, quantile_levels=(0.05,), intervals="conformal", **FEW
    )
    assert conformal.intervals == "conformal"


def test_calibrated_heads(with_heads):
    """Random heads are wrong about walks; their earlier misses say by how much."""
    series = walks(200, 180)
    levels = (0.1, 0.25, 0.5)
    own, mended = (
        with_heads.forecast(series, HORIZON, quantile_levels=levels, intervals=kind, **FEW)
        for kind in ("heads", "calibrated")
    )
    assert mended.intervals == "calibrated"
    np.testing.assert_array_equal(own.point, mended.point)
    # The median stays, and the others are moved, though not their mirror images asked for.
    np.testing.assert_array_equal(own.quantiles[..., 2], mended.quantiles[..., 2])
    assert (np.abs(mended.quantiles - own.quantiles)[..., :2] > 0).all()
    assert (np.diff(mended.quantiles, axis=-1) >= 0).all()
    alone = with_heads.forecast(
        series[1], HORIZON, quantile_levels=levels, intervals="calibrated", **FEW
    )
    np.testing.assert_allclose(alone.quantiles[0], mended.quantiles[1], atol=1e-4)
    paths = with_heads.sample(series, HORIZON, num_samples=5, intervals="calibrated", **FEW)
    assert np.isfinite(paths).all()
    with pytest.raises(DataError, match="series 0"):
        with_heads.forecast(
            walks(9), HORIZON, quantile_levels=levels, intervals="calibrated", **FEW
        )


def test_heads_do_not_change_the_points(forecaster, with_heads):
    """The same seed gives the same shared parameters."""
    (series,) = walks(16)
    np.testing.assert_allclose(
        with_heads.forecast(series, HORIZON).point,
        forecaster.forecast(series, HORIZON).point,
        atol=1e-5,
    )


def test_a_calibration_set_serves_short_series(forecaster):
    (short,) = walks(20)
    with pytest.raises(DataError, match="series 0"):
        forecaster.forecast(short, HORIZON, quantile_levels=LEVELS, **FEW)
    out = forecaster.forecast(
        short, HORIZON, quantile_levels=LEVELS, calibration=walks(80, 90, 100, seed=1), **FEW
    )
    assert (np.diff(out.quantiles, axis=-1) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile_levels": (0.9, 0.1)}, "level"),
        ({"quantile_levels": (0.0, 0.5)}, "level"),
        ({"quantile_levels": LEVELS, "intervals": "magic"}, "intervals must be auto, heads"),
        ({"quantile_levels": LEVELS, "intervals": "heads"}, "trained without quantile_levels"),
        ({"quantile_levels": LEVELS, "intervals": "calibrated"}, "trained without quantile_le"),
        ({"calibration": [np.ones(50)]}, "nothing is calibrated"),
    ],
)
def test_interval_options_that_do_not_fit(forecaster, options, message):
    with pytest.raises(DataError, match=message):
        forecaster.forecast(walks(100), HORIZON, **options, **FEW)


@pytest.mark.parametrize("kind", ["forecaster", "with_heads"])
def test_paths_are_seeded_and_agree_with_the_quantiles(kind, request):
    model = request.getfixturevalue(kind)
    series = walks(120, 110)
    paths = model.sample(series, HORIZON, num_samples=400, seed=5, **FEW)
    assert paths.shape == (2, 400, HORIZON)
    np.testing.assert_array_equal(paths, model.sample(series, HORIZON, 400, seed=5, **FEW))
    assert (paths != model.sample(series, HORIZON, 400, seed=6, **FEW)).any()
    alone = model.sample(series[1], HORIZON, num_samples=400, seed=5, **FEW)
    np.testing.assert_allclose(alone[0], paths[1], atol=1e-3 * series[1].std())
    quantiles = model.forecast(series, HORIZON, quantile_levels=LEVELS, **FEW).quantiles
    below = (paths[:, :, :, None] <= quantiles[:, None]).mean(axis=1)
    # Draws of a step are spread evenly over its distribution: 1 / 400, and ties at the edges.
    np.testing.assert_allclose(below, np.broadcast_to(LEVELS, below.shape), atol=0.01)


# Channels


def test_channels_are_forecast_by_themselves(forecaster):
    stacked = np.stack(walks(*[90] * 6)).reshape(2, 3, 90)
    stacked[1, 2, 85] = np.nan
    out = forecaster.forecast(stacked, HORIZON, quantile_levels=LEVELS, **FEW)
    assert out.channelwise
    assert out.point.shape == (2, 3, HORIZON)
    assert out.quantiles.shape == (2, 3, HORIZON, 3)
    np.testing.assert_array_equal(out.missing, [[0, 0, 0], [0, 0, 1]])
    flat = forecaster.forecast(stacked.reshape(6, 90), HORIZON, quantile_levels=LEVELS, **FEW)
    assert not flat.channelwise
    np.testing.assert_array_equal(out.quantiles.reshape(6, HORIZON, 3), flat.quantiles)
    paths = forecaster.sample(stacked, HORIZON, num_samples=5, **FEW)
    assert paths.shape == (2, 3, 5, HORIZON)


def test_a_channel_is_named(forecaster):
    stacked = np.zeros((2, 3, 40))
    stacked[1, 2, 7] = np.inf
    with pytest.raises(DataError, match="b channel 2 is infinite at position 7"):
        forecaster.forecast(stacked, HORIZON, names=["a", "b"])
    with pytest.raises(DataError, match="series 1 channel 2 is infinite"):
        forecaster.forecast(stacked, HORIZON)
    with pytest.raises(DataError, match="names has 1 entries for 2 series"):
        forecaster.forecast(walks(9, 9), HORIZON, names=["a"])


# Programs


def compiled(model):
    """How many programs JAX made, whatever the model counts."""
    return model.engine._decode._cache_size()


@pytest.fixture
def counted(monkeypatch):
    """A forecaster whose programs repeat the last value, since only their number matters."""
    model = make()

    def last_value(model, x, mask, horizon):
        return Decoded(jnp.repeat(x[:, -1:], horizon, axis=1), None)

    monkeypatch.setattr(model.engine.family, "decode", last_value)
    return model


def test_one_program_for_each_bucket(counted):
    model = counted
    model.forecast(walks(60, 61, 62), HORIZON)
    assert compiled(model) == model.num_programs == 1
    # Other numbers of series and lengths of the same buckets, in one call and in several.
    model.forecast(walks(59, 64, 58, 57), HORIZON)
    model.forecast(walks(63, 64, 49), HORIZON)
    assert compiled(model) == model.num_programs == 1
    model.forecast(walks(60), HORIZON)  # another batch bucket
    assert compiled(model) == 2
    model.forecast(walks(60), HORIZON + 2)  # which is computed with the one before
    assert compiled(model) == 2
    model.forecast(walks(60), 8)  # two steps of 4 are another plan
    assert compiled(model) == 3
    model.forecast(walks(70), HORIZON)  # another context bucket
    assert compiled(model) == model.num_programs == 4


def test_many_lengths_are_two_programs(counted):
    """As of 65 monthly series of 25 lengths, of a model for which a program costs more."""
    lengths = [20 + 9 * (i % 25) for i in range(65)]
    out = counted.forecast(walks(*lengths), HORIZON, context_length=240)
    assert compiled(counted) <= 2
    assert out.point.shape == (65, HORIZON)
    before = compiled(counted)
    counted.forecast(walks(*lengths[::-1]), HORIZON, context_length=240)
    assert compiled(counted) == before


def test_the_rest_of_many_series_takes_the_program_of_the_others(counted):
    counted.forecast(walks(*[40] * 11), HORIZON, batch_size=4)
    assert compiled(counted) == 1


def test_horizons_are_few_sizes_and_the_oldest_programs_are_dropped(counted, monkeypatch):
    for horizon in range(9, 17):  # of heads of 4 and 1: 9 to 11, 12, 13 to 15, and 16
        assert counted.forecast(walks(40), horizon).point.shape == (1, horizon)
    assert compiled(counted) == 4
    monkeypatch.setattr(counted.engine._decode, "_most", 5)
    for length in (20, 40, 70, 90):
        counted.forecast(walks(length), 4)
    assert compiled(counted) == 5
    assert counted.warmup([4], [20, 40, 70, 90]) == 0


def test_gaps_share_programs():
    """Five to eight missing values at the end are one program; the forecast is that of the gap."""
    model, horizon = make(), 4
    (series,) = walks(60)
    for gap in (5, 6, 7, 8):
        gapped = np.concatenate([series, np.full(gap, np.nan)])
        out = model.forecast(gapped, horizon)
        whole = model.forecast(series, 8 + horizon).point[:, gap : gap + horizon]
        np.testing.assert_allclose(out.point, whole, atol=1e-4)
        assert out.missing == gap
    assert compiled(model) == 1


def test_warming_up_leaves_nothing_to_compile(counted):
    model, lengths = counted, [60, 64, 90]
    assert model.warmup(horizons=[4, HORIZON], context_lengths=lengths, batch_sizes=[1, 3]) == 8
    assert compiled(model) == 8
    model.forecast(walks(62), HORIZON)
    model.forecast(walks(62, 90, 64, 90, 50, 60, 90), 4)
    assert compiled(model) == 8
    assert model.warmup([4], [60], [1]) == 0
    with pytest.raises(DataError, match="context_length must be an integer"):
        model.warmup([4], [0])


# Memory


def test_a_batch_that_does_not_fit_is_halved(forecaster):
    model, tried = like(forecaster), []
    call = model.engine._call

    def small(compute, x, mask, steps):
        tried.append(len(x))
        if len(x) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
        return call(compute, x, mask, steps)

    model.engine._call = small
    series = walks(*[16] * 9)
    out = model.forecast(series, HORIZON)
    # The ninth has the program of the others, since one of its own would cost more.
    assert tried == [16, 8, 4, 2, 2, 2, 2, 2]
    tried.clear()
    np.testing.assert_array_equal(out.point, model.forecast(series, HORIZON).point)
    # What was found to fit is remembered.
    assert max(tried) == 2
    each = forecaster.forecast(series, HORIZON, batch_size=1)
    np.testing.assert_allclose(out.point, each.point, atol=1e-5)


def test_one_series_that_does_not_fit_is_named(forecaster):
    model = like(forecaster)

    def none(compute, x, mask, steps):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

    model.engine._call = none
    with pytest.raises(DataError, match=r"load: a context of 64 points .* do not fit in memory"):
        model.forecast(walks(60), HORIZON, names=["load"])


def test_other_failures_of_the_backend_are_not_hidden(forecaster):
    model = like(forecaster)

    def broken(compute, x, mask, steps):
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is on fire")

    model.engine._call = broken
    with pytest.raises(jax.errors.JaxRuntimeError, match="on fire"):
        model.forecast(walks(60), HORIZON)


def test_the_batch_follows_the_memory_that_is_free(forecaster, monkeypatch):
    model = like(forecaster)
    group = engine._Group(64, HORIZON)
    sizes = []
    for free in (10**12, 10**8, 10**7, 1):
        monkeypatch.setattr(device, "_free_bytes", lambda free=free: free)
        sizes.append(model.engine._batch_size("auto", group))
    assert sizes[0] == engine.MAX_AUTO_BATCH
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert sizes[1] > sizes[2]


def test_what_a_series_is_thought_to_take_is_about_what_the_compiler_plans():
    """For a model and a context of some size; within a factor of three either way."""
    model = make(hidden_size=64, intermediate_size=128, num_hidden_layers=4)
    batch, length = 16, 192
    x = np.zeros((batch, length), np.float32)
    plan = (
        model.engine._decode.lower(model.engine.params, x, x == 0, horizon=HORIZON)
        .compile()
        .memory_analysis()
    )
    if plan is None:
        pytest.skip("this backend does not tell")
    thought = model.engine.family.bytes_per_series(model.config, length, HORIZON)
    assert 1 / 3 < plan.temp_size_in_bytes / batch / thought < 3


# Meshes


@pytest.mark.parametrize(
    "axes",
    [{"data": 4}, {"data": 2, "fsdp": 2}, {"data": 2, "expert": 2}],
)
def test_a_mesh_gives_the_same_forecasts(with_heads, axes):
    mesh = partitioning.make_mesh(MeshConfig(**axes))
    spread = Forecaster(with_heads.config, with_heads.engine.params, mesh=mesh)
    series = walks(9, 16, 12)
    alone = with_heads.forecast(series, HORIZON, quantile_levels=LEVELS, batch_size=2)
    # Batches of four, and of three that are filled up to four.
    for batch_size in ("auto", 3):
        together = spread.forecast(series, HORIZON, quantile_levels=LEVELS, batch_size=batch_size)
        np.testing.assert_allclose(together.point, alone.point, atol=1e-4)
        np.testing.assert_allclose(together.quantiles, alone.quantiles, atol=1e-4)


def test_backtest_names_what_it_loses(forecaster):
    rng = np.random.default_rng(0)
    seasonal = np.tile(rng.normal(size=12), 20)
    found = forecaster.backtest(
        [seasonal], HORIZON, folds=3, season=12, names=["load"], context_length=16, batch_size=2
    )
    assert found.series[0].loses
    assert "load" in found.summary()


def test_unknown_dtype(forecaster):
    with pytest.raises(ConfigError, match="dtype must be auto"):
        Forecaster(TINY, forecaster.engine.params, dtype="float64")


# Data frames and pictures


def frame(n=80, **columns):
    times = pd.date_range("2024-01-29", periods=n, freq="D", tz="Europe/Berlin")
    return pd.DataFrame({"ds": times, "y": walks(n)[0], **columns})


def test_a_data_frame_is_forecast_on_its_calendar(forecaster):
    df = frame()
    out = forecaster.predict_df(df, HORIZON, quantile_levels=LEVELS, target="y", **FEW)
    assert list(out.columns) == ["ds", "target_name", "predictions", "0.1", "0.5", "0.9"]
    expected = forecaster.forecast(df["y"].to_numpy(), HORIZON, quantile_levels=LEVELS, **FEW)
    np.testing.assert_array_equal(out["predictions"], expected.point[0])
    np.testing.assert_array_equal(out[["0.1", "0.5", "0.9"]], expected.quantiles[0])
    # Across the night in which the clocks go forward, at local midnight.
    assert (out["ds"].dt.hour == 0).all()
    assert str(out["ds"].dt.tz) == "Europe/Berlin"


def test_absent_rows_are_missing_values(forecaster):
    df = frame()
    out = forecaster.predict_df(df.drop(index=[70, 71, 75]), HORIZON, **FEW)
    assert out.attrs["filled"] == 3
    masked = df["y"].to_numpy().copy()
    masked[[70, 71, 75]] = np.nan
    expected = forecaster.forecast(masked, HORIZON, **FEW).point[0]
    np.testing.assert_array_equal(out["predictions"], expected)


def test_a_promotion_known_ahead_moves_the_forecast(forecaster):
    rng = np.random.default_rng(4)
    promotion = (rng.random(80 + HORIZON) < 0.3).astype(float)
    df = frame(promotion=promotion[:80])
    df["y"] = 0.1 * df["y"] + 40 * df["promotion"]
    days = pd.date_range(df["ds"].iloc[-1], periods=HORIZON + 1, freq="D")[1:]
    future = pd.DataFrame({"ds": days, "promotion": promotion[80:]})
    with_it = forecaster.predict_df(df, HORIZON, target="y", future_df=future, **FEW)
    without = forecaster.predict_df(df[["ds", "y"]], HORIZON, **FEW)
    truth = 40 * promotion[80:]
    errors = [np.abs(out["predictions"] - truth).mean() for out in (with_it, without)]
    assert errors[0] < 0.5 * errors[1]
    # A column that is named nowhere has no say.
    unused = forecaster.predict_df(df, HORIZON, target="y", **FEW)
    np.testing.assert_array_equal(unused["predictions"], without["predictions"])
    assert unused.attrs["ignored_columns"] == ["promotion"]


@pytest.mark.parametrize("holdout", [False, True])
def test_pictures(forecaster, holdout, tmp_path):
    path = forecaster.plot(
        tmp_path / "a.png",
        walks(80, 90),
        HORIZON,
        quantile_levels=LEVELS,
        holdout=holdout,
        **FEW,
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="to hold out a horizon of 5 it needs more"):
        forecaster.plot(path, walks(5), HORIZON, holdout=True)
