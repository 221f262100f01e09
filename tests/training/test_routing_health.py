"""Routers that have collapsed: what brings them back, and what does not.

A collapsed router sends every token to the same two of eight experts: a load of 1/2 for each of
them, where an even one is 1/8.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_model import TINY

from timemoe_jax.checkpoints.published import write_published
from timemoe_jax.data.config import DataConfig
from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import create_params
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.nn.experts.routing import router_statistics
from timemoe_jax.training import losses
from timemoe_jax.training.config import LossConfig, OptimizerConfig, RunConfig, TrainConfig
from timemoe_jax.training.step import create_state, make_train_step

STEPS = 260
# One layer, since the balancing loss pools the layers: two that are each uneven may pass for even.
MODEL = dataclasses.replace(
    TINY, num_experts=8, num_hidden_layers=1, initializer_range=0.1, apply_aux_loss=False
)
COLLAPSED, EVEN = 1 / 2, 1 / 8


def _run_config(
    model: TimeMoeConfig, z_factor: float = 0.0, learning_rate: float = 3e-3
) -> RunConfig:
    return RunConfig(
        model=model,
        data=DataConfig(synthetic_sequences=1, length=24),
        loss=LossConfig(router_z_loss_factor=z_factor),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            end_learning_rate=learning_rate,
            weight_decay=0.0,
            router_bias_rate=4e-3,
        ),
        train=TrainConfig(num_steps=STEPS, batch_size=8),
    )


def _collapsed(model: TimeMoeConfig, size: float) -> nnx.State:
    """Initial parameters under which experts 0 and 1 lead by about `size` at every token."""
    params = create_params(model, seed=0)
    # A positive embedding of positive values, so that all tokens point the same way.
    for part in ("gate", "value"):
        kernel = params["embed"][part]
        kernel[...] = 1 + 0.5 * jnp.abs(kernel[...]) / model.initializer_range
    kernel = params["blocks"]["ffn"]["router"]["kernel"]
    noise = 0.1 * jax.random.normal(jax.random.key(0), kernel.shape)
    kernel[...] = noise.at[..., :2].add(size / model.hidden_size)
    return params


@functools.cache
def _batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    time = np.arange(25)
    periods, phases = rng.uniform(6, 25, (64, 8, 1)), rng.uniform(0, 6, (64, 8, 1))
    noise = 0.1 * rng.normal(size=(64, 8, 25))
    values = (2 + np.sin(2 * np.pi * time / periods + phases) + noise).astype(np.float32)
    return [{"values": v, "mask": np.ones(v.shape, bool)} for v in values]


def _train(config: RunConfig, size: float) -> dict[str, np.ndarray]:
    """Every update's metrics, [STEPS, ...], from a collapsed router on."""
    step, state = make_train_step(config), create_state(config, _collapsed(config.model, size))
    records = []
    for i in range(STEPS):
        state, metrics = step(state, _batches()[i % 64])
        records.append(metrics)
    return {name: np.stack([r[name] for r in records]) for name in records[0]}


def _load_of_last(metrics: dict[str, np.ndarray], updates: int = 40) -> np.ndarray:
    """[E], over so many updates together, as the log has it."""
    return metrics["expert_load"][-updates:, 0].mean(axis=0)


def test_without_any_balancing_a_router_stays_collapsed():
    """The control: what the forecast loss does by itself is not enough."""
    metrics = _train(_run_config(MODEL), size=8.0)
    assert metrics["expert_load"][0].max() == COLLAPSED
    assert metrics["expert_load"].max(axis=(1, 2)).min() > 0.45
    assert _load_of_last(metrics).max() > 0.45
    assert metrics["dead_expert_share"][-40:].min() >= 5 / 8
    assert metrics["loss"][-1] < 0.5 * metrics["loss"][0]


