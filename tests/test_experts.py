"""The routed experts: both implementations against each other, by hand, and the block plan."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.nn.experts import (
    MAX_BLOCK,
    MIN_BLOCK,
    ExpertWeights,
    _plan,
    block_size,
    expert_ffn,
)
from timemoe_jax.nn.routing import Routing, route

D, F = 6, 10


def kernels(num_experts: int, seed: int = 0, dtype=jnp.float32) -> ExpertWeights:
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((num_experts, D, F), (num_experts, D, F), (num_experts, F, D))
    drawn = (jax.random.normal(k, s) / 2 for k, s in zip(keys, shapes, strict=True))
    return ExpertWeights(*(w.astype(dtype) for w in drawn))


def tokens(count: int, seed: int = 1, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count, D)).astype(dtype)


@functools.partial(jax.jit, static_argnames="implementation")
def value_and_gradients(x, indices, shares, weights, *, implementation):
    """The output, and the gradients of a weighted sum of it for everything that has one."""
    direction = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def loss(x, shares, weights):
        y = expert_ffn(x, Routing(indices, shares), weights, implementation)
        return jnp.sum(y.astype(jnp.float32) * direction), y

    gradients, y = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, shares, weights)
    return y, gradients


def assert_implementations_agree(x, indices, shares, weights) -> None:
    """To a few float32 roundings of the largest entry of each array."""
    run = functools.partial(value_and_gradients, x, jnp.asarray(indices), shares, weights)
    dense, blocked = run(implementation="dense"), run(implementation="blocked")
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(blocked), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = max(1.0, float(jnp.abs(a).max()))
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-6 * scale)


def random_indices(rng, count: int, choices: int, num_experts: int) -> np.ndarray:
    """Distinct experts for each token, as top-k gives them."""
    rows = [rng.permutation(num_experts)[:choices] for _ in range(count)]
    return np.array(rows, np.int32).reshape(count, choices)


def test_by_hand():
    """silu(40) is 40 in float32, and silu(0) is 0: two experts of width 1 can be worked out."""
    weights = ExpertWeights(
        gate=jnp.array([[[40.0]], [[80.0]]]),
        up=jnp.array([[[2.0]], [[1.0]]]),
        down=jnp.array([[[0.5]], [[0.25]]]),
    )
    x = jnp.array([[1.0], [2.0], [0.0]])
    # Expert 0: 40x * 2x / 2 = 40x². Expert 1: 80x * x / 4 = 20x².
    routing = Routing(
        jnp.array([[0, 1], [1, 0], [0, 1]]), jnp.array([[0.5, 0.25], [0.75, 0.125], [0.9, 0.1]])
    )
    expected = [[0.5 * 40 + 0.25 * 20], [0.75 * 80 + 0.125 * 160], [0.0]]
    for implementation in ("dense", "blocked", "auto"):
        np.testing.assert_array_equal(expert_ffn(x, routing, weights, implementation), expected)


def test_gradients_by_hand():
    """As above: y = w * 40x², so dy/dw = 40x², dy/dx = 80wx, dy/ddown = w * 80x²."""
    weights = ExpertWeights(
        jnp.full((2, 1, 1), 40.0), jnp.full((2, 1, 1), 2.0), jnp.full((2, 1, 1), 0.5)
    )
    x, indices = jnp.array([[3.0]]), jnp.array([[1]])

    def y(x, shares, weights):
        return expert_ffn(x, Routing(indices, shares), weights, "blocked")[0, 0]

    d_x, d_shares, d_weights = jax.grad(y, argnums=(0, 1, 2))(x, jnp.array([[0.25]]), weights)
    np.testing.assert_allclose(d_x, [[80 * 0.25 * 3]], rtol=1e-6)
    np.testing.assert_allclose(d_shares, [[40 * 9]], rtol=1e-6)
    # y = w * (gate x)(up x) down: each kernel's gradient is y over the kernel.
    np.testing.assert_allclose(d_weights.gate[:, 0, 0], [0, 90 / 40], rtol=1e-6)
    np.testing.assert_allclose(d_weights.up[:, 0, 0], [0, 90 / 2], rtol=1e-6)
    np.testing.assert_allclose(d_weights.down[:, 0, 0], [0, 90 / 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "choices", "num_experts"),
    [(1, 1, 1), (1, 2, 4), (7, 3, 5), (33, 1, 8), (100, 2, 8), (65, 3, 3)],
)
def test_implementations_agree(count, choices, num_experts):
    logits = 2 * jax.random.normal(jax.random.key(count), (count, num_experts))
    indices, shares = route(logits, choices)
    assert_implementations_agree(tokens(count), indices, shares, kernels(num_experts))


@pytest.mark.parametrize("order", [(0, 1), (7, 3)])
def test_all_tokens_on_the_same_experts(order):
    """Several blocks for each of two experts, and six empty experts, without a gradient."""
    count = 100
    indices, shares = jnp.tile(jnp.array(order), (count, 1)), jnp.full((count, 2), 0.3)
    weights = kernels(8)
    assert block_size(count, 2, 8) < count
    assert_implementations_agree(tokens(count), indices, shares, weights)
    _, (_, _, d_weights) = value_and_gradients(
        tokens(count), indices, shares, weights, implementation="blocked"
    )
    for d in d_weights:
        used = np.abs(d).max(axis=(1, 2)) > 0
        assert set(np.flatnonzero(used)) == set(order)


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 3.0))
def test_implementations_agree_for_any_routing(seed, skew):
    """Routings from even to all on a few experts, of one compiled shape."""
    rng = np.random.default_rng(seed)
    preference = skew * np.arange(5) + rng.gumbel(size=(24, 5))
    indices = np.argsort(-preference, axis=1)[:, :2].astype(np.int32)
    shares = jnp.asarray(rng.uniform(0, 1, (24, 2)), jnp.float32)
    assert_implementations_agree(tokens(24, seed % 1000), indices, shares, kernels(5))


@pytest.mark.parametrize("implementation", ["dense", "blocked"])
def test_bfloat16(implementation):
    """Against float32 from the same (rounded) numbers.

    No result passes more than eight roundings to bfloat16 in a row, each of a relative size of at
    most 2^-9.
    """
    x, weights = tokens(50, dtype=jnp.bfloat16), kernels(4, dtype=jnp.bfloat16)
    indices, shares = route(jax.random.normal(jax.random.key(3), (50, 4)), 2)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (x, weights))
    exact = value_and_gradients(single[0], indices, shares, single[1], implementation="dense")
    rounded = value_and_gradients(x, indices, shares, weights, implementation=implementation)
    assert rounded[0].dtype == jnp.bfloat16
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        error = np.linalg.norm(np.asarray(b, np.float32) - a) / np.linalg.norm(a)
        assert 0 < error < 8 * 2**-9


def test_under_scan_and_checkpoint():
    """Two layers of stacked kernels: scanned and recomputed, as against one after the other."""
    stacked = jax.tree.map(lambda *w: jnp.stack(w), kernels(4, 0), kernels(4, 9))
    x = tokens(20)
    routing = route(jax.random.normal(jax.random.key(3), (20, 4)), 2)

    def scanned(x, stacked):
        layer = jax.checkpoint(lambda h, w: (h + expert_ffn(h, routing, w, "blocked"), None))
        return jnp.sum(jnp.sin(jax.lax.scan(layer, x, stacked)[0]))

    def unrolled(x, stacked):
        for i in range(2):
            x = x + expert_ffn(x, routing, jax.tree.map(lambda w, i=i: w[i], stacked), "dense")
        return jnp.sum(jnp.sin(x))

    results = [jax.jit(jax.value_and_grad(f, (0, 1)))(x, stacked) for f in (scanned, unrolled)]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(b).max()))


def test_unknown_implementation():
    routing = Routing(jnp.zeros((3, 1), jnp.int32), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="must be auto, dense, blocked, but is 'sparse'"):
        expert_ffn(tokens(3), routing, kernels(2), "sparse")


@pytest.mark.parametrize(
    ("pairs", "expected"), [(4, MIN_BLOCK), (64, 8), (72, 16), (256, 32), (10**6, MAX_BLOCK)]
)
def test_block_size_is_the_mean_load_as_a_power_of_two(pairs, expected):
    assert block_size(pairs // 2, 2, 8) == expected


def check_plan(indices: np.ndarray, num_experts: int, block: int) -> int:
    """Every property the block loop relies on; returns the blocks in use."""
    count, choices = indices.shape
    plan = jax.tree.map(np.asarray, jitted_plan(jnp.asarray(indices), num_experts, block))
    rows, blocks = plan.row, int(plan.blocks)
    loads = np.bincount(indices.reshape(-1), minlength=num_experts)
    assert blocks == sum(-(-load // block) for load in loads)
    assert blocks <= plan.expert.size
    assert plan.token.size == plan.choice.size == plan.expert.size * block
    assert len(set(rows.reshape(-1))) == rows.size
    assert rows.min() >= 0
    assert rows.max() < blocks * block
    np.testing.assert_array_equal(plan.expert[rows // block], indices)
    np.testing.assert_array_equal(plan.token[rows], np.tile(np.arange(count)[:, None], choices))
    np.testing.assert_array_equal(plan.choice[rows], np.tile(np.arange(choices), (count, 1)))
    padding = np.setdiff1d(np.arange(plan.token.size), rows)
    np.testing.assert_array_equal(plan.token[padding], count)
    return blocks


jitted_plan = jax.jit(_plan, static_argnums=(1, 2))


@pytest.mark.parametrize(
    ("count", "choices", "num_experts", "block"),
    [(1, 1, 8, 8), (1, 2, 8, 8), (30, 2, 8, 8), (30, 3, 4, 16), (17, 1, 3, 2), (5, 2, 2, 1)],
)
def test_plan_of_random_routings(count, choices, num_experts, block):
    rng = np.random.default_rng(0)
    for _ in range(10):
        check_plan(random_indices(rng, count, choices, num_experts), num_experts, block)


def test_plan_of_every_routing():
    """All 3^6 ways to send six tokens to three experts; the bound on the blocks is reached."""
    blocks = [
        check_plan(np.array(choice, np.int32)[:, None], 3, 2)
        for choice in itertools.product(range(3), repeat=6)
    ]
    # The worst is a row too many for two experts: 1 + 1 + 4 or 1 + 2 + 3 or 3 + 2 + 1 rows.
    assert max(blocks) == 4
    assert jitted_plan(jnp.zeros((6, 1), jnp.int32), 3, 2).expert.size == 4


@pytest.mark.parametrize("crowded", [0, 3, 7])
def test_plan_of_the_worst_routing(crowded):
    """Every expert but one holds a single row, and the one a row more than full blocks."""
    block, num_experts = 8, 8
    others = [e for e in range(num_experts) if e != crowded]
    indices = np.array([*others, *[crowded] * (3 * block + 1)], np.int32)[:, None]
    blocks = check_plan(indices, num_experts, block)
    assert blocks == 7 + 4
    assert jitted_plan(jnp.asarray(indices), num_experts, block).expert.size == blocks
