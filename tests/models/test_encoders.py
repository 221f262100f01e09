"""Encoders within the library: windows without masks, forecasts of anything, training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from timemoe_jax import ConfigError, DataError, Forecaster
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.config import from_mapping
from timemoe_jax.data.calendar import calendar_marks
from timemoe_jax.evaluation import expert_usage
from timemoe_jax.evaluation.expert_pictures import plot_expert_usage
from timemoe_jax.models.base import abstract_model, count_parameters, create_params
from timemoe_jax.models.encoder.windows import aligned, filled_up, interpolated, moved_back
from timemoe_jax.models.mohets.config import MohetsConfig
from timemoe_jax.models.seg_moe.config import SegMoeConfig
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.loop import Loop
from timemoe_jax.training.metrics_log import read_metrics

SIZES = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "num_experts": 4, "patch_size": 4, "horizon_lengths": (8,)},
    "max_position_embeddings": 48,
}
SEG = SegMoeConfig(**SIZES, num_hidden_layers=2, segment_lengths=(2, 5))
ONE = dataclasses.replace(SEG, num_hidden_layers=1, segment_lengths=(5,), router_dropout=0.1)
MOHETS = MohetsConfig(**SIZES, num_hidden_layers=1, covariate_variates=2)


def test_windows_begin_at_their_first_point_without_gaps():
    x = jnp.array([[9.0, 1, 0, 0, 7, 9], [2, 4, 9, 9, 9, 9], [9, 9, 9, 9, 9, 9]])
    mask = jnp.array([[0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0], [0] * 6], bool)
    np.testing.assert_allclose(interpolated(x, mask)[:2], [[1, 1, 3, 5, 7, 7], [2, 4, 4, 4, 4, 4]])
    window = aligned(x, mask)
    np.testing.assert_array_equal(window.lengths, [4, 2, 0])
    np.testing.assert_allclose(window.values[:2], [[1, 3, 5, 7, 0, 0], [2, 4, 0, 0, 0, 0]])
    back = moved_back(window.values, window.first, 6)
    np.testing.assert_allclose(back[0], [0, 1, 3, 5, 7, 0])
    full = filled_up(window, 3, 3)
    np.testing.assert_allclose(full.values[:2], [[3, 5, 7], [2, 2, 4]])
    np.testing.assert_array_equal(full.first[:2], [2, -1])


def test_the_calendar_in_numbers():
    times = np.array(["2024-12-31T23:59", "2023-01-01T00:00"], "datetime64[m]")  # Tuesday, Sunday
    found = calendar_marks(times)
    np.testing.assert_allclose(found[:, 0], [0.5, 0.5, 1 / 6 - 0.5, 0.5, 0.5], atol=1e-7)
    np.testing.assert_allclose(found[:, 1], [-0.5, -0.5, 0.5, -0.5, -0.5], atol=1e-7)
    with pytest.raises(DataError, match="none of them missing"):
        calendar_marks(np.array(["NaT"], "datetime64[s]"))


@pytest.fixture(scope="module")
def seg():
    return Forecaster(SEG, create_params(SEG, 0))


@pytest.fixture(scope="module")
def series():
    """Of several lengths: longer than a window, a window, not of whole patches, shorter."""
    rng = np.random.default_rng(0)
    return [np.cumsum(rng.normal(size=n)) + 5 for n in (90, 48, 31, 17, 5)]


def test_a_window_does_not_depend_on_its_padding(seg, series):
    x = np.stack([series[0][:48], series[1]]).astype(np.float32)
    graph, _ = abstract_model(SEG)
    run = jax.jit(lambda params, x, mask: nnx.merge(graph, params)(x, mask))
    mask = np.ones(x.shape, bool)
    mask[:, 28:] = False
    once = run(seg.engine.params, x, mask)
    x[:, 28:] = 1e3
    again = run(seg.engine.params, x, mask)
    np.testing.assert_array_equal(once.predictions[8], again.predictions[8])
    # The same points behind padding on the left: everything moves along.
    moved = np.roll(x, 12, axis=1)
    shifted = run(seg.engine.params, moved, np.roll(mask, 12, axis=1))
    np.testing.assert_allclose(
        shifted.predictions[8][:, 12:40], once.predictions[8][:, :28], atol=1e-5
    )
    np.testing.assert_array_equal(shifted.counts, once.counts)
    np.testing.assert_array_equal(once.counts[0, 0], [True] * 4 + [False] * 2)  # 7 tokens by 2s
    np.testing.assert_array_equal(once.counts[1, 0], [True] * 2 + [False] * 4)  # by 5s


@pytest.mark.parametrize("horizon", [21])
def test_a_forecast_does_not_depend_on_the_call(seg, series, horizon):
    """Nor on the batch, the order, or the scale; and a longer one goes on where it ends."""
    together = seg.forecast(series, horizon)
    assert np.isfinite(together.point).all()
    np.testing.assert_array_equal(together.filled, [0, 0, 0, 0, 3])
    turned = seg.forecast(series[::-1], horizon, batch_size=2)
    scale = np.abs(together.point).max()
    np.testing.assert_allclose(turned.point[::-1], together.point, atol=1e-5 * scale)
    scaled = seg.forecast([1000 * s - 7 for s in series], horizon).point
    np.testing.assert_allclose((scaled + 7) / 1000, together.point, atol=1e-5 * scale)
    longer = seg.forecast(series, horizon + 3).point
    np.testing.assert_allclose(longer[:, :horizon], together.point, atol=1e-5 * scale)


def test_missing_values_are_filled_and_counted(seg, series):
    holes = series[0].copy()
    holes[60:63] = np.nan
    filled = holes.copy()
    filled[60:63] = np.interp([60, 61, 62], [59, 63], holes[[59, 63]])
    out = seg.forecast(holes, 21, normalize="none")
    assert out.filled.tolist() == [3]
    assert out.missing.tolist() == [3]
    same = seg.forecast(filled, 21, normalize="none")
    np.testing.assert_allclose(out.point, same.point, atol=1e-5)
    assert same.filled.tolist() == [0]
    ended = holes.copy()
    ended[-2:] = np.nan  # forecast, too
    early = seg.forecast(holes[:-2], 23, normalize="none", context_length=46).point
    late = seg.forecast(ended, 21, normalize="none", context_length=48).point
    np.testing.assert_allclose(late[0], early[0, 2:], atol=1e-5)


def test_earlier_forecasts_are_not_read_along_one_pass(seg):
    """What calibrates quantiles: an encoder's output at an earlier point knows what came later."""
    assert not seg.engine.reads_along(0, 8)


