"""One update: schedule, decay, clipping, masks, accumulation, updates that are not finite."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from timemoe_jax.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from timemoe_jax.train_step import (
    create_state,
    learning_rate_schedule,
    make_loss,
    make_train_step,
    make_validation,
)

MODEL = ModelConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_experts=4,
    horizon_lengths=(1, 4),
    initializer_range=0.2,
)
CONFIG = RunConfig(
    model=MODEL,
    data=DataConfig(synthetic_sequences=1, length=24),
    optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
    train=TrainConfig(num_steps=20, batch_size=8),
)


# Compiled once for each configuration.
_step = functools.cache(make_train_step)
_validation = functools.cache(make_validation)


@functools.cache
def _loss(config):
    return jax.jit(make_loss(config))


@functools.cache
def _gradient(config):
    return jax.jit(jax.value_and_grad(lambda p, b: make_loss(config)(p, b)[0]))


def _with(section, **values):
    return dataclasses.replace(
        CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **values)}
    )


def _batch(seed=0, rows=8, length=24):
    rng = np.random.default_rng(seed)
    t = np.arange(length + 1)
    values = np.sin(t / 2 + rng.uniform(0, 6, (rows, 1))) + 0.1 * rng.normal(size=(rows, len(t)))
    return {"values": values.astype(np.float32), "mask": np.ones(values.shape, bool)}


def test_the_loss_falls():
    step, state = _step(CONFIG), create_state(CONFIG)
    losses = []
    for i in range(20):
        state, metrics = step(state, _batch(i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert int(state.step) == 20
    assert int(state.skipped) == 0


def test_the_schedule():
    config = OptimizerConfig(learning_rate=1.0, end_learning_rate=0.1, warmup_steps=10)
    schedule = learning_rate_schedule(config, 110)
    assert float(schedule(0)) == 0.0
    np.testing.assert_allclose(schedule(5), 0.5)
    np.testing.assert_allclose(schedule(10), 1.0)
    np.testing.assert_allclose(schedule(60), 0.55, rtol=1e-6)  # half-way down the cosine
    np.testing.assert_allclose(schedule(110), 0.1, rtol=1e-6)
    np.testing.assert_allclose(schedule(500), 0.1, rtol=1e-6)
    assert float(learning_rate_schedule(OptimizerConfig(learning_rate=1.0), 10)(0)) == 1.0


@pytest.mark.parametrize("exclude", ["vectors", "none"])
def test_the_decay_mask(exclude):
    config = _with("optimizer", weight_decay=0.5, weight_decay_exclude=exclude, learning_rate=1e-9)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.1, eps=1e6)
    )
    state = create_state(config)
    params = jax.tree.map(lambda p: p + 1.0, state.params)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(params))
    # With so large an eps the gradient moves nothing, and the decay alone is left.
    after, _ = _step(config)(create_state(config, params), _batch())
    ratio = jax.tree.map(lambda a, b: a / b, nnx.to_pure_dict(after.params), before)
    decayed = 1 - 0.1 * 0.5
    np.testing.assert_allclose(ratio["embed"]["gate"], decayed, rtol=1e-4)
    np.testing.assert_allclose(ratio["blocks"]["ffn"]["experts"]["up"], decayed, rtol=1e-4)
    kept = decayed if exclude == "none" else 1.0
    np.testing.assert_allclose(ratio["blocks"]["attention"]["key"]["bias"], kept, rtol=1e-4)
    np.testing.assert_allclose(ratio["norm"]["scale"], kept, rtol=1e-4)


def test_padded_targets_never_count():
    loss, state = _loss(CONFIG), create_state(CONFIG)
    batch = _batch()
    batch["mask"][:, 15:] = False
    value, grads = _gradient(CONFIG)(state.params, batch)
    other = {**batch, "values": batch["values"].copy()}
    other["values"][:, 15:] = 1e3
    same, same_grads = _gradient(CONFIG)(state.params, other)
    assert float(value) == float(same)
    chex.assert_trees_all_equal(grads, same_grads)
    short = {name: a[:, :15] for name, a in batch.items()}
    for p, expected in loss(state.params, short)[1].horizons.items():
        np.testing.assert_allclose(loss(state.params, batch)[1].horizons[p], expected, rtol=1e-6)


def test_missing_points_are_neither_read_nor_aimed_at():
    loss, state = _loss(CONFIG), create_state(CONFIG)
    batch = _batch()
    batch["mask"][:, 7:10] = False
    other = {**batch, "values": np.where(batch["mask"], batch["values"], -50.0)}
    assert float(loss(state.params, batch)[0]) == float(loss(state.params, other)[0])


def test_a_batch_without_a_single_target_is_harmless():
    batch = _batch()
    batch["mask"][:] = False
    _, metrics = _step(CONFIG)(create_state(CONFIG), batch)
    assert bool(metrics["finite"])
    assert float(metrics["loss"]) == 0.0


def test_balancing_leaves_padding_out_unless_asked():
    batch = _batch()
    batch["mask"][:, 12:] = False
    published = _with("loss", balance_counts_padding=True)
    state = create_state(CONFIG)
    ours = _loss(CONFIG)(state.params, batch)[1].statistics
    theirs = _loss(published)(state.params, batch)[1].statistics
    np.testing.assert_array_equal(ours.tokens, [8 * 12] * 2)
    np.testing.assert_array_equal(theirs.tokens, [8 * 24] * 2)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulation_gives_the_gradient_of_the_batch(micro_batches):
    # With a large eps an update is smooth in the gradient; with a small one it is its sign.
    no_balancing = dataclasses.replace(
        _with("optimizer", eps=1.0), model=dataclasses.replace(MODEL, apply_aux_loss=False)
    )
    config = dataclasses.replace(
        no_balancing,
        train=dataclasses.replace(CONFIG.train, gradient_accumulation=micro_batches),
    )
    batch = _batch()
    batch["mask"][1, 5:] = False  # micro-batches of unequal weight
    batch["mask"][6, 9:] = False
    whole, one = _step(no_balancing)(create_state(no_balancing), batch)
    parts, many = _step(config)(create_state(config), batch)
    np.testing.assert_allclose(one["loss"], many["loss"], rtol=1e-6)
    np.testing.assert_allclose(one["gradient_norm"], many["gradient_norm"], rtol=1e-5)
    np.testing.assert_array_equal(one["expert_load"], many["expert_load"])
    chex.assert_trees_all_close(whole.params, parts.params, rtol=0, atol=1e-7)


def test_clipping_bounds_the_gradient():
    config = _with("optimizer", clip_norm=1e-3, b1=0.0, b2=0.0, eps=1.0, learning_rate=1.0)
    state = create_state(config)
    before = jax.tree.map(lambda p: np.array(p), state.params)
    after, metrics = _step(config)(state, _batch())
    assert float(metrics["gradient_norm"]) > 1e-2
    # g / (|g| + 1) is g for a gradient this small: the step is as long as the clipped gradient.
    moved = optax.global_norm(jax.tree.map(lambda a, b: a - b, after.params, before))
    np.testing.assert_allclose(float(moved), 1e-3, rtol=0.02)


def test_an_update_that_is_not_finite_changes_nothing():
    step, state = _step(CONFIG), create_state(CONFIG)
    state, _ = step(state, _batch(0))
    before = jax.tree.map(lambda a: np.array(a), state)
    bad = _batch(1)
    bad["values"][0, 3] = np.inf
    state, metrics = step(state, bad)
    assert not bool(metrics["finite"])
    chex.assert_trees_all_equal(state.params, before.params)
    chex.assert_trees_all_equal(state.opt_state, before.opt_state)
    assert (int(state.step), int(state.skipped)) == (2, 1)
    state, metrics = step(state, _batch(2))
    assert bool(metrics["finite"])
    # The schedule counts updates, not batches.
    np.testing.assert_allclose(
        metrics["learning_rate"], learning_rate_schedule(CONFIG.optimizer, 20)(1)
    )


def test_validation_sums_make_the_mean_over_batches():
    state = create_state(CONFIG)
    batch = _batch(rows=8)
    batch["mask"][2, 4:] = False
    validation, loss = _validation(CONFIG), _loss(CONFIG)
    halves = [{n: a[i : i + 4] for n, a in batch.items()} for i in (0, 4)]
    sums = [validation(state.params, half) for half in halves]
    expected = loss(state.params, batch)[1].horizons
    for p in MODEL.horizon_lengths:
        mean = sum(s[f"sum_{p}"] for s in sums) / sum(s[f"count_{p}"] for s in sums)
        np.testing.assert_allclose(mean, expected[p], rtol=1e-5)


def test_a_dense_model_trains():
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, use_dense=True))
    _, metrics = _step(config)(create_state(config), _batch())
    assert bool(metrics["finite"])
    assert "expert_load" not in metrics


def test_huber_delta_is_used():
    narrow = dataclasses.replace(CONFIG, loss=LossConfig(huber_delta=0.1))
    state = create_state(CONFIG)
    wide = _loss(CONFIG)(state.params, _batch())[1].horizons[1]
    assert float(_loss(narrow)(state.params, _batch())[1].horizons[1]) < float(wide)
