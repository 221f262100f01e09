"""Experts chosen for a series: by hand, causal, one set, and a bias that only selects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from timemoe_jax.nn.experts.by_channel import ChannelMoe, prefix_means
from timemoe_jax.nn.experts.parallel import Options
from timemoe_jax.nn.experts.routing import route, router_statistics
from timemoe_jax.training.losses import expert_load, router_entropy, selection_bias_direction

B, C, T, D, E, K = 2, 2, 4, 6, 5, 2


def moe(scope="channel"):
    return ChannelMoe(
        D,
        3,
        4,
        num_experts=E,
        num_experts_per_tok=K,
        scope=scope,
        init=nnx.initializers.normal(0.7),
        dtype=jnp.dtype("float32"),
        options=Options("dense", 1.0, "all_gather"),
        selection_bias=True,
        rngs=nnx.Rngs(0),
    )


@functools.partial(jax.jit, static_argnums=0)
def _run(graph, params, x, mask):
    return nnx.merge(graph, params)(x, mask)


def run(layer, x, mask):
    """The layer, compiled: faster than one operation after the other."""
    return _run(*nnx.split(layer, nnx.Param), x, mask)


X = jnp.asarray(np.random.default_rng(0).normal(size=(B, C, T, D)), jnp.float32)
MASK = jnp.ones((B, C, T), bool).at[0, 1, 0].set(False)
ALL = jnp.ones((B, C, T), bool)


def test_prefix_means_by_hand():
    scores = jnp.array([[2.0], [4.0], [9.0], [6.0]])
    mask = jnp.array([False, True, True, False])
    np.testing.assert_array_equal(prefix_means(scores, mask)[:, 0], [0, 4, 6.5, 6.5])


def test_similarities_choose_and_weigh_by_hand():
    """A bias changes who is chosen, and no weight of those who are."""
    similarity = jnp.array([[0.2, 0.6, 0.3, 0.5]])
    plain = route(similarity, 2, None, "similarity")
    np.testing.assert_array_equal(plain.indices, [[1, 3]])
    np.testing.assert_allclose(plain.weights, [[0.6 / 1.1, 0.5 / 1.1]], rtol=1e-6)
    biased = route(similarity, 2, jnp.array([0.0, 0.0, 0.25, 0.0]), "similarity")
    np.testing.assert_array_equal(biased.indices, [[1, 2]])
    np.testing.assert_allclose(biased.weights, [[0.6 / 0.9, 0.3 / 0.9]], rtol=1e-6)
    same = route(similarity, 2, jnp.array([0.0, 0.1, 0.0, 0.1]), "similarity")
    np.testing.assert_array_equal(same.weights, plain.weights)


def by_hand(layer, x, mask, t):
    """The output of the last patch of one series up to t, from the definitions."""
    x, mask, arrays = np.asarray(x), np.asarray(mask), jax.tree.map(np.asarray, nnx.state(layer))
    sigmoid = 1 / (1 + np.exp(-x[:t] @ arrays["router"]["kernel"][...]))
    mean = sigmoid[mask[:t]].mean(axis=0)
    chosen = np.argsort(-(mean + arrays["selection_bias"][...]))[:K]

    def swiglu(gate, up, down):
        gated = x[t - 1] @ gate
        return (gated / (1 + np.exp(-gated)) * (x[t - 1] @ up)) @ down

    names = ("gate", "up", "down")
    y = swiglu(*(arrays["shared"][name]["kernel"][...] for name in names))
    for e in chosen:
        kernels = (arrays["experts"][name][...][e] for name in names)
        y += mean[e] / mean[chosen].sum() * swiglu(*kernels)
    return y


def test_one_expert_set_serves_a_series_up_to_each_patch():
    layer = moe()
    layer.selection_bias[...] = jnp.array([0.0, 0.3, -0.3, 0.0, 0.1])
    y, similarity, dropped = run(layer, X, MASK)
    for b, c, t in ((0, 0, 1), (0, 1, 3), (1, 1, 4)):
        expected = by_hand(layer, X[b, c], MASK[b, c], t)
        np.testing.assert_allclose(y[b, c, t - 1], expected, rtol=1e-4, atol=1e-5)
    assert dropped == 0
    assert similarity.shape == (B, C, T, E)
    # Of a series that goes on as it is, every patch has the same experts and weights.
    constant = jnp.broadcast_to(X[:, :, :1], X.shape)
    of_constant = run(layer, constant, ALL)[1]
    np.testing.assert_allclose(of_constant, of_constant[:, :, :1] + 0 * of_constant, rtol=1e-6)


def test_a_choice_depends_on_no_later_patch_and_no_other_series():
    layer = moe()
    before = run(layer, X, ALL)[1]
    after = run(layer, X.at[0, 0, 2:].add(3.0), ALL)[1]
    np.testing.assert_array_equal(after[0, 0, :2], before[0, 0, :2])
    np.testing.assert_array_equal(after[0, 1], before[0, 1])
    assert not np.allclose(after[0, 0, 2:], before[0, 0, 2:])
    # By the patch alone, an earlier one has no say either.
    alone, changed = (run(moe("token"), x, ALL)[1] for x in (X, X.at[0, 0, :2].add(3.0)))
    np.testing.assert_array_equal(changed[0, 0, 2:], alone[0, 0, 2:])


def test_no_gradient_reaches_the_bias():
    layer = moe()
    graph, params = nnx.split(layer, nnx.Param)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(X, ALL)[0] ** 2)))(params)
    np.testing.assert_array_equal(grads["selection_bias"][...], np.zeros(E))
    assert np.abs(grads["router"]["kernel"][...]).max() > 0  # the centroids have one


def test_the_load_that_moves_the_bias_is_that_of_the_experts_chosen():
    layer = moe()
    layer.selection_bias[...] = bias = jnp.array([0.0, 0.4, 0.0, 0.0, -0.4])
    similarity = run(layer, X, ALL)[1].reshape(1, B * C, T, E)
    statistics = jax.jit(router_statistics, static_argnums=1, static_argnames="scoring")(
        similarity, K, bias=bias[None], scoring="similarity"
    )
    chosen = route(similarity, K, bias, "similarity").indices
    counts = np.bincount(np.asarray(chosen).ravel(), minlength=E)
    np.testing.assert_allclose(expert_load(statistics)[0], counts / counts.sum(), rtol=1e-6)
    np.testing.assert_array_equal(
        selection_bias_direction(statistics)[0], np.sign(counts.mean() - counts)
    )
    share = similarity / similarity.sum(-1, keepdims=True)
    entropy = -np.sum(share * np.log(share), -1).mean()
    np.testing.assert_allclose(router_entropy(statistics)[0], entropy, rtol=1e-5)
