"""Runs of models with quantile heads: checkpoints, fine-tuning, and what such a model learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import TINY

from timemoe_jax.checkpoints.checksums import weights_digest
from timemoe_jax.checkpoints.load import convert, load_model, save_model
from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.data.config import DataConfig
from timemoe_jax.errors import CheckpointError, ConfigError
from timemoe_jax.models.base import abstract_model, create_params
from timemoe_jax.models.time_moe.model import TimeMoe
from timemoe_jax.runtime import partitioning
from timemoe_jax.training import losses
from timemoe_jax.training import run as train
from timemoe_jax.training.config import OptimizerConfig, RunConfig, TrainConfig
from timemoe_jax.training.metrics_log import read_metrics
from timemoe_jax.training.start import start_or_resume
from timemoe_jax.training.step import create_state, make_train_step

LEVELS = (0.1, 0.5, 0.9)
DENSE = dataclasses.replace(TINY, quantile_levels=LEVELS, use_dense=True)


# Checkpoints and runs


def run_config(use_dense: bool = True, **train_fields) -> RunConfig:
    return RunConfig(
        model=dataclasses.replace(TINY, initializer_range=0.1, use_dense=use_dense),
        data=DataConfig(
            synthetic_sequences=20, synthetic_length=60, length=24, validation_fraction=0.2
        ),
        train=TrainConfig(**{"num_steps": 3, "batch_size": 4, "log_every": 1} | train_fields),
    )


def with_heads(config: RunConfig) -> RunConfig:
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, quantile_levels=LEVELS)
    )


def run(config: RunConfig, workdir):
    return train.run(config, workdir, jax.devices()[:1])


def test_a_checkpoint_brings_them_back(tmp_path):
    params = create_params(DENSE, seed=5)
    save_model(tmp_path / "model", DENSE, params)
    loaded = load_model(tmp_path / "model")
    assert loaded.config == DENSE
    assert loaded.digest == weights_digest(params)
    with pytest.raises(ConfigError, match="the published format has no heads"):
        convert(tmp_path / "model", tmp_path / "out", to_safetensors=True)


def test_a_run_is_logged_and_resumed(tmp_path):
    whole = run(with_heads(run_config(checkpoint_every=1)), tmp_path / "run")
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    (tmp_path / "run" / "checkpoints" / "3").rename(tmp_path / "away")
    resumed = run(with_heads(run_config()), tmp_path / "run")
    for a, b in zip(
        jax.tree.leaves(whole.state.params), jax.tree.leaves(resumed.state.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert len(records) == 3
    assert all(np.isfinite([r["quantile_loss"], r["quantile_loss_4"]]).all() for r in records)
    other = dataclasses.replace(run_config().model, quantile_levels=(0.5,))
    with pytest.raises(CheckpointError, match=r"quantile_levels \[0.1, 0.5, 0.9\] but \[0.5\]"):
        run(dataclasses.replace(run_config(), model=other), tmp_path / "run")


def test_a_trained_model_is_given_them(tmp_path, capsys):
    """Beside a bias on the routers: all else stays, these start as in a new model."""
    model = run_config(use_dense=False).model
    save_model(tmp_path / "source", model, create_params(model, seed=5))
    config = with_heads(run_config(False, init_from=str(tmp_path / "source"), num_steps=1))
    biased = dataclasses.replace(config.model, router_bias=True)
    config = dataclasses.replace(config, model=biased)
    mesh = partitioning.make_mesh(config.mesh, jax.devices()[:1])
    state = start_or_resume(config, mesh, Checkpoints(tmp_path / "tuned"), batches=None)
    count = biased.hidden_size * sum(biased.horizon_lengths) * len(LEVELS)
    count += biased.num_hidden_layers * biased.num_experts
    printed = capsys.readouterr().out
    assert "has no parameters for model.router_bias and model.quantile_levels" in printed
    assert f"these {count:,} start anew" in printed
    source = load_model(tmp_path / "source").params
    fresh = create_params(biased, config.seed)
    for path, value in nnx.to_flat_state(state.params):
        old = dict(nnx.to_flat_state(fresh if "quantile_heads" in path else source)).get(path)
        expected = np.zeros(value.shape) if old is None else old[...]
        np.testing.assert_array_equal(value[...], expected)


def test_a_trained_model_keeps_its_levels(tmp_path):
    model = run_config().model
    trained = dataclasses.replace(model, quantile_levels=(0.5,))
    save_model(tmp_path / "model", trained, create_params(trained, seed=0))
    config = run_config(init_from=str(tmp_path / "model"))
    for levels in (LEVELS, ()):
        other = dataclasses.replace(model, quantile_levels=levels)
        with pytest.raises(ConfigError, match=r"train.init_from: .*quantile_levels \(0.5,\) but"):
            run(dataclasses.replace(config, model=other), tmp_path / "out")


# What they learn

STEPS, ROWS, NOISE = 300, 16, 0.4


def sines(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sines of a period of 8 plus exponential noise, and the noise; [rows, 41]."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (rows, 1))
    noise = rng.exponential(NOISE, (rows, 41))
    return (np.sin(np.pi / 4 * np.arange(41) + phase) + noise).astype(np.float32), noise


def test_heads_are_not_read_where_nothing_counts():
    """Of three parts of nine positions the first, of which the heads would say no number."""
    values = jnp.arange(10.0)[None]
    counts = jnp.arange(9) >= 4
    targets = losses.Targets(values[:, 1:], jnp.ones((1, 9)), counts[None].astype(jnp.float32))

    def loss(hidden, head):
        found = losses.quantile_losses(head, hidden, targets, horizon_lengths=(1,), levels=LEVELS)
        return found[1]

    def head(hidden, horizon):
        return jnp.log(hidden - 2.5)[..., None, None] + jnp.arange(3.0)

    hidden = jnp.arange(9.0)[None, :, None]
    said = np.log(np.arange(4, 9) - 2.5)[:, None] + np.arange(3)
    error = np.arange(5, 10)[:, None] - said
    slope = np.where(error > 0, LEVELS, np.array(LEVELS) - 1)
    found, gradient = jax.value_and_grad(loss)(hidden, lambda h, p: head(h[..., 0], p))
    np.testing.assert_allclose(found, np.mean(slope * error), rtol=1e-5)
    own = -slope.mean(axis=1) / (np.arange(4, 9) - 2.5) / 5
    np.testing.assert_allclose(gradient[0, :, 0], [0] * 4 + list(own), rtol=1e-5)


@functools.cache
def learned() -> TimeMoe:
    config = RunConfig(
        model=dataclasses.replace(DENSE, num_hidden_layers=2, initializer_range=0.2),
        data=DataConfig(synthetic_sequences=1, length=40),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=20, weight_decay=0.0),
        train=TrainConfig(num_steps=STEPS, batch_size=ROWS),
    )
    step, state = make_train_step(config), create_state(config)
    for i in range(STEPS):
        values, _ = sines(ROWS, seed=i)
        state, _ = step(state, {"values": values, "mask": np.ones(values.shape, bool)})
    return nnx.merge(abstract_model(config.model)[0], state.params)


@functools.cache
def held_out(horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantiles of the last value of a head, from position 16 on, the values, and their noise."""
    values, noise = sines(400, seed=10**6)
    model = learned()
    quantiles = model.quantile_head(model(jnp.asarray(values[:, :-horizon])).hidden, horizon)
    return np.asarray(quantiles[:, 16:, -1]), values[:, 16 + horizon :], noise[:, 16 + horizon :]


