"""Heads of quantiles: they do not cross, and their loss counts what it should."""

import dataclasses
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from tiny_model import TINY

from configs import time_moe_base
from timemoe_jax.checkpoints.published import write_published
from timemoe_jax.config import from_mapping
from timemoe_jax.data.config import DataConfig
from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import abstract_model, count_parameters, create_params
from timemoe_jax.models.quantiles import non_crossing
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.model import TimeMoe
from timemoe_jax.models.time_moe.published import TimeMoeFormat
from timemoe_jax.models.time_moe.sharding import RULES
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training import losses
from timemoe_jax.training.config import LossConfig, RunConfig, TrainConfig
from timemoe_jax.training.objective import make_loss
from timemoe_jax.training.step import create_state, make_train_step, make_validation

LEVELS = (0.1, 0.5, 0.9)
MODEL = dataclasses.replace(TINY, quantile_levels=LEVELS)
# Without experts, which these heads do not know of, and which take longer to compile.
# Of as many heads of keys as of queries, so that tensor parallelism can divide them.
DENSE = dataclasses.replace(MODEL, use_dense=True, num_key_value_heads=2)
PLAIN = dataclasses.replace(DENSE, quantile_levels=())
CONFIG = RunConfig(
    model=DENSE,
    data=DataConfig(synthetic_sequences=1, length=24),
    train=TrainConfig(num_steps=10, batch_size=8),
)


