"""The plan of the block loop: every property that the loop relies on, for every kind of routing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from timemoe_jax.nn.experts.blocked import MAX_BLOCK, MIN_BLOCK, _plan, block_size


def random_indices(rng, count: int, choices: int, num_experts: int) -> np.ndarray:
    """Distinct experts for each token, as top-k gives them."""
    rows = [rng.permutation(num_experts)[:choices] for _ in range(count)]
    return np.array(rows, np.int32).reshape(count, choices)


@pytest.mark.parametrize(
    ("pairs", "expected"), [(4, MIN_BLOCK), (64, 8), (72, 16), (256, 32), (10**6, MAX_BLOCK)]
)
def test_block_size_is_the_mean_load_as_a_power_of_two(pairs, expected):
    assert block_size(pairs // 2, 2, 8) == expected


def check_plan(indices: np.ndarray, num_experts: int, block: int) -> int:
    """Every property the block loop relies on; returns the blocks in use."""
    count, choices = indices.shape
    plan = jax.tree.map(np.asarray, jitted_plan(jnp.asarray(indices), num_experts, block))
    rows, blocks = plan.row, int(plan.ends[-1])
    loads = np.bincount(indices.reshape(-1), minlength=num_experts)
    assert blocks == sum(-(-load // block) for load in loads)
    assert blocks <= plan.token.size // block
    expert = np.searchsorted(plan.ends, np.arange(blocks), side="right")
    assert plan.token.size == plan.choice.size
    assert plan.token.size % block == 0
    assert len(set(rows.reshape(-1))) == rows.size
    assert rows.min() >= 0
    assert rows.max() < blocks * block
    np.testing.assert_array_equal(expert[rows // block], indices)
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
    assert jitted_plan(jnp.zeros((6, 1), jnp.int32), 3, 2).token.size == 4 * 2


@pytest.mark.parametrize("crowded", [0, 3, 7])
def test_plan_of_the_worst_routing(crowded):
    """Every expert but one holds a single row, and the one a row more than full blocks."""
    block, num_experts = 8, 8
    others = [e for e in range(num_experts) if e != crowded]
    indices = np.array([*others, *[crowded] * (3 * block + 1)], np.int32)[:, None]
    blocks = check_plan(indices, num_experts, block)
    assert blocks == 7 + 4
    assert jitted_plan(jnp.asarray(indices), num_experts, block).token.size == blocks * block


def test_plan_of_pairs_that_are_nobodys():
    """They take no row, wherever they stand, and the others are planned as if alone."""
    indices = np.array([[0, 2], [5, 1], [-1, 0], [2, 7]], np.int32)
    plan = jax.tree.map(np.asarray, jitted_plan(jnp.asarray(indices), 3, 2))
    here = (indices >= 0) & (indices < 3)
    assert int(plan.ends[-1]) == 3
    assert (plan.row[~here] >= plan.token.size).all()
    expert = np.searchsorted(plan.ends, np.arange(3), side="right")
    np.testing.assert_array_equal(expert[plan.row[here] // 2], indices[here])
    tokens = np.broadcast_to(np.arange(4)[:, None], (4, 2))
    np.testing.assert_array_equal(plan.token[plan.row[here]], tokens[here])
    assert (np.delete(plan.token, plan.row[here]) == 4).all()
