"""Attention among variates: what it is equal to, and what it never reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from timemoe_jax.nn.attention.any_variate import AnyVariateAttention, any_variate_attention
from timemoe_jax.nn.attention.causal import causal_attention

B, N, T, C, H = 2, 2, 5, 3, 4


def arrays(seed=0, shape=(B, N, T, C, H)):
    return [
        jnp.asarray(a, jnp.float32) for a in np.random.default_rng(seed).normal(size=(3, *shape))
    ]


def by_hand(q, k, v, bias, links, mask):
    """All scores at once, with the mask as a Kronecker product; variates before patches."""
    allowed = np.stack([np.kron(one, np.tril(np.ones((T, T)))) for one in np.asarray(links)])
    seen = np.asarray(mask).swapaxes(1, 2).reshape(B, 1, C * T)
    rows = [np.asarray(a).swapaxes(2, 3).reshape(B, N, C * T, H) for a in (q, k, v)]
    score = np.einsum("bnqh,bnsh->bnqs", rows[0], rows[1]) / np.sqrt(H)
    score += np.kron(np.asarray(bias), np.ones((T, T)))
    weights = np.exp(score) * ((allowed > 0) & seen)[:, None]
    out = np.einsum("bnqs,bnsh->bnqh", weights / weights.sum(-1, keepdims=True), rows[2])
    return out.reshape(B, N, C, T, H).swapaxes(2, 3)


LINKS = jnp.array([[[1, 0, 1], [1, 1, 0], [0, 0, 1]], [[1, 1, 1], [0, 1, 0], [0, 1, 1]]], bool)
MASK = jnp.ones((B, T, C), bool).at[0, 1, 2].set(False).at[1, :3, 0].set(False)
BIAS = jnp.where(jnp.eye(C, dtype=bool), jnp.array([0.7, -0.4])[:, None, None], 0.2)
attend = jax.jit(any_variate_attention, static_argnames="block_rows")


@pytest.mark.parametrize("block_rows", [1, 2 * C])
@pytest.mark.parametrize("kind", [bool, np.float32])
def test_the_mask_is_the_kronecker_product_of_links_and_causality(block_rows, kind):
    """In blocks of any size, whether the links have a gradient or not."""
    q, k, v = arrays()
    out = attend(q, k, v, BIAS, LINKS.astype(kind), MASK, block_rows=block_rows)
    expected = by_hand(q, k, v, BIAS, LINKS, MASK)
    reads = np.asarray(MASK)[:, None, :, :, None]  # masked patches of their own may read none
    np.testing.assert_allclose(out * reads, expected * reads, rtol=1e-4, atol=1e-5)


def test_one_variate_is_ordinary_causal_attention():
    q, k, v = arrays(shape=(B, N, T, 1, H))
    mask = MASK[..., :1] | (jnp.arange(T) == 0)[None, :, None]
    same = jnp.array([1.5, -2.0])[:, None, None]  # has no effect on a variate by itself
    out = attend(q, k, v, same, None, mask)[:, :, :, 0]
    expected = causal_attention(q[..., 0, :], k[..., 0, :], v[..., 0, :], mask[..., 0], "plain")
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_link_is_that_of_the_weight_it_gives():
    """Finite differences of a softmax whose terms are multiplied by the links."""
    q, k, v = arrays(1)
    target = arrays(2)[0]

    def soft(links):
        weights = jnp.tile(jnp.repeat(jnp.repeat(links, T, 1), T, 2)[:, None], (1, N, 1, 1))
        rows = [a.swapaxes(2, 3).reshape(B, N, C * T, H) for a in (q, k, v)]
        score = jnp.einsum("bnqh,bnsh->bnqs", rows[0], rows[1]) / np.sqrt(H)
        causal = jnp.tile(jnp.tril(jnp.ones((T, T))), (C, C))
        weights = jnp.exp(score) * weights * causal
        out = jnp.einsum("bnqs,bnsh->bnqh", weights / weights.sum(-1, keepdims=True), rows[2])
        return jnp.sum(out.reshape(B, N, C, T, H).swapaxes(2, 3) * target)

    zero = jnp.zeros((N, C, C))
    found = jax.jit(jax.grad(lambda a: jnp.sum(attend(q, k, v, zero, a) * target)))
    links = LINKS.astype(jnp.float32)
    np.testing.assert_allclose(found(links), jax.grad(soft)(links), rtol=1e-3, atol=1e-4)


@functools.cache
def layer():
    options = {"theta": 100.0, "dtype": jnp.dtype("float32"), "implementation": "plain"}
    init = nnx.initializers.normal(0.5)
    made = AnyVariateAttention(8, 2, init=init, rngs=nnx.Rngs(0), **options)
    made.same[...], made.other[...] = jnp.array([0.3, -0.2]), jnp.array([-0.6, 0.4])
    graph, params = nnx.split(made)

    def among(x, mask, links):
        return nnx.merge(graph, params).among(x, mask, links)

    return made, jax.jit(among)


X = jnp.asarray(np.random.default_rng(3).normal(size=(B, C, T, 8)), jnp.float32)
OBSERVED = MASK.swapaxes(1, 2)


def test_links_to_oneself_alone_equal_running_the_variates_apart():
    made, among = layer()
    links = jnp.tile(jnp.eye(C, dtype=bool), (B, 1, 1))
    observed = OBSERVED.at[1, 0].set(True)
    out = among(X, observed, links)
    np.testing.assert_allclose(out, made.apart(X, observed), rtol=1e-4, atol=1e-5)


def test_a_permutation_of_the_variates_permutes_what_they_read():
    _, among = layer()
    order = np.array([2, 0, 1])
    links = LINKS[:, order][:, :, order]
    out = among(X[:, order], OBSERVED[:, order], links)
    np.testing.assert_allclose(out, among(X, OBSERVED, LINKS)[:, order], rtol=1e-4, atol=1e-5)


def test_a_variate_without_a_link_and_a_later_patch_have_no_influence():
    """Nor has a patch under the mask."""
    _, among = layer()
    everything = jnp.ones((B, C, T), bool)
    before = among(X, everything, LINKS)
    unlinked = X.at[0, 1].add(5.0)  # which variates 0 and 2 of the first window do not read
    after = among(unlinked, everything, LINKS)
    np.testing.assert_array_equal(
        after[
            0,
            (0, 2),
        ],
        before[
            0,
            (0, 2),
        ],
    )
    assert not np.allclose(after[0, 1], before[0, 1])
    later = among(X.at[:, 2, 3:].add(5.0), everything, LINKS)
    np.testing.assert_array_equal(later[:, :, :3], before[:, :, :3])
    assert not np.allclose(later[1, 0, 3:], before[1, 0, 3:])
    hidden = among(X.at[0, 2, 1].add(5.0), OBSERVED, LINKS)
    np.testing.assert_array_equal(hidden[0, 0], among(X, OBSERVED, LINKS)[0, 0])
