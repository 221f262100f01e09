"""`Forecaster.fit`: from arrays, frames and files; univariate and joint; with quantile heads."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from tiny_model import TUNABLE as MODEL

from timemoe_jax import ConfigError, DataError, Forecaster
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.forecasting.fitting import Columns, source_of
from timemoe_jax.models.base import Family, ModelConfig, ModelOutput, create_params, register

FEW = {"learning_rate": 1e-2, "num_steps": 4, "batch_size": 8, "validation_windows": 8}


def waves(length=120):
    t = np.arange(length)
    return np.stack([np.sin(t / 3), 10 + np.cos(t / 3)])


def frame():
    times = pd.date_range("2024-01-01", periods=120, freq="h")
    a, b = waves()
    return pd.DataFrame({"ds": times, "a": a, "b": b, "price": np.arange(120.0)})


def test_arrays_lists_frames_and_files_are_the_same_series(tmp_path, capsys):
    path = tmp_path / "two.csv"
    frame().to_csv(path, index=False)
    columns = Columns(covariates=["price"])
    found = [
        source_of(waves(), None, Columns()),
        source_of(list(waves()), None, Columns()),
        source_of(frame(), None, columns, quiet=False),
        source_of(path, None, columns),
    ]
    assert "columns left out, of which nothing is learned: price" in capsys.readouterr().out
    for source in found:
        assert source.lengths.tolist() == [120, 120]
        np.testing.assert_allclose(source[1], waves()[1])
    np.save(tmp_path / "two.npy", waves())
    np.testing.assert_allclose(source_of(str(tmp_path / "two.npy"), None, Columns())[1], waves()[1])
    with pytest.raises(DataError, match="covariates are for data frames"):
        source_of(waves(), None, columns)
    # Rows that are absent are missing points, and channels of an item are aligned.
    gap = source_of(frame().drop(index=range(50, 60)), None, columns)
    assert gap.lengths.tolist() == [120, 120]
    assert np.isnan(gap[0][50:60]).all()
    assert source_of(np.zeros((2, 3, 9)), None, Columns()).groups().tolist() == [0, 0, 0, 1, 1, 1]


def test_a_new_forecaster_that_says_what_it_is(capsys, tmp_path):
    forecaster = Forecaster(MODEL, create_params(MODEL, 0), disk_cache=False)
    before = forecaster.forecast(waves(), 4).point
    out = forecaster.fit(frame(), 4, covariates="price", workdir=tmp_path, **FEW)
    said = capsys.readouterr().out
    for text in ("2 series", "horizon 4", "context 32", "trained: full", "memory per device"):
        assert text in said
    assert "zero-shot: MSE" in said
    np.testing.assert_array_equal(forecaster.forecast(waves(), 4).point, before)
    assert out.tuning.tuned.mse <= out.tuning.zero_shot.mse
    if out.tuning.kept:
        assert not np.array_equal(out.forecast(waves(), 4).point, before)
    assert load_model(tmp_path).digest == out.digest
    files = {each.name for each in tmp_path.iterdir()}
    assert {"report.json", "metrics.jsonl", "checkpoints", "state", "config.json"} <= files
    with pytest.raises(DataError, match="use horizon="):
        forecaster.fit(waves(), prediction_length=8)


def test_pinball_moves_the_quantile_heads():
    model = dataclasses.replace(MODEL, quantile_levels=(0.1, 0.5, 0.9))
    forecaster = Forecaster(model, create_params(model, 0), disk_cache=False)
    few = FEW | {"num_steps": 20, "progress": False}
    out = forecaster.fit(waves(), 4, loss="pinball", **few)
    start, best = out.tuning.zero_shot, out.tuning.tuned
    assert best.pinball < start.pinball
    assert best.mae <= start.mae
    assert best.mse <= start.mse


def test_heads_that_say_quantiles_alone_are_trained_and_judged_by_them():
    levels = (0.1, 0.5, 0.9)
    model = dataclasses.replace(MODEL, quantile_levels=levels, point_heads=False)
    forecaster = Forecaster(model, create_params(model, 0), disk_cache=False)
    few = FEW | {"num_steps": 40, "progress": False, "validation_windows": 64}
    out = forecaster.fit(waves(), 4, **few)
    assert out.tuning.tuned.pinball < out.tuning.zero_shot.pinball
    before, after = (f.forecast(waves(), 4, quantile_levels=levels) for f in (forecaster, out))
    moved = np.abs(after.quantiles - before.quantiles).max(axis=(0, 1))
    assert (moved > 0).all()
    with pytest.raises(ConfigError, match="loss is 'mse', but the heads of this model say quantil"):
        forecaster.fit(waves(), 4, loss="mse", **few)


@dataclasses.dataclass(frozen=True)
class MeanConfig(ModelConfig):
    family: str = "joint_mean"


class MeanModel(nnx.Module):
    """Forecasts every variate by a multiple of the mean of all variates at the last point."""

    def __init__(self, config):
        self.config, self.weight = config, nnx.Param(jnp.zeros(config.horizon_lengths[-1:]) + 0.1)

    def __call__(self, x, mask=None, segments=None):
        x = x if mask is None else jnp.where(mask, x, 0)
        hidden = x.mean(axis=-2, keepdims=True) + 0 * x
        hidden = hidden[..., None]
        return ModelOutput({p: self.head(hidden, p) for p in self.config.horizon_lengths}, hidden)

    def head(self, hidden, horizon):
        return hidden * self.weight[...][:horizon]


class MeanFamily(Family):
    name, config, joint = "joint_mean", MeanConfig, True

    def make(self, config, rngs):
        return MeanModel(config)

    def rules(self):
        from jax.sharding import PartitionSpec

        return ((r"weight", PartitionSpec()),)


register(MeanFamily())


def test_a_joint_family_is_tuned_on_the_variates_of_an_item():
    """The channels are alike, so that the best weight of their mean is near 1."""
    config = MeanConfig(horizon_lengths=(2,), max_position_embeddings=64)
    forecaster = Forecaster(config, create_params(config, 0), disk_cache=False)
    values = np.cumsum(np.random.default_rng(0).normal(size=(2, 1, 150)), axis=-1)
    few = FEW | {"num_steps": 40, "learning_rate": 0.05, "progress": False}
    few["validation_windows"] = 64  # so that there is little doubt of what is gained
    out = forecaster.fit(np.repeat(values, 3, axis=1), 2, context_length=16, **few)
    weight = np.asarray(out.engine.params["weight"][...])
    assert out.tuning.plan.series == 6
    assert out.tuning.tuned.mse < 0.5 * out.tuning.zero_shot.mse
    assert (np.abs(weight - 1) < 0.4).all()
