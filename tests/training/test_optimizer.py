"""The learning rate over time, and what AdamW and Muon make of a gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import TINY

from timemoe_jax.data.config import DataConfig
from timemoe_jax.models.time_moe.model import TimeMoe
from timemoe_jax.training.config import OptimizerConfig, RunConfig, TrainConfig
from timemoe_jax.training.optimizer import learning_rate_schedule, make_optimizer


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


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (10, 20, {0: 0, 5: 0.5, 10: 1, 50: 1, 80: 1, 90: 0.6, 99: 0.24, 100: 0.2, 200: 0.2}),
        (0, 20, {0: 1, 80: 1, 85: 0.8, 100: 0.2}),
        (10, 0, {0: 0, 10: 1, 99: 1}),
        (0, 0, {0: 1, 99: 1}),
        (60, 40, {30: 0.5, 59: 59 / 60, 60: 1, 80: 0.6, 100: 0.2}),
    ],
)
def test_the_stable_schedule(warmup, decay, expected):
    """Up, level, and down in the last updates, by hand."""
    config = OptimizerConfig(
        learning_rate=1.0,
        end_learning_rate=0.2,
        warmup_steps=warmup,
        schedule="stable",
        decay_steps=decay,
    )
    schedule = learning_rate_schedule(config, 100)
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, err_msg=str(step))


def test_a_longer_run_has_the_same_rates_until_the_shorter_decays():
    config = OptimizerConfig(warmup_steps=5, schedule="stable", decay_steps=10)
    short, long = (learning_rate_schedule(config, n) for n in (50, 80))
    np.testing.assert_array_equal(short(np.arange(41)), long(np.arange(41)))
    assert float(short(45)) < float(long(45))


MUON = OptimizerConfig(
    algorithm="muon",
    learning_rate=0.01,
    schedule="stable",
    matrix_rate_factor=3.0,
    weight_decay=0.0,
    clip_norm=0.0,
)


def first_update(optimizer: OptimizerConfig) -> tuple[dict, dict, dict]:
    """The parameters, a random gradient and the update it gives, as nested dictionaries."""
    config = RunConfig(
        model=TINY,
        data=DataConfig(synthetic_sequences=1, length=24),
        optimizer=optimizer,
        train=TrainConfig(num_steps=10, batch_size=8),
    )
    params = nnx.state(TimeMoe(TINY, rngs=nnx.Rngs(0)), nnx.Param)
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    algorithm = make_optimizer(config)
    update, _ = jax.jit(algorithm.update)(gradient, algorithm.init(params), params)
    return tuple(nnx.to_pure_dict(tree) for tree in (params, gradient, update))


def test_muon_moves_all_directions_of_each_matrix_alike():
    """Singular values near 0.2 sqrt(max(shape)) x rate, arXiv 2502.16982, of each expert's own."""
    _, _, update = first_update(MUON)
    blocks = update["blocks"]
    matrices = {
        "key": blocks["attention"]["key"]["kernel"],
        "expert": blocks["ffn"]["experts"]["up"],
        "shared": blocks["ffn"]["shared"]["down"]["kernel"],
        "head": update["heads"]["4"]["kernel"],
    }
    for name, matrix in matrices.items():
        size = 0.2 * np.sqrt(max(matrix.shape[-2:])) * 3.0 * 0.01
        singular = np.linalg.svd(matrix, compute_uv=False) / size
        assert singular.shape[:-1] == matrix.shape[:-2], name
        # The iteration stops between 0.5 and 1.5, sooner for directions that are tiny.
        assert singular.max() < 1.5, name
        assert np.median(singular) > 0.6, name


def test_muon_leaves_the_rest_to_adam():
    """With Nesterov's momentum, whose first update is the sign of the gradient times this rate."""
    b1 = MUON.b1
    rate = 0.01 * (b1 * (1 - b1) / (1 - b1**2) + 1)
    _, gradient, update = first_update(MUON)
    for names in (
        ("embed", "gate"),
        ("blocks", "attention", "key", "bias"),
        ("blocks", "ffn_norm", "scale"),
        ("blocks", "ffn", "router", "kernel"),
    ):
        g, u = gradient, update
        for name in names:
            g, u = g[name], u[name]
        np.testing.assert_allclose(u, -rate * np.sign(g), rtol=1e-4, err_msg=".".join(names))


def test_muon_decays_its_matrices_alone():
    params, _, plain = first_update(MUON)
    _, _, decayed = first_update(dataclasses.replace(MUON, weight_decay=0.5))
    change = jax.tree.map(lambda a, b: a - b, decayed, plain)
    head, embed = change["heads"]["4"]["kernel"], change["embed"]["gate"]
    expected = -3.0 * 0.01 * 0.5 * params["heads"]["4"]["kernel"]
    np.testing.assert_allclose(head, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(embed, 0)


def test_clipping_comes_first():
    """So that a gradient far too long counts no more than others in the momentum."""
    _, gradient, _ = first_update(MUON)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
    adam = OptimizerConfig(learning_rate=0.01, weight_decay=0.0, schedule="stable", eps=1.0)
    _, _, clipped = first_update(dataclasses.replace(adam, clip_norm=1.0))
    g = gradient["embed"]["gate"] / norm
    np.testing.assert_allclose(clipped["embed"]["gate"], -0.01 * g / (np.abs(g) + 1), rtol=1e-4)