def test_the_balancing_loss_brings_a_collapsed_router_back():
    """In every single batch."""
    model = dataclasses.replace(MODEL, apply_aux_loss=True)
    metrics = _train(_run_config(model), size=8.0)
    assert metrics["expert_load"][0].max() == COLLAPSED
    assert _load_of_last(metrics).max() < 1.5 * EVEN
    assert metrics["expert_load"][-40:].max(axis=2).mean() < 2 * EVEN + 0.02
    assert metrics["dead_expert_share"][-40:].mean() < 1 / 8


def test_the_selection_bias_brings_a_collapsed_router_back():
    """Over some updates together.

    One number per expert cannot take tokens apart to which the router gives the same
    probabilities: they change their experts together, so that a single batch stays less even than
    under the balancing loss until the router tells them apart.
    """
    model = dataclasses.replace(MODEL, router_bias=True)
    metrics = _train(_run_config(model), size=8.0)
    assert metrics["expert_load"][0].max() == COLLAPSED
    load = _load_of_last(metrics)
    assert load.max() < 2 * EVEN
    assert load.min() > EVEN / 4
    assert metrics["expert_load"][-40:].max(axis=2).mean() < 0.45


def test_the_z_loss_bounds_the_logits_and_balances_nothing():
    """The root of the mean squared log-sum-exp falls from almost 40 to less than 1."""
    metrics = _train(_run_config(MODEL, z_factor=1e-3, learning_rate=1e-2), size=40.0)
    size = np.sqrt(metrics["router_z_loss"])
    assert size[0] > 30
    assert size[-40:].max() < 1
    assert _load_of_last(metrics).max() > 0.45


@jax.jit
def _descend(balancing: float, z: float, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """600 updates of a router alone, sure of two experts by 80 or so, under its losses alone.

    Returns the largest load and the log-sum-exp at the end, and the least of the largest loads on
    the way.
    """
    x = jnp.abs(jax.random.normal(jax.random.key(seed), (1, 64, 16)))
    kernel = 0.1 * jax.random.normal(jax.random.key(seed + 100), (16, 8))
    kernel = kernel.at[:, :2].add(100 / 16)
    optimizer = optax.adam(0.05)

    def loss(kernel):
        statistics = router_statistics((x @ kernel)[None], 2)
        parts = losses.balancing_loss(statistics), losses.router_z_loss(statistics)
        return balancing * parts[0] + z * parts[1], statistics

    def step(carry, _):
        gradient, statistics = jax.grad(loss, has_aux=True)(carry[0])
        updates, state = optimizer.update(gradient, carry[1])
        size = jnp.sqrt(losses.router_z_loss(statistics))
        carry = optax.apply_updates(carry[0], updates), state
        return carry, (losses.expert_load(statistics).max(), size)

    _, (load, size) = jax.lax.scan(step, (kernel, optimizer.init(kernel)), length=600)
    return load[-1], size[-1], load.min()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_balancing_loss_needs_the_z_loss_where_the_softmax_is_saturated(seed):
    """Where the other experts' probabilities vanish, the balancing loss has no gradient.

    The z-loss alone leaves the router collapsed; together they bring it back.
    """
    _, size, least = _descend(balancing=0.02, z=0.0, seed=seed)
    assert least > 0.45
    assert size > 50
    load, size, _ = _descend(balancing=0.0, z=1e-3, seed=seed)
    assert load > 0.45
    assert size < 10
    load, size, _ = _descend(balancing=0.02, z=1e-3, seed=seed)
    assert load < 2 * EVEN
    assert size < 10


@pytest.mark.parametrize("repeated", [False, True], ids=["derived", "repeated config"])
def test_a_model_with_a_selection_bias_cannot_be_published(tmp_path, repeated):
    """Nothing is written, not even where the config.json of another model is to be repeated."""
    model = dataclasses.replace(TINY, router_bias=True)
    source = {"model_type": "time_moe"} if repeated else None
    with pytest.raises(ConfigError, match="router_bias"):
        write_published(tmp_path / "out", model, create_params(model, seed=0), source)
    assert not (tmp_path / "out").exists()
