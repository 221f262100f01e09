"""Windows with points after their inputs that are only aimed at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TINY

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.pipeline.endless import EndlessIndex, JoinedIndex
from timemoe_jax.data.pipeline.training_data import describe, open_training_data
from timemoe_jax.data.pipeline.windows import Extent, WindowIndex, WindowSource
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import DataError
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training import losses
from timemoe_jax.training.config import RunConfig, TrainConfig
from timemoe_jax.training.objective import make_loss
from timemoe_jax.training.step import (
    compile_train_step,
    create_state,
    make_train_step,
    make_validation,
)


def lengths(*values):
    return np.array(values, np.int64)


def all_of(index):
    sequences, starts = index.locate(np.arange(len(index), dtype=np.int64))
    return list(zip(sequences.tolist(), starts.tolist(), strict=True))


# Where they lie


def test_windows_by_hand():
    """Of 4 + 3 points. Of 12: 0 and 4, one point in none; of 9: two in none; of 3: four padded."""
    index = WindowIndex(lengths(9, 3, 1, 12, 7), 4, future=3)
    assert (index.length, index.size, index.stride) == (4, 7, 4)
    assert all_of(index) == [(0, 0), (1, 0), (3, 0), (3, 4), (4, 0)]
    assert index.skipped_sequences == 1
    assert index.uncovered_points == 2 + 1 + 1
    assert index.padded_points == 4
    assert index.extent(0, 5) == Extent(0, 5, 7 + 3 + 2 * 7 + 7)
    assert index.extent(1, 3) == Extent(1, 2, 3)
    assert index.extent(3, 4) == Extent(2, 4, 14)


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    length=st.integers(1, 6),
    stride=st.integers(1, 15),
    future=st.integers(1, 8),
)
def test_windows_one_by_one(sizes, length, stride, future):
    """Each is whole but for the first of a series, and what is counted is what is there."""
    index = WindowIndex(lengths(*sizes), length, stride, future)
    whole = length + future
    expected = [
        (i, start)
        for i, n in enumerate(sizes)
        if n >= 2
        for start in range(0, n, stride)
        if start == 0 or start + whole <= n
    ]
    assert all_of(index) == expected
    covered = {(i, p) for i, start in expected for p in range(start, min(start + whole, sizes[i]))}
    assert index.uncovered_points == sum(sizes) - len(covered)
    missing = [max(start + whole - sizes[i], 0) for i, start in expected]
    assert index.padded_points == sum(missing)
    points = len(expected) * whole - sum(missing)
    assert index.extent(0, len(sizes)) == Extent(0, len(expected), points)


def test_a_future_of_one_is_the_default():
    one, default = WindowIndex(lengths(9, 12), 4, 4, 1), WindowIndex(lengths(9, 12), 4)
    assert all_of(one) == all_of(default)
    assert (one.size, default.size) == (5, 5)


def test_a_future_of_nothing():
    with pytest.raises(DataError, match="stride 4 and future 0 must all be at least 1"):
        WindowIndex(lengths(9), 4, future=0)


def test_generated_windows():
    index = EndlessIndex(4, 10, future=3)
    assert (len(index), index.length, index.size) == (10, 4, 7)
    assert index.extent(2, 5) == Extent(2, 5, 21)
    assert index.pieces(6) == [(6, 0, 7)]
    assert EndlessIndex(4, 10).size == 5


def test_joined_windows_have_one_size():
    joined = JoinedIndex([WindowIndex(lengths(9, 12), 4, future=3), EndlessIndex(4, 10, future=3)])
    assert (joined.length, joined.size, len(joined)) == (4, 7, 13)
    assert joined.extent(2, 5) == Extent(3, 6, 21)
    # As many points in all, but not as many of them inputs.
    with pytest.raises(DataError, match=r"\[\(4, 7\), \(5, 7\)\] cannot be joined"):
        JoinedIndex([EndlessIndex(4, 10, future=3), EndlessIndex(5, 10, future=2)])


# What they hold


def test_values_by_hand():
    series = np.arange(12.0) ** 2
    source = ArraySource([series, np.array([1.0, 3.0, 5.0])])
    windows = WindowSource(source, WindowIndex(source.lengths, 4, future=3))
    batch = windows.batch(np.array([1, 2, -1], np.int64))
    assert batch["values"].shape == batch["mask"].shape == (3, 7)
    z = (series - series.mean()) / series.std()
    np.testing.assert_allclose(batch["values"][0], z[4:11], rtol=1e-6)
    step = 2 / np.sqrt(8 / 3)
    np.testing.assert_allclose(batch["values"][1], [-step, 0, step, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(batch["mask"].sum(axis=1), [7, 3, 0])
    summary = describe(source, windows.index, batch_size=2)
    assert summary.padded_share == 4 / 21
    assert summary.uncovered_points == 1


def test_a_run_draws_real_and_generated_windows_of_one_size(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=200))
    config = DataConfig(
        path=str(tmp_path / "a.npy"),
        length=16,
        future=20,
        synthetic_share=0.5,
        synthetic_families="chaos",
    )
    data = open_training_data(config, seed=0, num_steps=10, batch_size=4)
    # Of 36 points at every 16th: (200 - 36) // 16 later ones.
    assert data.train.index.extent(0, 1) == Extent(0, 11, 11 * 36)
    batch = data.train.batch(np.array([0, 10, 11, 500], np.int64))
    assert batch["values"].shape == (4, 36)
    assert batch["mask"].all()
    # What is generated is z-scored over inputs and future together.
    np.testing.assert_allclose(batch["values"][2:].mean(axis=1), [0, 0], atol=1e-4)
    np.testing.assert_allclose(batch["values"][2:].std(axis=1), [1, 1], rtol=1e-4)


# What is aimed at

LEVELS = (0.1, 0.5, 0.9)
CONFIG = RunConfig(
    model=dataclasses.replace(TINY, use_dense=True),
    data=DataConfig(synthetic_sequences=1, length=6, future=4),
    train=TrainConfig(num_steps=10, batch_size=2),
)


def batch_of():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 10)).astype(np.float32)
    return {"values": values, "mask": np.ones(values.shape, bool)}


def test_targets_beyond_the_inputs_by_hand():
    """Two inputs, and heads of 1 and 3: all six targets of the longer head are there."""
    points = jnp.array([[0.0, 1.0, 2.0, 4.0, 7.0]])
    predictions = {1: jnp.zeros((1, 2, 1)), 3: jnp.array([[[1.0, 2.0, 4.0], [2.0, 4.0, 8.0]]])}
    at = {p: jnp.arange(2) for p in (1, 3)}
    targets = losses.Targets(points[:, 1:], jnp.ones((1, 4)), at=at)
    found = losses.forecast_losses(predictions, targets, delta=9.0)
    np.testing.assert_allclose(found[1], (0.5 + 2) / 2)
    np.testing.assert_allclose(found[3], 0.5 / 6, rtol=1e-6)
    weights = targets._replace(positions=jnp.ones((1, 2))).counts((1, 3))
    assert {p: float(w) for p, w in weights.items()} == {1: 2, 3: 6}
    # Padding among what is aimed at does not count; nor does what lies past the end.
    shorter = targets._replace(mask=targets.mask.at[0, 3].set(0), at={**at, 9: at[1]})
    assert {p: float(w) for p, w in shorter.counts((1, 3, 9)).items()} == {1: 2, 3: 5, 9: 5}


def test_every_input_aims_as_far_as_its_head():
    """Each target is the one point that the loss feels when its value changes."""
    state, validation = create_state(CONFIG), make_validation(CONFIG)
    sums = validation(state.params, batch_of())
    assert (float(sums["count_1"]), float(sums["count_4"])) == (2 * 6, 2 * 6 * 4)
    for point, felt in ((9, {"sum_4"}), (6, {"sum_1", "sum_4"})):
        other = batch_of()
        other["values"][0, point] += 1
        moved = validation(state.params, other)
        assert {name for name in sums if float(sums[name]) != float(moved[name])} == felt


def test_what_is_not_read_has_no_say_but_as_a_target():
    """The loss at the first inputs alone is that of windows without the last of the future."""
    state, loss = create_state(CONFIG), jax.jit(make_loss(CONFIG))
    short = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, future=1))
    batch = batch_of()
    batch["mask"][:, 7:] = False
    cut = {name: array[:, :7] for name, array in batch.items()}
    found, expected = loss(state.params, batch)[1], jax.jit(make_loss(short))(state.params, cut)[1]
    for p in (1, 4):
        np.testing.assert_allclose(found.horizons[p], expected.horizons[p], rtol=1e-6)


@pytest.mark.parametrize("use_positions", [False, True])
def test_quantile_heads_aim_beyond_the_inputs(use_positions):
    """Five inputs in parts of two, and targets three points further."""
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(2, 5, 3)), rng.normal(size=(3, 4 * 3))
    targets = rng.normal(size=(2, 8))
    mask = rng.uniform(size=targets.shape) < 0.8
    positions = np.array([[1, 0, 1, 1, 1], [1, 1, 1, 1, 1]]) if use_positions else np.ones((2, 5))

    def head(states, p):
        return (states @ kernel.astype(np.float32)).reshape(*states.shape[:-1], p, 3)

    found = losses.quantile_losses(
        head,
        jnp.asarray(hidden, jnp.float32),
        losses.Targets(
            jnp.asarray(targets, jnp.float32),
            jnp.asarray(mask, jnp.float32),
            jnp.asarray(positions, jnp.float32) if use_positions else None,
        ),
        horizon_lengths=(4,),
        levels=LEVELS,
    )
    errors = []
    for row, t, k in np.ndindex(2, 5, 4):
        if positions[row, t] and mask[row, t + k]:
            error = targets[row, t + k] - (hidden[row, t] @ kernel).reshape(4, 3)[k]
            errors.append(
                np.mean(np.maximum(np.multiply(LEVELS, error), (np.array(LEVELS) - 1) * error))
            )
    np.testing.assert_allclose(found[4], np.mean(errors), rtol=1e-5)


def test_quantile_heads_train_with_a_future():
    model = dataclasses.replace(CONFIG.model, quantile_levels=LEVELS)
    config = dataclasses.replace(CONFIG, model=model)
    _, metrics = make_train_step(config)(create_state(config), batch_of())
    assert bool(metrics["finite"])
    assert float(metrics["quantile_loss_4"]) > 0


def test_an_update_is_compiled_for_inputs_and_future():
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    batch = jax.device_put(batch_of(), partitioning.batch_sharding(mesh))
    _, metrics = compile_train_step(CONFIG, mesh)(create_state(CONFIG, mesh=mesh), batch)
    assert float(metrics["points"]) == 2 * 6
