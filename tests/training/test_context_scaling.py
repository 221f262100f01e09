"""Windows z-scored by their first points, alone and in training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TINY

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.series import location_and_scale
from timemoe_jax.models.base import abstract_model, create_params
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training import run as train
from timemoe_jax.training.config import LossConfig, OptimizerConfig, RunConfig, TrainConfig
from timemoe_jax.training.context_scaling import context_lengths, last_observed, scale_by_context
from timemoe_jax.training.objective import read_at
from timemoe_jax.training.step import create_state, make_train_step, make_validation

compiled = jax.jit(scale_by_context, static_argnums=(3, 4))


def scaled(values, mask, contexts, num_inputs, clip=0.0):
    found = compiled(
        jnp.asarray(values, jnp.float32),
        jnp.asarray(mask),
        jnp.asarray(contexts, jnp.int32),
        num_inputs,
        clip,
    )
    return np.asarray(found.values), np.asarray(found.positions)


# The scaling itself


def test_scaling_by_hand():
    """Contexts of two and of three points, one of them missing, both of mean 2 and deviation 1."""
    values = [[1.0, 3.0, 5.0, -2.0, 4.0], [1.0, 9.0, 3.0, 0.0, 12.0]]
    mask = np.array([[True] * 5, [True, False, True, True, True]])
    found, positions = scaled(values, mask, [2, 3], 3)
    np.testing.assert_allclose(found, [[-1, 1, 3, -4, 2], [-1, 0, 1, -2, 10]], rtol=1e-6)
    # Forecasts from the last point of a context on, among the three that are read.
    np.testing.assert_array_equal(positions, [[0, 1, 1], [0, 0, 1]])
    assert positions.dtype == np.float32


def test_a_forecast_from_a_missing_point_does_not_count():
    mask = np.array([[True, True, False, True, False]])
    _, positions = scaled([[0.0, 1.0, 7.0, 2.0, 7.0]], mask, [3], 5)
    np.testing.assert_array_equal(positions, [[0, 0, 0, 1, 0]])


def test_a_context_is_scaled_as_a_forecaster_scales_it():
    rng = np.random.default_rng(0)
    values = 3 + 2 * rng.normal(size=(4, 20))
    mask = rng.uniform(size=values.shape) < 0.8
    found, _ = scaled(values, mask, [12] * 4, 20)
    mean, deviation = location_and_scale(np.where(mask, values, np.nan)[:, :12])
    expected = np.where(mask, (values - mean[:, None]) / deviation[:, None], 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 2**16), junk=st.sampled_from([0.0, 1e4, -3.0, 1e30]))
def test_later_points_change_nothing_before_them(seed, junk):
    """Neither the values of a context, bit by bit, nor which forecasts count."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(3, 12))
    mask = rng.uniform(size=values.shape) < 0.8
    contexts = rng.integers(1, 13, 3)
    later = np.arange(12) >= contexts[:, None]
    other = np.where(later, junk, values)
    (first, counts), (second, same) = (scaled(v, mask, contexts, 10) for v in (values, other))
    np.testing.assert_array_equal(np.where(later, 0, first), np.where(later, 0, second))
    np.testing.assert_array_equal(counts, same)
    assert not counts[np.arange(10) < contexts[:, None] - 1].any()


@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e30])
def test_what_is_missing_changes_nothing(junk):
    rng = np.random.default_rng(1)
    values, mask = rng.normal(size=(2, 9)), rng.uniform(size=(2, 9)) < 0.7
    found, positions = scaled(np.where(mask, values, 0), mask, [5, 9], 8)
    again, same = scaled(np.where(mask, values, junk), mask, [5, 9], 8)
    np.testing.assert_array_equal(found, again)
    np.testing.assert_array_equal(positions, same)
    assert not found[~mask].any()


def test_flat_contexts_do_not_count():
    """Constant, of one observed point, of none: finite values and no forecast."""
    values = np.array([[3.0, 3, 3, 7, 1, 2], [3.0, 9, 9, 7, 1, 2], [3.0, 9, 9, 7, 1, 2]])
    mask = np.ones(values.shape, bool)
    mask[1, 1:3] = mask[2, :3] = False
    found, positions = scaled(values, mask, [3, 3, 3], 5)
    assert np.isfinite(found).all()
    assert not positions.any()
    np.testing.assert_array_equal(found[0], [0, 0, 0, 4, -2, -1])


@pytest.mark.parametrize(("deviation", "counts"), [(0.9e-3, False), (1.1e-3, True)])
def test_a_thousandth_of_the_series_deviation_is_flat(deviation, counts):
    _, positions = scaled([[deviation, -deviation, 1.0, 2.0]], np.ones((1, 4), bool), [2], 3)
    assert positions.any() == counts


def test_values_are_clipped_after_scaling():
    values, mask = [[1.0, 3.0, 50.0, -60.0, 4.5]], np.ones((1, 5), bool)
    np.testing.assert_allclose(
        scaled(values, mask, [2], 3, clip=2.5)[0], [[-1, 1, 2.5, -2.5, 2.5]], rtol=1e-6
    )
    np.testing.assert_allclose(scaled(values, mask, [2], 3)[0], [[-1, 1, 48, -62, 2.5]], rtol=1e-6)


