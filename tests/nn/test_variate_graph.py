"""The links between variates: distances, probabilities, draws."""

import jax
import jax.numpy as jnp
import numpy as np

from timemoe_jax.nn.variate_graph import (
    drawn_links,
    link_probability,
    links_in_use,
    spectral_distance,
)

spectral_distance = jax.jit(spectral_distance)
drawn_links = jax.jit(drawn_links, static_argnums=2)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 16)), jnp.float32)
ALL = jnp.ones(X.shape, bool)
PRESENT = jnp.ones((2, 4), bool)


def test_distances_by_hand():
    """Of a cosine of amplitude 2 and one of amplitude 1 at another frequency, over 16 points."""
    t = np.arange(16) * 2 * np.pi / 16
    pair = jnp.asarray(np.stack([2 * np.cos(3 * t), np.cos(5 * t), 2 * np.sin(3 * t)]))[None]
    found = spectral_distance(pair, jnp.ones(pair.shape, bool))[0]
    np.testing.assert_allclose(found, [[0, 24, 0], [24, 0, 24], [0, 24, 0]], atol=1e-4)


def test_distances_are_symmetric_with_a_zero_diagonal():
    found = spectral_distance(X, ALL)
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))
    np.testing.assert_array_equal(np.diagonal(found, axis1=1, axis2=2), np.zeros((2, 4)))


def test_a_circular_shift_of_a_series_does_not_change_a_distance():
    shifted = X.at[:, 1].set(jnp.roll(X[:, 1], 5, axis=-1))
    np.testing.assert_allclose(
        spectral_distance(shifted, ALL), spectral_distance(X, ALL), rtol=1e-4, atol=1e-4
    )


def test_an_absent_variate_changes_no_probability_and_a_missing_value_none():
    mask = ALL.at[:, 3].set(False).at[0, 0, 2].set(False)
    x = X.at[:, 3].set(1e3).at[0, 0, 2].set(-50.0)
    distance = spectral_distance(x, mask)
    np.testing.assert_array_equal(distance[:, :3, :3], spectral_distance(x[:, :3], mask[:, :3]))
    with_it = link_probability(distance, mask.any(-1), 0.9)
    without = link_probability(distance[:, :3, :3], PRESENT[:, :3], 0.9)
    np.testing.assert_array_equal(with_it[:, :3, :3], without)


def test_probabilities_by_hand():
    distance = jnp.array([[[0.0, 1, 4], [1, 0, 2], [4, 2, 0]]])
    found = link_probability(distance, jnp.ones((1, 3), bool), 0.8)
    expected = [[1, 0.6, 0], [0.6, 1, 0.4], [0, 0.4, 1]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    linked = links_in_use(found, 0.5)
    np.testing.assert_array_equal(linked[0], np.array(expected) > 0.5)
    alike = link_probability(jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool), 0.8)
    np.testing.assert_allclose(alike[0], [[1, 0.8], [0.8, 1]], rtol=1e-6)


def test_draws_follow_the_probabilities_and_their_numbers():
    probability = jnp.broadcast_to(jnp.array([[1.0, 0.3], [0.85, 1.0]]), (4000, 2, 2))
    numbers = jnp.arange(4000, dtype=jnp.uint32)
    links = drawn_links(probability, numbers, 1.0)
    assert set(np.unique(links)) <= {0.0, 1.0}
    np.testing.assert_array_equal(np.diagonal(links, axis1=1, axis2=2), np.ones((4000, 2)))
    np.testing.assert_allclose(links.mean(axis=0), probability[0], atol=0.03)
    some = drawn_links(probability[:3], numbers[7:10], 1.0)
    np.testing.assert_array_equal(some, links[7:10])


def test_the_gradient_of_a_draw_is_that_of_its_relaxation():
    """With p the probability and n the noise: d sigmoid(logit p + n) / dp, 0 on the diagonal."""
    probability = jnp.array([[[1.0, 0.3], [0.6, 1.0]]])
    number = jnp.array([5], jnp.uint32)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(drawn_links(p, number, 2.0))))(probability)
    noise = jax.random.logistic(jax.random.key(number[0]), (2, 2))
    soft = jax.nn.sigmoid((jnp.log(probability) - jnp.log1p(-probability) + noise) / 2)
    expected = soft * (1 - soft) / 2 / (probability * (1 - probability))
    off = ~np.eye(2, dtype=bool)
    np.testing.assert_allclose(gradient[0][off], expected[0][off], rtol=1e-4)
    np.testing.assert_array_equal(np.diagonal(gradient[0]), np.zeros(2))
