"""The mean of checkpoints: by hand, over dtypes, and of models that have none."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TINY

from timemoe_jax.checkpoints.average import average_params, load_average, load_mean
from timemoe_jax.checkpoints.checksums import weights_digest
from timemoe_jax.checkpoints.load import load_model, save_model
from timemoe_jax.checkpoints.make_bundle import make_bundle
from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.checkpoints.trees import flatten
from timemoe_jax.errors import CheckpointError, ConfigError
from timemoe_jax.models.base import create_params


def state(**arrays) -> nnx.State:
    return nnx.State({name: nnx.Param(jnp.asarray(a)) for name, a in arrays.items()})


START = create_params(TINY, seed=0)


def later(step: int) -> nnx.State:
    """The parameters of a model at some step, all of them other numbers."""
    rng = np.random.default_rng(step)
    noise = lambda a: a + rng.normal(size=a.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(noise, START)


def values(params: nnx.State) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in flatten(params).items()}


def save(folder, params_of_steps, config=TINY):
    with Checkpoints(folder, None, {"model": dataclasses.asdict(config)}) as checkpoints:
        for step, params in params_of_steps.items():
            checkpoints.save(step, params)


def test_a_mean_by_hand():
    first = state(a=np.array([1.0, -2.0], np.float32), b=np.float32(4))
    second = state(a=np.array([2.0, 0.0], np.float32), b=np.float32(5))
    third = state(a=np.array([6.0, 5.0], np.float32), b=np.float32(9))
    mean = average_params(iter([first, second, third]))
    np.testing.assert_array_equal(values(mean)["a"], [3.0, 1.0])
    np.testing.assert_array_equal(values(mean)["b"], 6.0)
    assert {str(p.dtype) for p in jax.tree.leaves(mean)} == {"float32"}
    np.testing.assert_array_equal(values(first)["a"], [1.0, -2.0])  # as it was


@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_a_mean_is_rounded_once(count, seed):
    rng = np.random.default_rng(seed)
    arrays = (rng.normal(size=(count, 3, 2)) * 10.0 ** rng.integers(-6, 6, (count, 3, 2))).astype(
        np.float32
    )
    exact = arrays.astype(np.longdouble).mean(axis=0)
    mean = values(average_params([state(a=a) for a in arrays]))["a"]
    # Half a unit of the last place, and no more than float64's own rounding beyond that.
    largest = np.abs(arrays).max(axis=0).astype(np.float64)
    bound = np.spacing(np.abs(exact).astype(np.float32)) / 2 * (1 + 1e-6) + count * 1e-15 * largest
    assert (np.abs(mean - exact) <= bound).all()


def test_halves_are_averaged_as_what_they_stand_for():
    """1 and 1 + 1/128 are neighbors in bfloat16, so that their mean is not one of them."""
    pair = [np.array([x], ml_dtypes.bfloat16) for x in (1.0, 1 + 1 / 128)]
    (mean,) = values(average_params([state(a=a) for a in pair]))["a"]
    assert mean == np.float32(1 + 1 / 256)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"a": np.zeros(3), "b": np.zeros(1)},
            r"set 1 .*a is \(3,\) there and \(2,\) in the first",
        ),
        ({"a": np.zeros(2)}, r"b is missing there and \(1,\) in the first"),
        (
            {"a": np.zeros(2), "b": np.zeros(1), "c": np.zeros(4)},
            r"c is \(4,\) there and missing in the first",
        ),
    ],
)
def test_parameters_of_another_model_have_no_mean(other, message):
    first = state(a=np.zeros(2), b=np.zeros(1))
    with pytest.raises(CheckpointError, match=message):
        average_params([first, state(**other)])


def test_nothing_has_no_mean():
    with pytest.raises(CheckpointError, match="at least one"):
        average_params([])


def test_the_last_checkpoints_of_a_run(tmp_path):
    """Of all of a run, as of its checkpoints folder; the first of them far off and not read."""
    params = {step: later(step) for step in (2, 10, 11)}
    far = jax.tree.map(lambda a: a + 1000, params[2])
    save(tmp_path / "run" / "checkpoints", params | {2: far})
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        model, steps = load_average(place, 2)
        assert steps == (10, 11)
        assert model.step == 11
        assert model.config == TINY
        assert model.digest == weights_digest(model.params)
        ten, eleven, mean = values(params[10]), values(params[11]), values(model.params)
        assert mean.keys() == ten.keys()
        for name in mean:
            half = (ten[name].astype(np.float64) + eleven[name]) / 2
            np.testing.assert_array_equal(mean[name], half.astype(np.float32))
    one, steps = load_average(tmp_path / "run", 1)
    assert steps == (11,)
    assert one.digest == load_model(tmp_path / "run").digest


def test_the_mean_of_runs_of_which_one_lacks_a_silent_part(tmp_path):
    """Copies that say nothing where their parameters are 0."""
    patched = {"use_dense": True, "patch_size": 4, "horizon_lengths": (8,)}
    levels = {"point_heads": False, "quantile_levels": (0.1, 0.5, 0.9)}
    plain = dataclasses.replace(TINY, **patched, **levels)
    copying = dataclasses.replace(plain, copy_lags=16, anchored=True)
    models = {"plain": (plain, 1), "copying": (copying, 2)}
    for name, (config, seed) in models.items():
        save_model(tmp_path / name, config, create_params(config, seed))
    mean = load_mean([tmp_path / "plain", tmp_path / "copying"])
    assert mean.config == copying
    lacking, full, found = (
        values(params)
        for params in (create_params(plain, 1), create_params(copying, 2), mean.params)
    )
    assert found.keys() == full.keys() > lacking.keys()
    for name, value in found.items():
        other = lacking.get(name, np.zeros(value.shape))
        half = (full[name].astype(np.float64) + other) / 2
        np.testing.assert_array_equal(value, half.astype(np.float32))
    make_bundle(f"{tmp_path}/plain,{tmp_path}/copying", tmp_path / "mean", dtype="float32")
    assert load_model(tmp_path / "mean").digest == mean.digest
    with pytest.raises(CheckpointError, match=r"of different models.*copy_lags is 0 and 16"):
        load_mean([tmp_path / "copying", tmp_path / "plain"])
    with pytest.raises(ConfigError, match="average is 2, but there are 2 runs"):
        make_bundle("one,two", tmp_path / "never", average=2)


def test_the_mean_of_a_part_that_is_not_silent_is_of_the_models_that_have_it(tmp_path):
    """Factors of weighing, which begin at 0 and say something there."""
    levels = {"point_heads": False, "quantile_levels": (0.1, 0.5, 0.9), "copy_lags": 16}
    plain = dataclasses.replace(TINY, use_dense=True, patch_size=4, horizon_lengths=(8,), **levels)
    weighed = dataclasses.replace(plain, weighed=True)
    for name, config, seed in (("plain", plain, 1), ("one", weighed, 2), ("two", weighed, 3)):
        params = create_params(config, seed)
        moved = jax.tree.map(lambda a, seed=seed: a + seed, params)
        save_model(tmp_path / name, config, moved)
    mean = load_mean([tmp_path / name for name in ("plain", "one", "two")])
    found = values(mean.params)
    # Biases start at 0, so that those of the runs are 2 and 3.
    np.testing.assert_allclose(found["weigh_heads.8.bias"], 2.5)
    np.testing.assert_allclose(found["copy_heads.8.bias"], 2.0)


def test_what_cannot_be_averaged_is_said(tmp_path):
    save(tmp_path / "two", {step: later(step) for step in (3, 4)})
    with pytest.raises(CheckpointError, match=r"mean of 3 .* holds steps 3, 4; .*keep_checkpoints"):
        load_average(tmp_path / "two", 3)
    with pytest.raises(CheckpointError, match="holds none"):
        load_average(tmp_path / "absent", 2)
    for count in (0, -1):
        with pytest.raises(ConfigError, match=f"must be positive, but is {count}"):
            load_average(tmp_path / "two", count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2 and 1"),
        ({"rope_theta": 500.0}, "rope_theta is 500.0 and 10000.0"),  # of the same shapes
    ],
)
def test_checkpoints_of_different_models_have_no_mean(tmp_path, change, message):
    other = dataclasses.replace(TINY, **change)
    save(tmp_path, {1: START})
    save(tmp_path, {2: create_params(other, 0)}, other)
    with pytest.raises(CheckpointError, match=message):
        load_average(tmp_path, 2)


def test_how_a_model_is_computed_makes_no_other_model(tmp_path):
    save(tmp_path, {1: START})
    save(tmp_path, {2: START}, dataclasses.replace(TINY, remat="full"))
    assert load_average(tmp_path, 2).model.digest == weights_digest(START)