def batch_of(seed: int = 0, rows: int = 8, length: int = 24) -> dict[str, np.ndarray]:
    """Random values of which a tenth are missing."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, length + 1)).astype(np.float32)
    return {"values": values, "mask": rng.uniform(size=values.shape) > 0.1}


@functools.cache
def params_of(config: TimeMoeConfig, seed: int = 1) -> nnx.State:
    return create_params(config, seed)


def model_of(config: TimeMoeConfig, seed: int = 1) -> TimeMoe:
    return nnx.merge(abstract_model(config)[0], params_of(config, seed))


# The config


@pytest.mark.parametrize("levels", [(0.5, 0.1), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (-0.1,)])
def test_levels_must_increase_within_0_and_1(levels):
    with pytest.raises(ConfigError, match=r"quantile_levels must increase and be in \(0, 1\)"):
        TimeMoeConfig(quantile_levels=levels)


def test_levels_from_a_config_file_or_a_command_line():
    for given_levels in ([0.1, 0.5, 0.9], "0.1, 0.5, 0.9"):
        config = from_mapping(TimeMoeConfig, {"quantile_levels": given_levels})
        assert config.quantile_levels == LEVELS
    config = time_moe_base.get_config()  # of fields that a flag can set
    assert config.model.quantile_levels == ()
    assert config.loss.quantile_loss_factor == LossConfig().quantile_loss_factor == 1.0
    with pytest.raises(ConfigError, match="quantile_loss_factor must be positive, but is 0"):
        LossConfig(quantile_loss_factor=0.0)


def test_the_published_format_has_no_such_heads(tmp_path):
    with pytest.raises(ConfigError, match=r"quantile_levels is \(0.1, 0.5, 0.9\)"):
        TimeMoeFormat().write_config(MODEL)
    with pytest.raises(ConfigError, match="the published format has no heads for them"):
        write_published(tmp_path / "out", DENSE, params_of(DENSE))
    assert not (tmp_path / "out").exists()
    published = TimeMoeFormat().write_config(TINY)
    assert "quantile_levels" not in published
    config, unknown = TimeMoeFormat().read_config({**published, "quantile_levels": [0.5]})
    assert (config, unknown) == (TINY, ["quantile_levels"])


def test_their_parameters_are_counted_and_placed():
    more = TINY.hidden_size * sum(TINY.horizon_lengths) * len(LEVELS)
    for with_heads, without in zip(count_parameters(MODEL), count_parameters(TINY), strict=True):
        assert with_heads == without + more
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_model(MODEL)[1]):
        assert len(partitioning.spec_of(partitioning.path_name(path), RULES)) <= leaf.ndim


# The heads


def test_outputs_of_zero_are_the_quantiles_of_a_standard_normal():
    for levels in (LEVELS, (0.3,), (0.7, 0.95), (0.01, 0.2, 0.45, 0.6, 0.99)):
        expected = [statistics.NormalDist().inv_cdf(level) for level in levels]
        found = non_crossing(jnp.zeros((2, len(levels))), levels)
        np.testing.assert_allclose(found, [expected] * 2, rtol=1e-6, atol=1e-6)


def test_quantiles_by_hand():
    """The anchor is 0.4, the nearest to 1/2; each step is softplus of its start and its output."""
    levels = (0.1, 0.4, 0.8, 0.9)
    z = [statistics.NormalDist().inv_cdf(level) for level in levels]
    start = [np.log(np.expm1(d)) for d in (z[1] - z[0], np.nan, z[2] - z[1], z[3] - z[2])]
    y = [0.3, -2.0, 1.5, -0.7]
    step = [np.log1p(np.exp(c + v)) for c, v in zip(start, y, strict=True)]
    anchor = z[1] + y[1]
    above = anchor + step[2]
    expected = [anchor - step[0], anchor, above, above + step[3]]
    np.testing.assert_allclose(non_crossing(jnp.array(y), levels), expected, rtol=1e-5)


@st.composite
def heads(draw):
    levels = tuple(sorted(draw(st.sets(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=12))))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0, 1e4, 1e30]))
    return levels, scale, draw(st.integers(0, 2**31))


@given(heads())
def test_quantiles_never_cross_whatever_the_outputs(drawn):
    levels, scale, seed = drawn
    outputs = scale * np.random.default_rng(seed).normal(size=(50, len(levels)))
    found = np.asarray(non_crossing(jnp.asarray(outputs, jnp.float32), levels))
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=-1) >= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantiles_of_a_model_never_cross(dtype):
    model = model_of(dataclasses.replace(DENSE, dtype=dtype, initializer_range=2.0))
    x = 100 * jax.random.normal(jax.random.key(0), (3, 20))
    hidden = jax.jit(lambda x: model(x).hidden)(x)
    for p in MODEL.horizon_lengths:
        found = model.quantile_head(hidden, p)
        assert found.shape == (3, 20, p, len(LEVELS))
        assert found.dtype == jnp.float32
        assert (jnp.diff(found, axis=-1) >= 0).all()
        assert float(jnp.std(found)) > 1  # and they depend on the input
        last = model.quantile_head(hidden[:, -1], p)
        np.testing.assert_allclose(last, found[:, -1], rtol=1e-5, atol=1e-5)


def test_at_first_they_are_spread_about_as_a_standard_normal():
    """With the initial scale of the published base model."""
    base = TimeMoeConfig(num_hidden_layers=1, use_dense=True)
    model = model_of(dataclasses.replace(base, quantile_levels=LEVELS))
    x = jax.random.normal(jax.random.key(0), (2, 32))
    quantiles = jax.jit(lambda x: model.quantile_head(model(x).hidden, 64))(x)
    width = np.diff(quantiles[..., [0, 2]], axis=-1)
    assert 0.8 < np.median(width) / (2 * 1.2816) < 1.25


def test_point_forecasts_are_those_of_the_model_without_them():
    """The same parameters from the same seed, and the same predictions to the last bit."""
    configs = (PLAIN, DENSE)
    plain, more = map(params_of, configs)
    more_flat = dict(nnx.to_flat_state(more))
    plain_flat = dict(nnx.to_flat_state(plain))
    assert {path[0] for path in more_flat.keys() - plain_flat.keys()} == {"quantile_heads"}
    for path, value in plain_flat.items():
        np.testing.assert_array_equal(value[...], more_flat[path][...])
    x = jax.random.normal(jax.random.key(0), (2, 16))
    outputs = []
    for config, params in zip(configs, (plain, more), strict=True):
        graph, _ = abstract_model(config)
        forward = jax.jit(lambda params, graph=graph: nnx.merge(graph, params)(x))
        outputs.append(forward(params))
    jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_a_model_without_them_says_so():
    with pytest.raises(ConfigError, match=r"quantile_levels is \(\)"):
        model_of(PLAIN).quantile_head(jnp.zeros((1, TINY.hidden_size)), 1)


# The loss


@pytest.mark.parametrize(
    ("quantiles", "levels", "expected"),
    [
        ([0.0], (0.9,), 0.9 * 2),  # the target is 2: too low by 2
        ([3.0], (0.9,), 0.1 * 1),  # too high by 1
        ([2.0], (0.3,), 0.0),
        ([1.0], (0.5,), 0.5),
        ([1.0, 4.0], (0.25, 0.75), (0.25 * 1 + 0.25 * 2) / 2),
    ],
)
def test_pinball_by_hand(quantiles, levels, expected):
    found = losses.pinball(jnp.array(quantiles), jnp.float32(2.0), levels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_slope_of_pinball_is_how_often_it_is_wrong():
    """-u where the quantile is below the target, 1 - u above, over the number of levels."""
    quantiles = jnp.array([[0.0, 5.0], [-1.0, 0.5]])
    slope = jax.grad(lambda q: losses.pinball(q, jnp.ones(2), (0.2, 0.7)).sum())(quantiles)
    np.testing.assert_allclose(slope, [[-0.2 / 2, 0.3 / 2], [-0.2 / 2, -0.7 / 2]], rtol=1e-6)


def test_the_gradient_of_a_head_is_that_of_its_loss():
    outputs = jax.random.normal(jax.random.key(0), (4, 5))
    targets = 3 + jnp.arange(4.0)  # away from every kink
    levels = (0.05, 0.3, 0.5, 0.8, 0.9)

    def loss(outputs):
        return losses.pinball(non_crossing(jnp.asarray(outputs), levels), targets, levels).sum()

    check_grads(loss, (outputs,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def reference(quantiles, targets, mask, levels, horizon, positions=None, segments=None):
    """The sum over what counts and how much that is, one by one."""
    total, count = 0.0, 0
    for b, t, h in np.ndindex(*targets.shape, horizon):
        if t + h >= targets.shape[1] or not mask[b, t + h]:
            continue
        if positions is not None and not positions[b, t]:
            continue
        if segments is not None and segments[b, t] != segments[b, t + h + 1]:
            continue
        count += 1
        for q, u in zip(quantiles[b, t, h], levels, strict=True):
            e = float(targets[b, t + h]) - float(q)
            total += (u * e if e >= 0 else (u - 1) * e) / len(levels)
    return total, count


@pytest.mark.parametrize("length", [1, 7, 12])
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_the_loss_of_each_head_one_by_one(length, packed):
    """Lengths that the number of levels, that is of parts, divides, and others."""
    rng = np.random.default_rng(length)
    levels, horizons = (0.2, 0.5, 0.6), (1, 3, 5)
    targets = rng.normal(size=(2, length)).astype(np.float32)
    mask = (rng.uniform(size=targets.shape) > 0.2).astype(np.float32)
    positions = (rng.uniform(size=targets.shape) > 0.2).astype(np.float32)
    segments = np.sort(rng.integers(0, 3, (2, length + 1))).astype(np.int32) if packed else None
    hidden = rng.normal(size=(2, length, 4)).astype(np.float32)
    kernels = {p: rng.normal(size=(4, p * 3)).astype(np.float32) for p in horizons}

    def head(states, p):
        return (states @ kernels[p]).reshape(*states.shape[:-1], p, 3)

    found = jax.jit(
        lambda *args: losses.quantile_losses(head, *args, horizon_lengths=horizons, levels=levels)
    )(hidden, losses.Targets(targets, mask, positions, segments))
    assert list(found) == list(horizons)
    for p in horizons:
        quantiles = head(hidden, p)
        total, count = reference(quantiles, targets, mask, levels, p, positions, segments)
        np.testing.assert_allclose(found[p], total / max(count, 1), rtol=1e-5, atol=1e-6)


def new_state(mesh=None):
    """Of a copy of the parameters, since a step donates them."""
    return create_state(CONFIG, jax.tree.map(jnp.array, params_of(DENSE)), mesh)


@functools.cache
def one_device_step():
    return make_train_step(CONFIG)


@functools.cache
def loss_of(config: RunConfig):
    return jax.jit(jax.value_and_grad(make_loss(config), has_aux=True))


def test_the_objective_is_huber_plus_the_factor_times_pinball():
    weighted = dataclasses.replace(CONFIG, loss=LossConfig(quantile_loss_factor=0.25))
    params, batch = params_of(DENSE), batch_of()
    found = {1.0: loss_of(CONFIG)(params, batch)[0]}
    found[0.25] = jax.jit(make_loss(weighted))(params, batch)
    for factor, (total, parts) in found.items():
        huber, quantile = (np.mean(list(d.values())) for d in (parts.horizons, parts.quantiles))
        np.testing.assert_allclose(total, huber + factor * quantile, rtol=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_values_that_are_missing_change_nothing(junk):
    """Neither the loss nor its gradient, whatever is stored there."""
    compute, params, batch = loss_of(CONFIG), params_of(DENSE), batch_of()
    assert not batch["mask"].all()
    changed = {**batch, "values": np.where(batch["mask"], batch["values"], junk)}
    (_, parts), gradient = compute(params, batch)
    (_, other), changed_gradient = compute(params, changed)
    jax.tree.map(np.testing.assert_array_equal, parts.quantiles, other.quantiles)
    jax.tree.map(np.testing.assert_array_equal, gradient, changed_gradient)
    kernels = [gradient["quantile_heads"][str(p)]["kernel"] for p in MODEL.horizon_lengths]
    assert min(np.abs(kernel[...]).max() for kernel in kernels) > 1e-4


def test_a_batch_without_targets_is_zero_with_a_finite_gradient():
    batch = batch_of()
    batch["mask"][:] = False
    (_, parts), gradient = loss_of(CONFIG)(params_of(DENSE), batch)
    assert {float(loss) for loss in parts.quantiles.values()} == {0.0}
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_packed_series_have_the_losses_that_they_have_alone():
    """Two series of 12 points in one row, and the same as rows of their own."""
    series = batch_of(rows=2, length=11)["values"]
    whole = np.ones((2, 12), bool)
    alone = {"values": np.pad(series, ((0, 0), (0, 12))), "mask": np.pad(whole, ((0, 0), (0, 12)))}
    together = {
        "values": series.reshape(1, 24),
        "mask": whole.reshape(1, 24),
        "segments": np.repeat(np.array([[1, 2]], np.int32), 12, axis=1),
    }
    params, compute = params_of(DENSE), jax.jit(make_loss(CONFIG))
    a, b = (compute(params, batch)[1].quantiles for batch in (alone, together))
    for p in MODEL.horizon_lengths:
        np.testing.assert_allclose(a[p], b[p], rtol=1e-5)


def test_accumulated_micro_batches_are_the_batch():
    """Of different counts of targets each."""
    batch = batch_of()
    batch["mask"][:3, 9:] = False
    cut = dataclasses.replace(
        CONFIG, train=dataclasses.replace(CONFIG.train, gradient_accumulation=4)
    )
    steps = one_device_step(), make_train_step(cut)
    (one, metrics), (several, other) = (step(new_state(), batch) for step in steps)
    for name in ("quantile_loss", "quantile_loss_1", "quantile_loss_4", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], other[name], rtol=1e-5)
    mean = (metrics["quantile_loss_1"] + metrics["quantile_loss_4"]) / 2
    np.testing.assert_allclose(metrics["quantile_loss"], mean, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(several.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_validation_adds_up_what_batches_have():
    batch = batch_of()
    params, sums = params_of(DENSE), make_validation(CONFIG)
    halves = [sums(params, {n: a[rows] for n, a in batch.items()}) for rows in np.s_[::2, 1::2]]
    (_, parts), _ = loss_of(CONFIG)(params, batch)
    for p in MODEL.horizon_lengths:
        total, count = (
            sum(float(h[f"{n}_{p}"]) for h in halves) for n in ("quantile_sum", "count")
        )
        np.testing.assert_allclose(total / count, parts.quantiles[p], rtol=1e-5)


# Devices


def gradient_and_updates(step, mesh=None):
    """The gradient of a batch, and the metrics and parameters after two updates."""
    state, metrics = new_state(mesh), []
    batches = [batch_of(i) for i in range(2)]
    if mesh is not None:
        batches = jax.device_put(batches, partitioning.batch_sharding(mesh))
    gradient = jax.device_get(loss_of(CONFIG)(state.params, batches[0])[1])
    for batch in batches:
        state, each = step(state, batch)
        metrics.append(jax.device_get(each))
    return gradient, metrics, jax.device_get(state.params)


def test_four_devices_equal_one():
    one = gradient_and_updates(one_device_step())
    mesh = partitioning.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    with partitioning.use_mesh(mesh):
        four = gradient_and_updates(make_train_step(CONFIG, mesh), mesh)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert "quantile_loss_4" in one[1][0]