@pytest.fixture(scope="module")
def mohets():
    return Forecaster(MOHETS, create_params(MOHETS, 0))


@pytest.fixture(scope="module")
def hourly():
    """Two columns of an hourly table, and the calendar of it and of 20 hours more."""
    times = pd.date_range("2024-02-27", periods=80, freq="h")
    values = np.random.default_rng(1).normal(size=(2, 60))
    return times, values, calendar_marks(times)


def test_marks_have_the_variates_read_together(mohets, hourly):
    _, values, marks = hourly
    alone = mohets.forecast(values, 20).point
    np.testing.assert_allclose(mohets.forecast(values[None], 20).point[0], alone, atol=1e-6)
    together = mohets.forecast(values[None], 20, marks=marks[None]).point[0]
    assert np.abs(together - alone).max() > 1e-3
    # Of hours, the row of minutes may be left out.
    without = mohets.forecast(values[None], 20, marks=marks[None, 1:]).point[0]
    np.testing.assert_allclose(without, together, atol=1e-6)
    changed = values[None].copy()
    changed[0, 0, -5:] += 3
    other = mohets.forecast(changed, 20, marks=marks[None]).point[0]
    assert np.abs(other[1] - together[1]).max() > 1e-4  # one variate moves the other


def test_a_data_frame_gives_the_calendar(mohets, hourly):
    times, values, marks = hourly
    frame = pd.DataFrame({"timestamp": times[:60], "a": values[0], "b": values[1]})
    out = mohets.predict_df(frame, 20)
    assert out.attrs["calendar"]
    expected = mohets.forecast(values[None], 20, marks=marks[None]).point[0]
    for name, row in zip("ab", expected, strict=True):
        found = out[out.target_name == name]["predictions"].to_numpy()
        np.testing.assert_allclose(found, row, atol=1e-6)
    alone = mohets.predict_df(frame[["timestamp", "a"]], 20)
    assert not alone.attrs["calendar"]


def test_marks_that_do_not_fit_are_refused(seg, mohets, hourly):
    _, values, marks = hourly
    with pytest.raises(DataError, match="the model has no covariates"):
        seg.forecast(values, 20, marks=marks)
    with pytest.raises(DataError, match=r"inputs is not \[N, 2, T\]"):
        mohets.forecast(values, 20, marks=marks)
    with pytest.raises(DataError, match=r"T \+ horizon\], which is \(1, 5, 80\)"):
        mohets.forecast(values[None], 20, marks=marks[:, :70])
    with pytest.raises(DataError, match="together with quantile_levels"):
        mohets.forecast(values[None], 20, marks=marks, quantile_levels=[0.5])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "table.csv"
    times = pd.date_range("2024-01-01", periods=240, freq="h")
    hours = np.arange(240)
    columns = {"a": np.sin(hours * np.pi / 12), "b": 5 + np.cos(hours * np.pi / 12)}
    pd.DataFrame({"date": times, **columns}).to_csv(path, index=False)
    return path


