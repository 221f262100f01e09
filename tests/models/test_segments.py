"""Segments in the causal decoder: leaders decide, nothing later is read, and a cache knows them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import TWO_BLOCKS

from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import abstract_model, create_params, family_of
from timemoe_jax.models.time_moe.decoding import extend, prefill
from timemoe_jax.nn.experts.leaders import leaders_of, led, points_since_start
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig

CONFIG = dataclasses.replace(TWO_BLOCKS, segment_lengths=(3, 5))
LENGTH = 16  # which neither divides
GRAPH, _ = abstract_model(CONFIG)


@pytest.fixture(scope="module")
def params():
    return create_params(CONFIG, 0)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(4, LENGTH)).astype(np.float32)


@jax.jit
def run(params, x, mask, segments=None):
    output = nnx.merge(GRAPH, params)(x, mask, segments)
    return output.hidden, output.router_logits


def everything(x):
    return jnp.ones(x.shape, bool)


def test_points_are_counted_from_the_first_observed_one_of_their_series():
    mask = jnp.array([[0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 1, 1]], bool)
    segments = jnp.array([[0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 2, 2, 2]])
    since = points_since_start(mask, segments)
    np.testing.assert_array_equal(since, [[-1, -1, 0, 1, 2, 3, 4], [0, 1, 2, 0, -1, 0, 1]])
    np.testing.assert_array_equal(
        leaders_of(since, 2), [[0, 1, 2, 2, 4, 4, 6], [0, 0, 2, 3, 4, 5, 5]]
    )


def test_those_before_follow_the_leader_in_the_cache():
    logits, before = jnp.arange(6.0).reshape(1, 3, 2), jnp.array([[9.0, 8.0]])
    found = led(logits, leaders_of(jnp.array([[4, 5, 6]]), 3), before)
    np.testing.assert_array_equal(found, [[[9, 8], [9, 8], [4, 5]]])


def test_nothing_later_is_read(params, x):
    """Changing the points from t on leaves every output before t, for every t."""
    hidden, logits = run(params, x[:1].repeat(LENGTH, 0), everything(x[:1].repeat(LENGTH, 0)))
    changed = np.stack([np.where(np.arange(LENGTH) >= t, 3 - x[0], x[0]) for t in range(LENGTH)])
    after, logits_after = run(params, changed, everything(changed))
    for t in range(LENGTH):
        np.testing.assert_allclose(after[t, :t], hidden[t, :t], atol=2e-5)
        assert np.abs(after[t, t:] - hidden[t, t:]).max() > 1e-3
        np.testing.assert_allclose(logits_after[:, t, :t], logits[:, t, :t], atol=2e-5)


def test_tokens_have_the_choice_of_their_leader(params, x):
    _, logits = run(params, x, everything(x))
    for layer, s in enumerate(CONFIG.segments):
        leader = np.arange(LENGTH) // s * s
        np.testing.assert_array_equal(logits[layer], logits[layer][:, leader])
        assert len(np.unique(np.asarray(logits[layer][0]), axis=0)) == -(-LENGTH // s)


def test_segments_of_one_point_are_time_moe_bit_by_bit(params, x):
    outputs = []
    for lengths in ((), (1,), (1, 1)):
        config = dataclasses.replace(CONFIG, segment_lengths=lengths)
        graph, _ = abstract_model(config)
        model = jax.jit(lambda p, x, graph=graph: nnx.merge(graph, p)(x).hidden)
        outputs.append(np.asarray(model(params, x)))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert np.abs(outputs[0] - run(params, x, everything(x))[0]).max() > 1e-2


def test_left_padding_keeps_the_anchor(params, x):
    expected = run(params, x, everything(x))[0]
    for padding in (1, 4):
        kept = LENGTH - padding
        shifted = np.pad(x[:, :kept], ((0, 0), (padding, 0)), constant_values=7)
        mask = np.broadcast_to(np.arange(LENGTH) >= padding, x.shape)
        found = run(params, shifted, mask)[0]
        np.testing.assert_allclose(found[:, padding:], expected[:, :kept], atol=2e-5)


def test_packed_series_are_as_alone(params, x):
    first = 7  # of no whole segments
    packed = np.concatenate([x[:, :first], x[::-1, : LENGTH - first]], axis=1)
    segments = np.broadcast_to(np.arange(LENGTH) >= first, x.shape).astype(np.int32)
    both = run(params, packed, everything(x), segments)[0]
    alone = run(params, x, everything(x))[0]
    np.testing.assert_allclose(both[:, :first], alone[:, :first], atol=2e-5)
    np.testing.assert_allclose(both[:, first:], alone[::-1, : LENGTH - first], atol=2e-5)


@pytest.mark.parametrize("steps", [(5, 1, 2, 3, 5)])
def test_a_cache_gives_what_one_pass_gives(params, x, steps):
    """Of steps of every kind, with rows at different places in their segments."""
    starts = np.array([0, 1, 2, 4])
    mask = np.arange(LENGTH) >= starts[:, None]
    expected = run(params, x, mask)[0]

    @jax.jit
    def in_steps(params, x, mask):
        model = nnx.merge(GRAPH, params)
        first = steps[0]
        hidden, cache = prefill(model, x[:, :first], mask[:, :first], LENGTH)
        found, at = [hidden], first
        for size in steps[1:]:
            hidden, cache = extend(model, x[:, at : at + size], cache)
            found.append(hidden)
            at += size
        return jnp.stack(found, axis=1)

    ends = np.cumsum(steps) - 1
    np.testing.assert_allclose(in_steps(params, x, mask), expected[:, ends], atol=2e-5)


def test_on_four_devices_as_on_one(params, x):
    expected = run(params, x, everything(x))[0]
    mesh = partitioning.make_mesh(MeshConfig(data=1, expert=4), jax.devices()[:4])
    places = partitioning.shardings(params, mesh, family_of(CONFIG).rules())
    with partitioning.use_mesh(mesh):
        split, there = jax.device_put((params, x), (places, partitioning.batch_sharding(mesh)))
        found = jax.jit(lambda p, x, m: nnx.merge(GRAPH, p)(x, m).hidden)(
            split, there, everything(there)
        )
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"segment_lengths must be \(\), one positive number"):
        dataclasses.replace(CONFIG, segment_lengths=(3, 5, 2))
    with pytest.raises(ConfigError, match="use_dense has no router"):
        dataclasses.replace(CONFIG, use_dense=True, num_experts_per_tok=1)