@given(
    seed=st.integers(0, 2**16),
    scale=st.floats(0.3, 3.0),
    shift=st.floats(-3.0, 3.0),
)
def test_scaling_forgets_level_and_scale(seed, scale, shift):
    values = np.random.default_rng(seed).normal(size=(3, 16))
    mask = np.ones(values.shape, bool)
    found, positions = scaled(values, mask, [8, 12, 16], 16)
    moved, same = scaled(scale * values + shift, mask, [8, 12, 16], 16)
    # Eight values and a scale of 0.3 at worst: rounding of 1e-7 times a level of 10 or so.
    np.testing.assert_allclose(moved, found, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(positions, same)


# How long contexts are


def test_every_length_is_as_likely():
    """From the shortest to all inputs: 1000 expected of each of eight, deviation 30."""
    mask = jnp.ones((8000, 10), bool)
    drawn = np.asarray(context_lengths(jax.random.key(0), mask, 3))
    counts = np.bincount(drawn, minlength=11)
    assert counts[:3].sum() == 0
    assert np.abs(counts[3:] - 1000).max() < 150


def test_lengths_follow_from_the_key_alone():
    mask = jnp.ones((50, 40), bool)
    first, same, other = (context_lengths(jax.random.key(k), mask, 8) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).sum() > 20
    # Gaps before the last observed point do not matter.
    gaps = mask.at[:, 3:30].set(False)
    np.testing.assert_array_equal(first, context_lengths(jax.random.key(1), gaps, 8))


@given(seed=st.integers(0, 2**16), observed=st.integers(0, 12), shortest=st.integers(1, 12))
def test_a_context_ends_within_its_series(seed, observed, shortest):
    mask = jnp.zeros((20, 12), bool).at[:, :observed].set(True)
    drawn = np.asarray(context_lengths(jax.random.key(seed), mask, shortest))
    assert (drawn <= observed).all()
    assert (drawn >= min(shortest, observed)).all()


def test_the_last_observed_point_by_hand():
    mask = jnp.array([[True, False, True, False], [False] * 4, [False, False, False, True]])
    np.testing.assert_array_equal(last_observed(mask), [2, -1, 3])


# In training

LENGTH, FUTURE = 24, 4
CONFIG = RunConfig(
    model=dataclasses.replace(TINY, use_dense=True, num_attention_heads=4, num_key_value_heads=4),
    data=DataConfig(
        synthetic_sequences=20,
        synthetic_length=60,
        length=LENGTH,
        future=FUTURE,
        standardization="context",
        context_min=6,
        clip=4.0,
    ),
    loss=LossConfig(max_steps_per_position=2),
    # An update smooth in the gradient, not its sign.
    optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-2, schedule="stable", decay_steps=2),
    train=TrainConfig(num_steps=4, batch_size=8, log_every=1),
)
BY_SERIES = dataclasses.replace(
    CONFIG, data=dataclasses.replace(CONFIG.data, standardization="series", clip=1.0)
)