def run_of(table, config, **sections) -> RunConfig:
    fields = {
        "model": dataclasses.asdict(config),
        "data": {"path": str(table), "length": 48, "future": 8, "stride": 1, "num_threads": 0},
        "optimizer": {"learning_rate": 3e-3, "schedule": "stable"},
        "train": {"num_steps": 8, "batch_size": 8, "log_every": 1, "eval_batches": 1},
    }
    fields["data"] |= {"variates": 2, "train_rows": 160, "validation_rows": 40}
    for name, section in sections.items():
        fields[name] = {**fields.get(name, {}), **section}
    return from_mapping(RunConfig, fields)


def test_training_resumes_to_the_bit_and_is_the_same_on_a_mesh(table, tmp_path, monkeypatch):
    """With dropout and stochastic depth; four devices hold an expert each."""
    monkeypatch.setattr(Loop, "_validate", lambda *_: None)  # which changes nothing of the updates
    half = {"train": {"num_steps": 4}}
    straight = train.run(run_of(table, ONE), tmp_path / "straight", devices=jax.devices()[:1])
    train.run(run_of(table, ONE, **half), tmp_path / "halves", devices=jax.devices()[:1])
    resumed = train.run(run_of(table, ONE), tmp_path / "halves", devices=jax.devices()[:1])
    leaves = [jax.tree.leaves(r.state.params) for r in (straight, resumed)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [r for r in read_metrics(tmp_path / "straight" / "metrics.jsonl") if "loss" in r]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"balancing_loss", "expert_load", "dropped_share"} <= rows[0].keys()
    meshed = run_of(table, ONE, mesh={"data": 1, "expert": 4}, **half)
    train.run(meshed, tmp_path / "mesh", devices=jax.devices()[:4])
    found = [r for r in read_metrics(tmp_path / "mesh" / "metrics.jsonl") if "loss" in r]
    for a, b in zip(rows[:4], found, strict=True):
        np.testing.assert_allclose(b["loss"], a["loss"], rtol=1e-4)
    assert load_model(tmp_path / "straight").config == ONE


def test_mohets_trains_with_its_calendar(table, tmp_path):
    config = run_of(table, MOHETS, data={"calendar": True})
    train.run(config, tmp_path, devices=jax.devices()[:1])
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert any("validation_loss" in row for row in rows)
    values = np.loadtxt(table, delimiter=",", skiprows=1, usecols=(1, 2)).T
    forecaster = Forecaster.from_pretrained(tmp_path)
    assert np.isfinite(forecaster.forecast(values, 20).point).all()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"future": 1}}, "data.future is 1, but models of the family 'seg_moe'"),
        ({"data": {"policy": "packing", "stride": 0, "variates": 0, "future": 8}}, "windows"),
        ({"data": {"standardization": "context", "context_min": 8}}, "give 'series'"),
        ({"model": {"quantile_levels": (0.5,)}}, "an encoder has no heads for them"),
        ({"model": {"router_scope": "token", "expert_scope": "segment"}}, "give one of the two"),
        ({"model": {"segment_lengths": (1, 2, 3)}}, "segment_lengths must be one positive number"),
        ({"data": {"validation_rows": 9, "train_rows": 0}}, "train_rows is 0"),
    ],
)
def test_a_run_that_cannot_be_is_refused(table, sections, message):
    with pytest.raises(ConfigError, match=message):
        run_of(table, SEG, **sections)


def test_sizes_are_the_published_ones():
    assert count_parameters(SegMoeConfig())[0] == 6_917_408
    assert count_parameters(MohetsConfig(covariate_variates=21))[0] == 2_535_200


def test_which_experts_segments_use(seg, series, tmp_path):
    """Shares of decisions, of each layer; a layer of long segments has fewer of them."""
    shares = expert_usage.expert_usage(seg, series)
    assert shares.shape == (2, 4)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    # 12, 12, 7, 4 and 2 tokens in segments of 2 and of 5.
    for row, decisions in zip(shares, (19, 10), strict=True):
        np.testing.assert_allclose(row * decisions, np.round(row * decisions), atol=1e-4)
    assert plot_expert_usage(tmp_path / "usage.png", {"walks": shares}).exists()
