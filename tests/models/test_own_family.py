"""A family of one's own: registered in a few lines, it can do all that the library's can."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from timemoe_jax import ConfigError, Forecaster
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.checkpoints.make_bundle import make_bundle
from timemoe_jax.config import from_mapping
from timemoe_jax.evaluation import long_horizon
from timemoe_jax.evaluation.config import EvalConfig
from timemoe_jax.models.base import (
    Family,
    ModelConfig,
    ModelOutput,
    abstract_model,
    count_parameters,
    create_params,
    get_family,
    register,
)
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.objective import make_loss, read_at, targets_of


@dataclasses.dataclass(frozen=True)
class LinearConfig(ModelConfig):
    family: str = "linear"
    lags: int = 24  # points that a forecast is a weighted sum of


class LinearModel(nnx.Module):
    """Every head is one matrix, from the last points [lags] to the next [P]."""

    def __init__(self, config: LinearConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.01)
        self.config = config
        self.maps = nnx.Dict(
            {
                str(p): nnx.Param(init(rngs.params(), (config.lags, p)))
                for p in config.horizon_lengths
            }
        )

    def __call__(self, x, mask=None, segments=None):
        x = x if mask is None else jnp.where(mask, x, 0)
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(self.config.lags - 1, 0)])
        each = [padded[..., i : i + x.shape[-1]] for i in range(self.config.lags)]
        hidden = jnp.stack(each, axis=-1)
        return ModelOutput({int(p): self.head(hidden, int(p)) for p in self.maps}, hidden)

    def head(self, hidden, horizon):
        return hidden @ self.maps[str(horizon)][...]


class LinearFamily(Family):
    name = "linear"
    config = LinearConfig

    def make(self, config, rngs):
        return LinearModel(config, rngs)

    def rules(self):
        return ((r"maps\.", P()),)


class JointLinearFamily(LinearFamily):
    name = "joint_linear"
    joint = True


register(LinearFamily())
register(JointLinearFamily())


def config_of(path, **model) -> RunConfig:
    fields = {
        "model": {"horizon_lengths": (1, 12), "max_position_embeddings": 128, **model},
        "data": {"path": str(path), "length": 48, "future": 12, "stride": 1, "num_threads": 0},
        "optimizer": {"learning_rate": 0.02, "weight_decay": 0.0},
        "train": {"num_steps": 60, "batch_size": 16, "log_every": 20, "eval_batches": 1},
    }
    if model["family"] == "joint_linear":
        fields["data"]["variates"] = 3
    return from_mapping(RunConfig, fields)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two aligned series of a daily cycle, hourly."""
    path = tmp_path_factory.mktemp("data") / "cycles.csv"
    hours = np.arange(600)
    stamps = np.datetime64("2024-01-01T00") + hours.astype("timedelta64[h]")
    rows = zip(stamps, np.sin(hours * np.pi / 12), 5 + np.cos(hours * np.pi / 12), strict=True)
    path.write_text("date,a,b\n" + "".join(f"{t},{a},{b}\n" for t, a, b in rows))
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train.run(config_of(table, family="linear"), workdir)
    return workdir


def test_it_trains_and_is_restored_bundled_and_forecasts(run, table, tmp_path):
    loaded = load_model(run)
    assert isinstance(loaded.config, LinearConfig)
    assert count_parameters(loaded.config) == (24 * 13, 24 * 13)
    make_bundle(run, tmp_path / "bundle", dtype="float32")
    values = np.loadtxt(table, delimiter=",", skiprows=1, usecols=(1, 2)).T
    truth = values[:, -12:]
    outs = []
    for place in (run, tmp_path / "bundle"):
        forecaster = Forecaster.from_pretrained(place)
        out = forecaster.forecast(values[:, :-12], horizon=12, quantile_levels=[0.1, 0.5, 0.9])
        assert np.abs(out.point - truth).max() < 0.2  # of an amplitude of 1
        assert out.intervals == "conformal"
        assert (np.diff(out.quantiles, axis=-1) >= 0).all()
        outs.append(out)
    np.testing.assert_array_equal(outs[0].point, outs[1].point)


def test_it_resumes(run, table):
    config = config_of(table, family="linear")
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=61))
    assert train.run(longer, run).step == 61


def test_it_is_evaluated(run, table, tmp_path):
    config = EvalConfig(
        checkpoint=str(run),
        data_dir=str(table.parent),
        datasets=(table.name,),
        horizons=(12,),
        context_length=48,
        output_dir=str(tmp_path),
    )
    (cell,) = long_horizon.run(config)["cells"]
    assert cell["mse"] < 0.5 * cell["naive_mse"]


def test_a_joint_family_reads_aligned_series_together(table, tmp_path):
    """Windows [B, C, T] of the table's columns, one of three variates absent."""
    result = train.run(config_of(table, family="joint_linear"), tmp_path)
    assert result.step == 60
    assert get_family("joint_linear").joint


class Leader(nnx.Module):
    """Forecasts every variate of a window by the last value of its first one."""

    def __init__(self, config: LinearConfig):
        self.config = config

    def __call__(self, x, mask=None, segments=None):
        first = jnp.broadcast_to(jnp.where(mask, x, 0)[..., :1, :], x.shape)
        hidden = first[..., None]
        return ModelOutput(
            {p: jnp.repeat(hidden, p, -1) for p in self.config.horizon_lengths}, hidden
        )