def batch_of(seed=0, rows=8):
    """Walks of which a tenth is missing, a padded one, and one that begins flat."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, LENGTH + FUTURE)).cumsum(axis=1)
    mask = rng.uniform(size=values.shape) < 0.9
    mask[1, 15:] = False
    values[2, :20] = 1.5
    return {"values": values.astype(np.float32), "mask": mask}


@functools.cache
def step_of(config):
    return make_train_step(config)


@functools.cache
def initial_params():
    return create_params(CONFIG.model, CONFIG.seed)


def new_state(config=CONFIG, mesh=None):
    """Of a copy of the parameters, since a step donates them."""
    return create_state(config, jax.tree.map(jnp.array, initial_params()), mesh)


def plain_losses(config, params, batch, contexts, at):
    """The loss of each head one target after the other, from the predictions of the model."""
    values, mask = batch["values"].astype(np.float64), batch["mask"]
    z, counts = np.zeros_like(values), np.zeros_like(mask)
    for row, context in enumerate(contexts):
        own = values[row, :context][mask[row, :context]]
        flat = own.size == 0 or own.std() < 1e-3
        centered = (values[row] - (own.mean() if own.size else 0)) / (1 if flat else own.std())
        z[row] = np.where(mask[row], np.clip(centered, -config.data.clip, config.data.clip), 0)
        counts[row] = mask[row] & (np.arange(values.shape[1]) >= context - 1) & (not flat)
    model = nnx.merge(abstract_model(config.model)[0], params)
    x, read = z[:, :LENGTH].astype(np.float32), mask[:, :LENGTH]
    predictions = jax.jit(lambda x, read: model(x, read).predictions)(x, read)
    found = {}
    for p, predicted in predictions.items():
        errors = [
            float(predicted[row, t, k]) - z[row, t + 1 + k]
            for row in range(len(values))
            for t in np.asarray(at[p])
            for k in range(p)
            if counts[row, t] and t + 1 + k < values.shape[1] and mask[row, t + 1 + k]
        ]
        assert errors
        size = np.abs(errors)
        delta = config.loss.huber_delta
        found[p] = np.mean(np.where(size < delta, size**2 / 2, delta * (size - delta / 2)))
    return found


def test_a_step_is_the_plain_computation():
    """Of the contexts and positions that the seed and the number of the step give."""
    state = new_state()
    for step in range(2):
        key = jax.random.fold_in(jax.random.key(CONFIG.seed), step)
        of_contexts, of_positions = jax.random.split(key)
        batch, params = batch_of(step), jax.tree.map(jnp.array, state.params)
        contexts = context_lengths(of_contexts, jnp.asarray(batch["mask"][:, :LENGTH]), 6)
        at = read_at(CONFIG, of_positions)
        expected = plain_losses(CONFIG, params, batch, np.asarray(contexts), at)
        state, metrics = step_of(CONFIG)(state, batch)
        for p, loss in expected.items():
            np.testing.assert_allclose(metrics[f"loss_{p}"], loss, rtol=1e-5)
        assert int(metrics["points"]) == batch["mask"][:, :LENGTH].sum()


def test_a_step_forgets_the_level_and_scale_of_a_window():
    """Each window has its own; z-scored by the series they would matter."""
    batch = batch_of()
    rng = np.random.default_rng(5)
    scale, shift = rng.uniform(0.5, 2, (8, 1)), rng.uniform(-2, 2, (8, 1))
    moved = {**batch, "values": (scale * batch["values"] + shift).astype(np.float32)}
    differences = []
    for config in (CONFIG, BY_SERIES):
        one, other = (step_of(config)(new_state(config), b) for b in (batch, moved))
        differences.append(abs(float(one[1]["loss"]) - float(other[1]["loss"])))
        if config is CONFIG:
            for a, b in zip(*(jax.tree.leaves(s.params) for s, _ in (one, other)), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert differences[0] < 1e-5
    assert differences[1] > 1e-3


def test_clipping_needs_no_context():
    """Values of a series beyond the clip are those at it."""
    batch = batch_of()
    clipped = {**batch, "values": np.clip(batch["values"], -1, 1)}
    one, other = (step_of(BY_SERIES)(new_state(BY_SERIES), b)[1] for b in (batch, clipped))
    assert np.abs(batch["values"]).max() > 2
    assert float(one["loss"]) == float(other["loss"])


def test_validation_reads_whole_inputs_and_counts_their_last_forecast():
    """One target of head 1 and four of head 4 for each window, whatever the run's seed."""
    batch = batch_of()
    batch["mask"][:] = True
    state = new_state()
    sums = make_validation(CONFIG)(state.params, batch)
    assert (float(sums["count_1"]), float(sums["count_4"])) == (8, 32)
    at = {p: np.arange(LENGTH) for p in (1, 4)}
    expected = plain_losses(CONFIG, state.params, batch, [LENGTH] * 8, at)
    for p, loss in expected.items():
        np.testing.assert_allclose(sums[f"sum_{p}"] / sums[f"count_{p}"], loss, rtol=1e-5)


def updated(state, step, place=lambda batch: batch):
    """What some updates give."""
    metrics = []
    for i in range(2):
        state, each = step(state, place(batch_of(i)))
        metrics.append({name: np.asarray(value) for name, value in each.items()})
    return metrics, jax.device_get(state.params)


@functools.cache
def on_one_device():
    return updated(new_state(), step_of(CONFIG))


@pytest.mark.parametrize(
    ("sizes", "micro_batches"),
    [({"data": 4}, 1), ({"fsdp": 2, "tensor": 2}, 2)],
    ids=["data4", "fsdp2-tensor2-accumulated"],
)
def test_neither_mesh_nor_micro_batches_change_it(sizes, micro_batches):
    """Lengths and positions are drawn for the whole batch, before it is cut up."""
    mesh = partitioning.make_mesh(MeshConfig(**sizes), jax.devices()[:4])
    cut = dataclasses.replace(
        CONFIG, train=dataclasses.replace(CONFIG.train, gradient_accumulation=micro_batches)
    )
    with partitioning.use_mesh(mesh):
        place = functools.partial(jax.device_put, device=partitioning.batch_sharding(mesh))
        found = updated(new_state(cut, mesh), make_train_step(cut, mesh), place)
    for a, b in zip(*map(jax.tree.leaves, (on_one_device(), found)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_has_the_same_bits(tmp_path):
    """With every option at once: what is drawn follows from the seed and the step."""

    def run(**fields):
        config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **fields))
        return train.run(config, tmp_path / "run", jax.devices()[:1])

    whole = run(checkpoint_every=1)
    for step in (3, 4):
        (tmp_path / "run" / "checkpoints" / str(step)).rename(tmp_path / str(step))
    resumed = run()
    assert resumed.step == 4
    for a, b in zip(*(jax.tree.leaves(r.state) for r in (whole, resumed)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