@pytest.mark.parametrize("horizon", [1, 4])
def test_learned_quantiles_cover_what_they_should(horizon):
    """Skewed noise, narrower than what an untrained model says.

    Four deviations of a binomial, and 0.03 for a model that has not learned all there is.
    """
    quantiles, values, _ = held_out(horizon)
    below = (values[..., None] < quantiles).mean(axis=(0, 1))
    count = values.size
    for share, level in zip(below, LEVELS, strict=True):
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / count) + 0.03
    covered = below[2] - below[0]
    assert abs(covered - 0.8) < 4 * np.sqrt(0.8 * 0.2 / count) + 0.03


@pytest.mark.parametrize("horizon", [1, 4])
def test_learned_quantiles_are_nearly_as_good_as_the_true_ones(horizon):
    """Their loss is that of the noise's own quantiles, on the same values, or a little more."""
    quantiles, values, noise = held_out(horizon)
    true = -NOISE * np.log1p(-np.array(LEVELS)) + (values - noise)[..., None]
    pair = (
        np.asarray(losses.pinball(jnp.asarray(q, jnp.float32), jnp.asarray(values), LEVELS))
        for q in (quantiles, true)
    )
    found, best = pair
    error = (found - best).std() / np.sqrt(found.size)
    assert -4 * error < (found - best).mean() < 0.12 * best.mean()