class LeaderFamily(JointLinearFamily):
    name = "leader"

    def make(self, config, rngs):
        return Leader(config)


register(LeaderFamily())


def test_a_joint_forecast_reads_the_variates_of_an_item_and_no_others():
    """Raw values: each variate is forecast as the first one of its item, whatever the batch."""
    config = LinearConfig(family="leader", horizon_lengths=(2,), max_position_embeddings=64)
    forecaster = Forecaster(config, nnx.State({}))
    values = np.arange(2 * 3 * 20, dtype=float).reshape(2, 3, 20)
    values[0, 1, -4:] = np.nan  # one variate ends earlier, and is forecast from the same point on
    out = forecaster.forecast(values, horizon=4, normalize="none")
    assert out.point.shape == (2, 3, 4)
    np.testing.assert_array_equal(out.point[0], np.full((3, 4), 19.0))
    np.testing.assert_array_equal(out.point[1], np.full((3, 4), 79.0))
    values[0, :, -2:] = np.nan  # all end earlier: the gap is forecast, too
    alone = forecaster.forecast(values[:1], horizon=4, normalize="none", batch_size=1)
    np.testing.assert_array_equal(alone.point, np.full((1, 3, 4), 17.0))
    single = forecaster.forecast([values[1, 2], values[1, 0]], horizon=3, normalize="none")
    np.testing.assert_array_equal(single.point, [[119.0] * 3, [79.0] * 3])
    scaled = forecaster.forecast(values[1:], horizon=2).point[0]
    # Each in its own units: the last value of the first, z-scored, is that of all.
    np.testing.assert_allclose(scaled[:, 0], values[1, :, -1])


def test_what_does_not_fit_is_an_error(table):
    with pytest.raises(ConfigError, match=r"family is 'lineer'; known: time_moe, .*linear"):
        config_of(table, family="lineer")
    with pytest.raises(ConfigError, match=r"config\.model has no field 'num_experts'"):
        config_of(table, family="linear", num_experts=4)
    fields = dataclasses.asdict(config_of(table, family="linear"))
    fields["data"]["variates"] = 2
    with pytest.raises(ConfigError, match=r"data\.variates is 2, but models of the family"):
        from_mapping(RunConfig, fields)
    with pytest.raises(ConfigError, match="there is a family 'time_moe' already"):
        register(type("Other", (Family,), {"name": "time_moe"})())


class PatchedModel(LinearModel):
    """The linear map read at the end of every patch of 4 points, with a median beside it."""

    def __call__(self, x, mask=None, segments=None):
        output = super().__call__(x, mask, segments)
        hidden = output.hidden[..., 3::4, :]
        return ModelOutput({p: self.head(hidden, p) for p in output.predictions}, hidden)

    def quantile_head(self, hidden, horizon):
        return self.head(hidden, horizon)[..., None]


class PatchedFamily(LinearFamily):
    name = "patched_linear"

    def make(self, config, rngs):
        return PatchedModel(config, rngs)

    def stride(self, config):
        return 4


register(PatchedFamily())


def test_a_family_of_patches_predicts_after_the_last_point_of_each(table):
    """Its losses are those of the family of points at these positions, and so are its forecasts."""
    rng = np.random.default_rng(0)
    batch = {"values": rng.normal(size=(2, 60)), "mask": rng.random((2, 60)) > 0.2}
    batch = {
        name: jnp.asarray(a, jnp.float32 if name == "values" else bool) for name, a in batch.items()
    }
    patched = config_of(table, family="patched_linear", quantile_levels=(0.5,))
    points = config_of(table, family="linear")
    params = create_params(points.model, seed=0)
    at = read_at(patched, None)
    np.testing.assert_array_equal(at[12], 4 * np.arange(12) + 3)
    expected = make_loss(points)(params, batch, at)[1]
    total, found = make_loss(patched)(params, batch, at)
    for p in (1, 12):
        np.testing.assert_allclose(found.horizons[p], expected.horizons[p], rtol=1e-6)
        targets = targets_of(points, batch, at)
        # The median's loss is half the absolute error.
        model = nnx.merge(abstract_model(points.model)[0], params)
        predicted = model(batch["values"][:, :48], batch["mask"][:, :48]).predictions[p][:, 3::4]
        error = np.abs(predicted - targets.following(p))[np.asarray(targets.counted(p)) > 0]
        np.testing.assert_allclose(found.quantiles[p], error.mean() / 2, rtol=1e-5)
    assert total > 0
    values = rng.normal(size=(1, 30))  # no whole number of patches
    outs = [Forecaster(c.model, params).forecast(values, 15).point for c in (points, patched)]
    np.testing.assert_allclose(*outs, rtol=1e-5)
    fields = dataclasses.asdict(patched)
    fields["data"]["length"] = 50
    with pytest.raises(ConfigError, match=r"data.length \(50\) must be a multiple of the 4 points"):
        from_mapping(RunConfig, fields)
