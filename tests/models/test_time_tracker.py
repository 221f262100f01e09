"""Time Tracker as a whole: what a forecast may depend on, and what training moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import TRACKER

from timemoe_jax import ConfigError, Forecaster
from timemoe_jax.config import from_mapping
from timemoe_jax.models.base import abstract_model, count_parameters, create_params, get_family
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.objective import make_loss, prepare, targets_of
from timemoe_jax.training.step import create_state, make_train_step

ALL = dataclasses.replace(TRACKER, mixing="all")
APART = dataclasses.replace(TRACKER, mixing="none")


@functools.cache
def params_of(**fields):
    """Initial parameters, with biases of attention and experts that have an effect."""
    config = dataclasses.replace(TRACKER, **fields)
    params = create_params(config, seed=0)
    attention, ffn = params["blocks"]["attention"], params["blocks"]["ffn"]
    attention["same"][...] = jnp.array([[0.5, -0.3], [0.8, 0.1]])
    attention["other"][...] = jnp.array([[-0.5, 0.3], [-0.2, 0.6]])
    ffn["selection_bias"][...] = jnp.array([[0.02, 0.0, -0.01, 0.0], [0.0, 0.03, 0.0, 0.0]])
    return params


@functools.partial(jax.jit, static_argnames="config")
def _predict(config, params, x, mask, draws):
    model = nnx.merge(abstract_model(config)[0], params)
    return model(x, mask, draws=draws).predictions[4]


def predict(config, x, mask=None, draws=None):
    mask = np.ones(x.shape, bool) if mask is None else mask
    return np.asarray(_predict(config, params_of(), jnp.asarray(x, jnp.float32), mask, draws))


X = np.random.default_rng(0).normal(size=(2, 3, 32))
X[:, 1] = np.roll(X[:, 0], 3, axis=-1) + 0.1 * X[:, 1]  # alike, so that some links are there


def test_one_variate_and_no_links_are_the_same_as_variates_apart():
    """Each window of one variate, however it is mixed: trap 2, u and v have no effect there."""
    apart = predict(APART, X)
    rows = X.reshape(6, 1, 32)
    for config in (TRACKER, ALL, APART):
        np.testing.assert_allclose(predict(config, rows).reshape(apart.shape), apart, atol=1e-5)
    strict = dataclasses.replace(TRACKER, graph_threshold=0.9999)  # no two variates are linked
    np.testing.assert_allclose(predict(strict, X), apart, atol=1e-5)
    assert not np.allclose(predict(ALL, X), apart, atol=1e-2)


def test_a_permutation_of_the_variates_permutes_the_predictions():
    order = [2, 0, 1]
    np.testing.assert_allclose(
        predict(TRACKER, X[:, order]), predict(TRACKER, X)[:, order], atol=1e-5
    )


def test_no_patch_depends_on_a_later_point_of_any_variate():
    """Beyond the points of the graph, which come before all that is trained on."""
    before = predict(TRACKER, X)
    for t in (16, 21, 31):
        changed = X.copy()
        changed[:, 1, t] += 3.0
        after = predict(TRACKER, changed)
        np.testing.assert_allclose(after[:, :, : t // 4], before[:, :, : t // 4], atol=1e-6)
        assert not np.allclose(after[:, 1, t // 4], before[:, 1, t // 4], atol=1e-3)


def test_a_missing_value_and_an_absent_variate_are_read_by_none():
    mask = np.ones(X.shape, bool)
    mask[0, 1, 5], mask[1, 2] = False, False
    before = predict(TRACKER, X, mask)
    changed = np.where(mask, X, 40.0)
    np.testing.assert_array_equal(predict(TRACKER, changed, mask), before)
    without = predict(TRACKER, X[1:, :2], mask[1:, :2])
    np.testing.assert_allclose(before[1:, :2], without, atol=1e-5)
    zeros = predict(TRACKER, np.where(mask, X, 0.0))  # a missing point is no mean one
    assert not np.allclose(zeros[0, 1], before[0, 1], atol=1e-3)


def test_more_variates_than_the_limit_are_read_in_pieces():
    pieces = dataclasses.replace(ALL, max_variates=2)
    x = np.concatenate([X, X[:, :2] + 1], axis=1)  # 5 variates: of 2, 2 and 1
    each = [predict(ALL, x[:, i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(predict(pieces, x), np.concatenate(each, axis=1), atol=1e-5)


def test_patches_may_overlap():
    """With a stride of 2 there is a position every 2 points, and still none reads a later one."""
    config = dataclasses.replace(ALL, patch_stride=2)
    before = predict(config, X)
    assert before.shape == (2, 3, 16, 4)
    changed = X.copy()
    changed[:, 0, 9] += 3.0
    after = predict(config, changed)
    np.testing.assert_allclose(after[:, :, :4], before[:, :, :4], atol=1e-6)
    assert not np.allclose(after[:, 0, 4], before[:, 0, 4], atol=1e-3)


def test_links_are_drawn_by_the_number_of_a_window_alone():
    numbers = jnp.array([3, 4], jnp.uint32)
    both = predict(TRACKER, X, draws=numbers)
    np.testing.assert_allclose(predict(TRACKER, X[1:], draws=numbers[1:]), both[1:], atol=1e-5)
    others = [predict(TRACKER, X, draws=numbers + n) for n in (10, 20, 30)]
    assert any(not np.allclose(both, other, atol=1e-3) for other in others)


def test_variates_known_ahead_are_read_one_patch_early_and_leak_nothing():
    config = dataclasses.replace(ALL, known_variates=1)
    before = predict(config, X)
    promotion, target = X.copy(), X.copy()
    promotion[:, 2, 16:20] += 3.0  # the fifth patch, read with the fourth
    target[:, 0, 16:20] += 3.0
    after = predict(config, promotion)
    assert not np.allclose(after[:, :2, 3], before[:, :2, 3], atol=1e-3)
    np.testing.assert_allclose(after[:, :, :3], before[:, :, :3], atol=1e-6)
    np.testing.assert_allclose(predict(config, target)[:, :, :4], before[:, :, :4], atol=1e-6)


def test_a_mesh_changes_nothing_but_the_rounding():
    """Windows and experts over two devices, heads and widths over two others."""
    mesh = partitioning.make_mesh(MeshConfig(data=1, expert=2, tensor=2), jax.devices()[:4])
    x, mask = jnp.asarray(X, jnp.float32), jnp.ones(X.shape, bool)
    draws = jnp.array([3, 4], jnp.uint32)
    rules = get_family("time_tracker").rules()
    params = jax.device_put(params_of(), partitioning.shardings(params_of(), mesh, rules))
    with partitioning.use_mesh(mesh):
        batch = jax.device_put((x, mask, draws), partitioning.batch_sharding(mesh))
        found = _predict(dataclasses.replace(TRACKER, remat="full"), params, *batch)
    np.testing.assert_allclose(found, predict(TRACKER, X, draws=draws), atol=1e-4)


def run_config(**model) -> RunConfig:
    fields = {
        "model": dataclasses.asdict(dataclasses.replace(TRACKER, **model)),
        "data": {
            "length": 32,
            "future": 4,
            "variates": 3 if model.get("known_variates") != 3 else 4,
            "synthetic_sequences": 4,
            "standardization": "context",
            "context_min": 16,
        },
        "optimizer": {"learning_rate": 1e-2, "router_bias_rate": 1e-3, "weight_decay": 0.5},
        "train": {"num_steps": 10, "batch_size": 4, "gradient_accumulation": 2},
    }
    return from_mapping(RunConfig, fields)


def batch_of(rows=4):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(rows, 3, 36)).astype(np.float32)
    return {"values": jnp.asarray(values), "mask": jnp.ones(values.shape, bool)}


def test_an_update_moves_the_bias_by_its_rate_and_the_links_by_their_gradient():
    """Of each expert by the rate exactly, up or down or, of an even load, not at all."""
    config = run_config(graph_alpha_learned=True)
    state = create_state(config)
    before = jax.tree.map(jnp.copy, state.params)
    after, metrics = make_train_step(config)(state, batch_of())
    moved = after.params["blocks"]["ffn"]["selection_bias"][...]
    even = np.asarray(metrics["expert_load"]) == 0.25
    expected = np.where(even, 0, np.sign(0.25 - metrics["expert_load"])) * np.float32(1e-3)
    np.testing.assert_array_equal(moved, expected.astype(np.float32))
    assert np.abs(moved).max() > 0
    assert metrics["finite"]
    assert after.params["alpha_logit"][...] != before["alpha_logit"][...]
    attention = after.params["blocks"]["attention"]
    assert np.abs(attention["other"][1]).min() > 0  # of the mixed layer
    np.testing.assert_array_equal(attention["other"][0], np.zeros(2))  # trap 2
    np.testing.assert_array_equal(attention["same"][0], np.zeros(2))


def test_the_loss_counts_the_variates_that_are_forecast():
    """Not those that are known ahead, which are read over the points to forecast."""
    config = run_config(mixing="all", known_variates=1)
    params = create_params(config.model, seed=0)
    loss = jax.jit(make_loss(config))
    batch = prepare(config, batch_of(2), jax.random.key(0))
    assert batch["draws"].shape == (2,)
    positions = targets_of(config, batch, None).positions.reshape(2, 3, -1)
    assert positions[:, :2, -1].min() == 1
    assert positions[:, 2].max() == 0
    for variate in (0, 2):
        later = {**batch, "values": batch["values"].at[:, variate, -4:].set(9.0)}
        assert loss(params, later)[0] != loss(params, batch)[0]
    shown = {"ahead": tuple(batch[name][..., -4:] for name in ("values", "mask"))}
    model = nnx.merge(abstract_model(config.model)[0], params)
    trained = model(batch["values"][..., :32], batch["mask"][..., :32], **shown).predictions[4]
    mask = batch["mask"].at[:, :2, 32:].set(False)
    in_use = get_family("time_tracker").decode_known(model, batch["values"], mask, 4)
    np.testing.assert_allclose(trained[:, :2, -1], in_use.point[:, :2], atol=1e-5)


def test_its_size_is_counted_and_what_does_not_fit_is_an_error():
    family = get_family("time_tracker")
    total, active = count_parameters(TRACKER)
    assert total - active == 2 * 2 * 3 * 16 * 12  # 2 layers, 2 idle experts, 3 kernels each
    dense = family.dense_like(TRACKER)
    routers = 2 * (16 * 4 + 4)
    assert count_parameters(dense) == (active - routers,) * 2
    fields = dataclasses.asdict(run_config())
    fields["data"]["context_min"] = 12
    with pytest.raises(ConfigError, match=r"reads the first 16 points of a window as its context"):
        from_mapping(RunConfig, fields)
    fields = dataclasses.asdict(run_config(mixing="all", known_variates=3))
    fields["data"]["variates"] = 3
    with pytest.raises(ConfigError, match=r"leaves none of the 3 variates of a window"):
        from_mapping(RunConfig, fields)
    with pytest.raises(ConfigError, match="known_variates is 1, but mixing is 'none'"):
        dataclasses.replace(TRACKER, mixing="none", known_variates=1)
    with pytest.raises(ConfigError, match=r"patch_stride \(8\) must be at most patch_size \(4\)"):
        dataclasses.replace(TRACKER, patch_stride=8)
    with pytest.raises(ConfigError, match="no layer would mix"):
        dataclasses.replace(TRACKER, num_mixed_layers=0)
    resized = family.resized(TRACKER, 32, 4, 4)
    assert (resized.expert_size, resized.num_mixed_layers) == (24, 2)


@pytest.mark.parametrize(("rate", "mixing"), [(1e-2, "all"), (1e-12, "none")])
def test_the_mixed_stage_keeps_what_is_better_or_the_start_as_it_was_read(rate, mixing):
    config = dataclasses.replace(APART, num_hidden_layers=1)
    forecaster = Forecaster(config, create_params(config, 0), disk_cache=False)
    values = np.random.default_rng(0).normal(size=(1, 2, 120))
    few = {"context_length": 16, "learning_rate": rate, "num_steps": 8, "validation_windows": 8}
    out = forecaster.fit(values, 4, mixing="all", shares=(), progress=False, **few)
    assert out.config.mixing == mixing
    assert (out.tuning.kept > 0) == (mixing == "all")
    assert forecaster.config.mixing == "none"
