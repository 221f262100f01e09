"""Windows cut into pieces: contexts of all lengths, each z-scored by itself, and their loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import TINY

from timemoe_jax.data.config import DataConfig
from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import abstract_model, create_params
from timemoe_jax.training.config import LossConfig, RunConfig, TrainConfig
from timemoe_jax.training.objective import make_loss, prepare, read_at
from timemoe_jax.training.pieces import cut_pieces
from timemoe_jax.training.step import make_validation

LENGTH, FUTURE, PATCH = 32, 12, 4
DATA = DataConfig(
    synthetic_sequences=1,
    length=LENGTH,
    future=FUTURE,
    standardization="pieces",
    context_min=4,
    clip=5.0,
    sign_flips=0.5,
)
CONFIG = RunConfig(
    model=dataclasses.replace(
        TINY,
        use_dense=True,
        patch_size=PATCH,
        horizon_lengths=(4, 8),
        quantile_levels=(0.2, 0.5),
        point_heads=False,
        asinh=True,
    ),
    data=DATA,
    loss=LossConfig(max_steps_per_position=4),
    train=TrainConfig(num_steps=4, batch_size=40),
)


def batch_of(seed=0, rows=40):
    """Walks, of which some end early, one begins flat and one has a gap."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, LENGTH + FUTURE)).cumsum(axis=1)
    mask = np.ones(values.shape, bool)
    mask[0, 21:] = mask[1, 9:] = mask[2, 3:] = mask[3, 10:14] = False
    values[4] = 1.5
    return {"values": np.where(mask, values, 0).astype(np.float32), "mask": mask}


compiled = jax.jit(lambda batch, key: cut_pieces(DATA, PATCH, batch, key))


@functools.cache
def cut(seed: int | None):
    return jax.device_get(compiled(batch_of(), None if seed is None else jax.random.key(seed)))


