"""Which variates a model links, the picture of it, and the experts of each channel."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, TRACKER

from timemoe_jax import ConfigError, DataError, Forecaster
from timemoe_jax.evaluation.expert_usage import expert_usage
from timemoe_jax.evaluation.variate_graph import link_probabilities, plot_links
from timemoe_jax.models.base import create_params
from timemoe_jax.nn import variate_graph


@pytest.fixture(scope="module")
def forecaster():
    config = dataclasses.replace(TRACKER, max_variates=2)
    return Forecaster(config, create_params(config, seed=0))


X = np.random.default_rng(0).normal(size=(2, 3, 40))
X[:, 1] = np.roll(X[:, 0], 2, axis=-1)


def test_links_are_those_of_the_last_points_of_each_piece(forecaster):
    """By hand: of the last 16 points z-scored with the context; 0 between pieces of 2 variates."""
    found = link_probabilities(forecaster, X, names=["one", "two"])
    assert list(found) == [0, 1]
    matrix, names = found[1]
    assert names == [f"two channel {c}" for c in range(3)]
    z = (X[1] - X[1].mean(-1, keepdims=True)) / X[1].std(-1, keepdims=True)
    pair = jnp.asarray(z[None, :2, -16:], jnp.float32)
    distance = variate_graph.spectral_distance(pair, jnp.ones(pair.shape, bool))
    expected = np.zeros((3, 3))
    expected[:2, :2] = variate_graph.link_probability(distance, jnp.ones((1, 2), bool), 0.9)[0]
    expected[2, 2] = 1
    np.testing.assert_allclose(matrix, expected, atol=1e-5)


def test_experts_of_each_channel_are_told_apart(forecaster):
    shares = expert_usage(forecaster, X, by_series=True)
    assert shares.shape == (6, 2, 4)
    np.testing.assert_allclose(shares.sum(axis=-1), 1)
    # 10 patches of each, so that all count alike.
    np.testing.assert_allclose(shares.mean(axis=0), expert_usage(forecaster, X), rtol=1e-6)


def test_the_picture_shows_names_and_refuses_what_is_no_graph(forecaster, tmp_path):
    links = {"a": (np.array([[1, 0.7], [0.2, 1]]), ["load", "temperature"])}
    assert plot_links(tmp_path / "links.png", links).stat().st_size > 5000
    with pytest.raises(DataError, match=r"the links of a must be a matrix of its 1 variates"):
        plot_links(tmp_path / "wrong.png", {"a": (np.ones((2, 2)), ["load"])})
    with pytest.raises(DataError, match="must hold probabilities"):
        plot_links(tmp_path / "wrong.png", {"a": (np.full((1, 1), 2.0), ["load"])})
    single = Forecaster(TINY, create_params(TINY, seed=0))
    with pytest.raises(ConfigError, match="'time_moe' have no graph of variates"):
        link_probabilities(single, X)
    apart = dataclasses.replace(TRACKER, mixing="none")
    with pytest.raises(ConfigError, match="mixing is 'none', so the model has no graph"):
        link_probabilities(Forecaster(apart, forecaster.engine.params), X)
