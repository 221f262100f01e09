"""Who goes where, with what weight, and the sums that the balancing loss is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.nn.experts.routing import route, router_statistics


def test_chosen_keep_their_probability():
    probabilities = jnp.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]])
    indices, weights, _ = route(jnp.log(probabilities), 2)
    np.testing.assert_array_equal(indices, [[1, 2], [0, 2]])
    np.testing.assert_allclose(weights, [[0.5, 0.3], [0.7, 0.2]], rtol=1e-6)


def test_the_softmax_is_over_all_experts_not_the_chosen():
    _, one, _ = route(jnp.zeros((4, 8)), 1)
    _, three, _ = route(jnp.zeros((4, 8)), 3)
    np.testing.assert_allclose(one, np.full((4, 1), 1 / 8), rtol=1e-6)
    np.testing.assert_allclose(three, np.full((4, 3), 1 / 8), rtol=1e-6)


def test_a_shift_of_the_logits_changes_nothing():
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    a, b = route(logits, 2), route(logits + 1000.0, 2)
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_allclose(a.weights, b.weights, rtol=1e-3)


def test_weights_are_float32_for_bfloat16_logits():
    logits = jnp.array([[1.0, 2.0, 3.0]], jnp.bfloat16)
    weights = route(logits, 1).weights
    assert weights.dtype == jnp.float32
    e = np.exp([1.0, 2.0, 3.0])
    np.testing.assert_allclose(weights[0, 0], e[2] / e.sum(), rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_best_first_and_distinct(seed, k):
    logits = np.random.default_rng(seed).normal(size=(6, 5)).astype(np.float32)
    indices, weights, _ = route(jnp.asarray(logits), k)
    np.testing.assert_array_equal(indices, np.argsort(-logits, axis=1)[:, :k])
    assert np.all(np.diff(weights, axis=1) <= 0)
    assert np.all(np.sum(weights, axis=1) <= 1 + 1e-6)


def test_a_bias_chooses_but_does_not_weigh():
    probabilities = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    indices, weights, _ = route(jnp.log(probabilities), 2, jnp.array([0.0, -0.4, 0.4]))
    # Scores .5, -.1, .6 and .1, .2, .7.
    np.testing.assert_array_equal(indices, [[2, 0], [2, 1]])
    np.testing.assert_allclose(weights, [[0.2, 0.5], [0.3, 0.6]], rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.7, -3.0]))
def test_the_same_bias_for_all_changes_nothing(seed, value):
    logits = jnp.asarray(np.random.default_rng(seed).normal(size=(6, 5)), jnp.float32)
    plain, biased = route(logits, 2), route(logits, 2, jnp.full(5, value))
    np.testing.assert_array_equal(plain.indices, biased.indices)
    np.testing.assert_allclose(plain.weights, biased.weights, rtol=1e-6)


def test_no_gradient_reaches_the_bias_and_the_logits_get_that_of_the_weights():
    logits = jax.random.normal(jax.random.key(2), (7, 5))
    bias = jnp.array([0.0, 0.3, -0.2, 0.1, 0.0])
    up = jax.random.normal(jax.random.key(3), (7, 2))
    indices = route(logits, 2, bias).indices
    assert (indices != route(logits, 2).indices).any()

    def weighted(logits, bias):
        return jnp.sum(up * route(logits, 2, bias).weights)

    def expected(logits):
        return jnp.sum(up * jnp.take_along_axis(jax.nn.softmax(logits), indices, axis=1))

    d_logits, d_bias = jax.grad(weighted, argnums=(0, 1))(logits, bias)
    np.testing.assert_array_equal(d_bias, np.zeros(5))
    np.testing.assert_allclose(d_logits, jax.grad(expected)(logits), rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def two_layers():
    """Probabilities [L=2, B=1, T=3, E=3], their logits, and a mask that drops the last token."""
    p = np.array(
        [
            [[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7]]],
            [[[0.2, 0.3, 0.5], [0.25, 0.15, 0.6], [0.8, 0.15, 0.05]]],
        ],
        np.float32,
    )
    return p, jnp.log(p), jnp.array([[1.0, 1.0, 0.0]])


def test_statistics_by_hand(two_layers):
    p, logits, mask = two_layers
    statistics = router_statistics(logits, 2, mask)
    # Layer 0 chooses (0, 1) then (1, 2); layer 1 chooses (2, 1) then (2, 0).
    choices = [[[1, 1, 0], [0, 1, 1]], [[0, 0, 2], [1, 1, 0]]]
    np.testing.assert_array_equal(statistics.choices, choices)
    probabilities = [[0.6, 0.9, 0.5], [0.45, 0.45, 1.1]]
    np.testing.assert_allclose(statistics.probabilities, probabilities, rtol=1e-6)
    entropy = -np.sum(p[:, 0, :2] * np.log(p[:, 0, :2]), axis=(1, 2))
    np.testing.assert_allclose(statistics.entropy, entropy, rtol=1e-6)
    np.testing.assert_array_equal(statistics.tokens, [2, 2])
    # Logits that are log-probabilities have the normalizer 0; a shift by 2 makes it 2.
    np.testing.assert_allclose(statistics.squared_log_normalizer, [0, 0], atol=1e-6)
    shifted = router_statistics(logits + 2.0, 2, mask)
    np.testing.assert_allclose(shifted.squared_log_normalizer, [8, 8], rtol=1e-6)
    # Three tokens of two choices, padding or not.
    np.testing.assert_array_equal(statistics.pairs, [6, 6])
    np.testing.assert_array_equal(statistics.dropped, [0, 0])


def test_statistics_of_biased_routers_by_hand(two_layers):
    """Each layer has its own bias, and only the choices follow it."""
    _, logits, mask = two_layers
    bias = jnp.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    biased = router_statistics(logits, 2, mask, bias=bias)
    # Layer 0 chooses (2, 0) then (2, 1); layer 1 chooses (0, 2) twice.
    choices = [[[0, 0, 2], [1, 1, 0]], [[2, 0, 0], [0, 0, 2]]]
    np.testing.assert_array_equal(biased.choices, choices)
    plain = router_statistics(logits, 2, mask)
    jax.tree.map(np.testing.assert_array_equal, biased[1:], plain[1:])


def test_statistics_without_a_mask_count_every_token(two_layers):
    _, logits, mask = two_layers
    every, all_ones = router_statistics(logits, 2), router_statistics(logits, 2, mask * 0 + 1)
    np.testing.assert_array_equal(every.tokens, [3, 3])
    np.testing.assert_array_equal(np.sum(every.choices, axis=(1, 2)), [6, 6])
    jax.tree.map(np.testing.assert_array_equal, every, all_ones)


def test_statistics_add_up_over_parts(two_layers):
    """The sums of two micro-batches are those of the batch."""
    _, logits, _ = two_layers
    whole = router_statistics(logits, 2, dropped=jnp.array([3.0, 1.0]))
    parts = (
        router_statistics(logits[:, :, :1], 2, dropped=jnp.array([1.0, 0.0])),
        router_statistics(logits[:, :, 1:], 2, dropped=jnp.array([2.0, 1.0])),
    )
    for total, a, b in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(total, a + b, rtol=1e-6)


@pytest.mark.parametrize("bias", [None, jax.random.normal(jax.random.key(2), (2, 5)) / 5])
def test_statistics_agree_with_the_routing(bias):
    logits = jax.random.normal(jax.random.key(1), (2, 3, 4, 5))
    statistics = router_statistics(logits, 3, bias=bias)
    for layer in range(2):
        of_layer = None if bias is None else bias[layer]
        indices = np.asarray(route(logits[layer].reshape(-1, 5), 3, of_layer).indices)
        counted = [np.bincount(indices[:, k], minlength=5) for k in range(3)]
        np.testing.assert_array_equal(statistics.choices[layer], counted)


@pytest.mark.parametrize(("logits", "entropy"), [([0.0] * 8, np.log(8)), ([200.0] + [0.0] * 7, 0)])
def test_entropy_of_extremes(logits, entropy):
    """Undecided and fully decided routers, without a NaN from 0 log 0."""
    statistics = router_statistics(jnp.tile(jnp.array(logits), (1, 2, 3, 1)), 2)
    np.testing.assert_allclose(statistics.entropy, [6 * entropy], rtol=1e-6, atol=1e-6)