@pytest.mark.parametrize("seed", [0, 1])
def test_each_piece_is_scaled_by_its_own_first_points(seed):
    """From half of it on; only forecasts from the last of those on count."""
    found, lengths = cut(seed), set()
    for row in range(40):
        for piece in np.unique(found["pieces"][row]):
            at = np.flatnonzero(found["pieces"][row] == piece)
            lengths.add(len(at))
            read, counts = at[found["read"][row, at]], at[found["positions"][row, at] > 0]
            values, mean = found["values"][row], found["mean"][row, at]
            deviation = found["deviation"][row, at]
            assert np.ptp(mean) == np.ptp(deviation) == 0
            expected = np.clip((values[read] - mean[0]) / deviation[0], -5, 5)
            np.testing.assert_allclose(found["inputs"][row, read], expected, atol=1e-6)
            if len(counts):
                assert set(counts) == {t for t in read if t >= counts[0]}
            if len(counts) and row != 3:  # whose context may end within the gap
                context = values[read[read <= counts[0]]]
                assert len(context) >= max(4, len(read) // 2 - PATCH)
                found_by_hand = [context.mean(), context.std()]
                np.testing.assert_allclose([mean[0], deviation[0]], found_by_hand, atol=1e-4)
    assert lengths == {4, 8, 16, 32}


def test_a_window_is_moved_and_turned_as_a_whole():
    found, batch = cut(0), batch_of()
    signs, shifts = set(), set()
    for row in range(5, 40):
        values, mask = found["values"][row], found["mask"][row]
        shift = int(np.argmax(mask))
        sign = np.sign(values[shift] * batch["values"][row, 0])
        moved = sign * batch["values"][row, : len(values) - shift]
        np.testing.assert_array_equal(values[shift:], moved)
        signs.add(sign)
        shifts.add(shift)
    assert (signs, shifts) == ({1, -1}, {0, 1, 2, 3})


def test_flat_and_short_windows_count_for_nothing():
    for seed in (0, 1):
        positions = cut(seed)["positions"]
        assert not positions[[2, 4]].any()
        assert positions[[0, 1, 3]].any(axis=1).all()


def test_pieces_of_a_short_window_are_no_longer_than_it_needs():
    """Nine points and a shift of at most three fit into 16."""
    lengths = {int((cut(seed)["pieces"][1] == 0).sum()) for seed in range(8)}
    assert lengths <= {4, 8, 16}


def test_without_a_key_the_last_input_ends_a_patch_and_is_the_one_position():
    found = cut(None)
    observed = batch_of()["mask"][:, :LENGTH].sum(axis=1)
    expected = np.where(np.isin(np.arange(40), [2, 4]), 0, 1)
    np.testing.assert_array_equal(found["positions"].sum(axis=1), expected)
    np.testing.assert_array_equal(found["read"].sum(axis=1), observed)
    last = np.argmax(found["positions"], axis=1)[expected > 0]
    assert (last % PATCH == PATCH - 1).all()


@functools.cache
def params():
    return create_params(CONFIG.model, 1)


def plain_losses(batch, at):
    """The pinball losses of asinh, one target after the other."""
    model = nnx.merge(abstract_model(CONFIG.model)[0], params())
    read = jax.jit(lambda x, mask, pieces: model(x, mask, pieces).hidden)
    hidden = read(batch["inputs"], batch["read"], batch["pieces"])
    found = {}
    for p in CONFIG.model.horizon_lengths:
        said, errors = np.asarray(model.squashed_quantiles(hidden, p)), []
        for row, t, k in np.ndindex(len(hidden), LENGTH, p):
            aimed = t + 1 + k
            if t not in at[p] or not batch["positions"][row, t]:
                continue
            if aimed >= LENGTH + FUTURE or not batch["mask"][row, aimed]:
                continue
            z = (batch["values"][row, aimed] - batch["mean"][row, t]) / batch["deviation"][row, t]
            e = np.arcsinh(np.clip(z, -5, 5)) - said[row, t // PATCH, k]
            levels = np.array(CONFIG.model.quantile_levels)
            errors.append(np.mean(np.maximum(levels * e, (levels - 1) * e)))
        found[p] = np.mean(errors)
    return found


def test_the_loss_one_target_after_the_other():
    """Targets of the next piece count in the scale of the piece that they are forecast from."""
    key = jax.random.key(3)
    batch = jax.device_get(jax.jit(lambda b: prepare(CONFIG, b, key))(batch_of()))
    at = {p: np.asarray(each) for p, each in read_at(CONFIG, key).items()}
    assert all((each % PATCH == PATCH - 1).all() for each in at.values())
    assert (len(at[4]), len(at[8])) == (8, 4)
    jitted = jax.jit(lambda params, batch, at: make_loss(CONFIG)(params, batch, at))
    total, parts = jitted(params(), batch, {p: jnp.asarray(each) for p, each in at.items()})
    expected = plain_losses(batch, at)
    for p, loss in expected.items():
        np.testing.assert_allclose(parts.horizons[p], loss, rtol=1e-5)
    np.testing.assert_allclose(total, np.mean(list(expected.values())), rtol=1e-5)
    assert not parts.quantiles


def test_validation_counts_one_forecast_of_each_window():
    batch = batch_of()
    batch["mask"][:] = True
    sums = make_validation(CONFIG)(params(), batch)
    flat = 1  # which counts for nothing
    assert float(sums["count_4"]) == (40 - flat) * 4
    assert np.isfinite(float(sums["sum_8"]))
    assert not [name for name in sums if name.startswith("quantile")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 30}, "data.length \\(30\\) must be a multiple of the 4 points"),
        (
            {"policy": "packing", "standardization": "series", "future": 1, "sign_flips": 0.0},
            "the model reads patches of 4",
        ),
    ],
)
def test_what_patches_need_is_said(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, data=dataclasses.replace(DATA, **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"standardization": "series"}, "piece_power is 0.0 and sign_flips 0.5"),
        ({"sign_flips": 2.0}, "sign_flips must be from 0 to 1"),
        ({"variates": 2}, "variates is 2, but standardization is 'pieces'"),
        ({"mixing_unit": "windows"}, "mixing_unit is 'windows', but mixing is 'points'"),
        ({"resolution_min": 8}, "resolution_min is 8, but resolutions is empty"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(DATA, **fields)
