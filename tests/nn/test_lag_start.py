"""Heads that start by reading one point each."""

import itertools

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.model import TimeMoe
from timemoe_jax.nn.attention.causal import rotary
from timemoe_jax.nn.lag_start import initial_lags

CONFIG = TimeMoeConfig(
    hidden_size=48,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts=4,
    horizon_lengths=(1, 4),
    rope_theta=300.0,
    initializer_range=0.1,
)


@pytest.mark.parametrize(("layers", "heads", "reach"), [(3, 8, 512), (2, 4, 16), (4, 8, 512)])
def test_a_lag_of_each_layer_makes_up_every_distance(layers, heads, reach):
    lags = initial_lags(layers, heads, reach)
    assert lags.shape == (layers, heads)
    sums = {sum(path) for path in itertools.product(*lags)}
    assert set(range(reach)) <= sums


def test_few_heads_leave_no_gap_but_do_not_reach_as_far():
    np.testing.assert_array_equal(initial_lags(3, 2, 512), [[0, 1], [0, 2], [0, 4]])


def _weights(model: TimeMoe, length: int) -> np.ndarray:
    """What the last position reads of each distance by its biases alone, [L, N, T]."""
    attention = model.blocks.attention
    rotated = []
    for linear in (attention.query, attention.key):
        bias = linear.bias[...]
        heads = bias.reshape(*bias.shape[:1], -1, 1, attention.head_dim)
        heads = jnp.broadcast_to(heads, (*heads.shape[:2], length, attention.head_dim))
        rotated.append(np.asarray(rotary(heads, jnp.arange(length), attention.theta)))
    queries, keys = rotated
    keys = np.repeat(keys, queries.shape[1] // keys.shape[1], axis=1)
    scores = np.einsum("lnh,lnth->lnt", queries[:, :, -1], keys) / np.sqrt(attention.head_dim)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True))[..., ::-1]


def test_each_head_reads_its_lag():
    model = TimeMoe(TimeMoeConfig(**{**vars(CONFIG), "attention_reach": 16}), rngs=nnx.Rngs(0))
    weights = _weights(model, 64)
    np.testing.assert_array_equal(weights.argmax(-1), [[0, 1, 2, 3], [0, 4, 8, 12]])
    assert weights.max(-1).min() > 0.8
    plain = _weights(TimeMoe(CONFIG, rngs=nnx.Rngs(0)), 64)
    np.testing.assert_allclose(plain, 1 / 64, rtol=1e-6)


def test_a_model_starts_by_reading_what_lags_reach():
    """An impulse moves the output of one layer at its lags, and hardly anywhere else."""
    config = TimeMoeConfig(
        **{**vars(CONFIG), "attention_reach": 4, "num_hidden_layers": 1, "use_dense": True}
    )
    model = TimeMoe(config, rngs=nnx.Rngs(0))
    series = np.ones((1, 64), np.float32)
    struck = series.copy()
    struck[0, 30] = -1.0
    hidden = [np.asarray(model(jnp.asarray(x)).hidden) for x in (struck, series)]
    change = np.abs(hidden[0] - hidden[1]).max(-1)[0]
    near, far = change[30:34], np.delete(change, range(30, 34))
    assert near.min() > 5 * far.max()


def test_all_else_starts_as_without():
    with_lags, without = (
        nnx.to_pure_dict(nnx.state(TimeMoe(config, rngs=nnx.Rngs(0)), nnx.Param))
        for config in (TimeMoeConfig(**{**vars(CONFIG), "attention_reach": 16}), CONFIG)
    )
    attention, plain = with_lags["blocks"].pop("attention"), without["blocks"].pop("attention")
    np.testing.assert_allclose(attention["query"]["kernel"], 0.3 * plain["query"]["kernel"])
    np.testing.assert_array_equal(attention["value"]["kernel"], plain["value"]["kernel"])
    chex.assert_trees_all_equal(with_lags, without)
