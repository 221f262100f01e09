"""The training objective, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.nn.experts import routing
from timemoe_jax.training import losses
from timemoe_jax.training.losses import Targets, following, huber

# Compiled whole, which is faster than one operation after the other.
forecast_losses = jax.jit(losses.forecast_losses, static_argnames="delta")
counts_of = jax.jit(Targets.counts, static_argnums=1)
router_statistics = jax.jit(routing.router_statistics, static_argnums=1)
balancing_loss = jax.jit(losses.balancing_loss)
dead_expert_share = jax.jit(losses.dead_expert_share)
dropped_share = jax.jit(losses.dropped_share)
expert_load = jax.jit(losses.expert_load)
router_entropy = jax.jit(losses.router_entropy)
router_z_loss = jax.jit(losses.router_z_loss)
selection_bias_direction = jax.jit(losses.selection_bias_direction)


@pytest.mark.parametrize(
    ("error", "delta", "expected"),
    [
        *((0.0, 2.0, 0.0), (1.0, 2.0, 0.5), (-1.0, 2.0, 0.5), (2.0, 2.0, 2.0)),
        *((3.0, 2.0, 4.0), (-3.0, 2.0, 4.0), (10.0, 2.0, 18.0), (3.0, 1.0, 2.5), (3.0, 5.0, 4.5)),
    ],
)
def test_huber_by_hand(error, delta, expected):
    assert huber(jnp.float32(error), delta) == expected


@pytest.mark.parametrize(
    ("error", "slope"), [(0.0, 0), (1.5, 1.5), (-1.5, -1.5), (7.0, 2), (-7.0, -2)]
)
def test_huber_slope_is_the_error_up_to_delta(error, slope):
    assert jax.grad(huber)(jnp.float32(error), 2.0) == slope


def test_following_by_hand():
    values = jnp.array([[1.0, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(following(values, 1), values[..., None])
    expected = [[[1, 2], [2, 3], [3, 0]], [[4, 5], [5, 6], [6, 0]]]
    np.testing.assert_array_equal(following(values, 2), expected)
    assert following(values, 5).shape == (2, 3, 5)
    np.testing.assert_array_equal(following(values, 5)[0, 1], [2, 3, 0, 0, 0])


# One series of three targets, the last of them padding; heads of 1 and 2.
TARGETS = jnp.array([[1.0, 2.0, 9.0]])
MASK = jnp.array([[1.0, 1.0, 0.0]])
PREDICTIONS = {
    1: jnp.array([[[2.0], [5.0], [0.0]]]),
    2: jnp.array([[[1.0, 4.0], [0.0, 0.0], [0.0, 0.0]]]),
}


def test_forecast_losses_by_hand():
    """Head 1: errors 1, 3. Head 2: errors 0 and 2 at the first point, -2 at the second."""
    found = forecast_losses(PREDICTIONS, Targets(TARGETS, MASK), delta=2.0)
    assert list(found) == [1, 2]
    np.testing.assert_allclose(found[1], (0.5 + 4) / 2)
    np.testing.assert_allclose(found[2], (0 + 2 + 2) / 3, rtol=1e-6)


def test_a_whole_mask_counts_all_but_what_lies_past_the_end():
    found = forecast_losses(PREDICTIONS, Targets(TARGETS, jnp.ones((1, 3))), delta=2.0)
    # Head 1 adds an error of -9: 2 * (9 - 1). Head 2 adds -9 twice, and nothing past the end.
    np.testing.assert_allclose(found[1], (0.5 + 4 + 16) / 3, rtol=1e-6)
    np.testing.assert_allclose(found[2], (0 + 2 + 2 + 16 + 16) / 5, rtol=1e-6)


def test_positions_drop_predictions():
    """A prediction made from a missing point does not count, though its targets do elsewhere."""
    positions = jnp.array([[1.0, 0.0, 1.0]])
    targets = Targets(TARGETS, MASK, positions)
    found = forecast_losses(PREDICTIONS, targets, delta=2.0)
    np.testing.assert_allclose(found[1], 0.5)
    np.testing.assert_allclose(found[2], (0 + 2) / 2)
    weights = counts_of(targets, (1, 2))
    assert {p: float(w) for p, w in weights.items()} == {1: 1.0, 2: 2.0}


def test_no_target_crosses_a_segment_by_hand():
    """Points a a b b: the first aims at a, the second at nothing, the third at b."""
    segments = jnp.array([[1, 1, 2, 2]])
    whole = Targets(jnp.array([[1.0, 2.0, 3.0]]), jnp.ones((1, 3)))
    packed = whole._replace(segments=segments)
    found = forecast_losses(PREDICTIONS, packed, delta=2.0)
    # Head 1: errors 1 and 3. Head 2: an error of 0, then one of -3 at the third, nothing beyond.
    np.testing.assert_allclose(found[1], (0.5 + 4) / 2)
    np.testing.assert_allclose(found[2], (0 + 4) / 2)
    weights = counts_of(packed, (1, 2))
    assert {p: float(w) for p, w in weights.items()} == {1: 2.0, 2: 2.0}
    one = whole._replace(segments=jnp.ones_like(segments))
    found = forecast_losses(PREDICTIONS, one, delta=2.0)
    assert found == forecast_losses(PREDICTIONS, whole, delta=2.0)


@jax.jit
@jax.value_and_grad
def value_and_gradient(predictions, targets):
    """Of the sum of the heads' losses."""
    return sum(forecast_losses(predictions, targets, delta=2.0).values())


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30, -7.0])
def test_targets_that_do_not_count_change_nothing(junk):
    """Neither the value nor the gradient, whatever is stored there."""

    changed = TARGETS.at[0, 2].set(junk)
    value, gradient = value_and_gradient(PREDICTIONS, Targets(TARGETS, MASK))
    value_changed, gradient_changed = value_and_gradient(PREDICTIONS, Targets(changed, MASK))
    assert value == value_changed
    jax.tree.map(np.testing.assert_array_equal, gradient, gradient_changed)
    assert np.abs(gradient[1]).max() > 0
    np.testing.assert_array_equal(gradient[1][0, 2], [0])


def test_a_head_without_targets_is_zero_with_a_finite_gradient():
    value, gradient = value_and_gradient(PREDICTIONS, Targets(TARGETS, MASK * 0))
    assert value == 0
    assert all((g == 0).all() for g in gradient.values())


@given(seed=st.integers(0, 2**16))
def test_micro_batches_add_up_to_the_batch(seed):
    """With uneven masks, where the mean of the parts' means would be another number."""
    rng = np.random.default_rng(seed)
    predictions = {p: jnp.asarray(rng.normal(size=(4, 6, p)), jnp.float32) for p in (1, 3)}
    targets = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    mask = jnp.asarray(rng.random((4, 6)) < np.array([[0.9], [0.9], [0.3], [0.1]]), jnp.float32)
    whole = forecast_losses(predictions, Targets(targets, mask), delta=2.0)
    weights = counts_of(Targets(targets, mask), (1, 3))
    parts = [
        forecast_losses(
            {p: v[rows] for p, v in predictions.items()},
            Targets(targets[rows], mask[rows]),
            delta=2.0,
            weights=weights,
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    for p in (1, 3):
        np.testing.assert_allclose(parts[0][p] + parts[1][p], whole[p], rtol=1e-5, atol=1e-7)


def test_following_from_some_positions():
    values = jnp.arange(12.0).reshape(2, 6)
    at = jnp.array([4, 0, 5])
    np.testing.assert_array_equal(following(values, 3, at), following(values, 3)[:, at])
    np.testing.assert_array_equal(following(values, 3, at)[0], [[4, 5, 0], [0, 1, 2], [5, 0, 0]])


def random_heads(seed: int, count: int, horizons: tuple[int, ...] = (1, 3)) -> tuple:
    """Predictions at six positions, and so many targets with gaps; [2, ...]."""
    rng = np.random.default_rng(seed)
    predictions = {p: jnp.asarray(rng.normal(size=(2, 6, p)), jnp.float32) for p in horizons}
    mask = jnp.asarray(rng.random((2, count)) < 0.8, jnp.float32)
    positions = jnp.asarray(rng.random((2, 6)) < 0.8, jnp.float32)
    values = jnp.asarray(rng.normal(size=(2, count)), jnp.float32)
    return predictions, Targets(values, mask, positions)


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_heads_read_at_every_position(packed):
    """Named one by one it is what None stands for, weights too."""
    predictions, targets = random_heads(0, 6)
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 2, 3, 3]]) if packed else None
    targets = targets._replace(segments=segments)
    named = targets._replace(at=dict.fromkeys(predictions, jnp.arange(6)))
    every = forecast_losses(predictions, targets, delta=2.0)
    assert every == forecast_losses(predictions, named, delta=2.0)
    assert counts_of(named, (1, 3)) == counts_of(targets, (1, 3))


@given(seed=st.integers(0, 2**16), stride=st.sampled_from([2, 3]))
def test_phases_add_up_to_every_position(seed, stride):
    """Sums and counts of a head read at every n-th position, from each first one on."""
    predictions, targets = random_heads(seed, 8)
    ones = dict.fromkeys(predictions, jnp.ones(()))
    sums, counts = dict.fromkeys(predictions, 0.0), dict.fromkeys(predictions, 0.0)
    for first in range(stride):
        own = jnp.arange(first, 6, stride)
        aimed_at = targets._replace(at=dict.fromkeys(predictions, own))
        read = {p: each[:, own] for p, each in predictions.items()}
        found = forecast_losses(read, aimed_at, delta=2.0, weights=ones)
        weights = counts_of(aimed_at, (1, 3))
        for p in predictions:
            sums[p] += float(found[p])
            counts[p] += float(weights[p])
    every = targets._replace(at=dict.fromkeys(predictions, jnp.arange(6)))
    whole = forecast_losses(predictions, every, delta=2.0)
    for p in predictions:
        np.testing.assert_allclose(sums[p] / max(counts[p], 1), whole[p], rtol=1e-5)


def test_a_head_read_now_and_then_has_the_loss_of_all_on_average():
    """Where every phase has as many targets."""
    predictions, targets = random_heads(1, 8)
    targets = Targets(targets.values, 0 * targets.mask + 1)
    every = targets._replace(at=dict.fromkeys(predictions, jnp.arange(6)))
    whole = forecast_losses(predictions, every, delta=2.0)
    phases = []
    for first in range(3):
        own = jnp.arange(first, 6, 3)
        read = {p: each[:, own] for p, each in predictions.items()}
        at = dict.fromkeys(predictions, own)
        phases.append(forecast_losses(read, targets._replace(at=at), delta=2.0))
    for p in predictions:
        np.testing.assert_allclose(np.mean([f[p] for f in phases]), whole[p], rtol=1e-5)
    assert len({float(f[3]) for f in phases}) == 3


def logits_for(pairs: list[list[tuple[int, int]]], num_experts: int = 8) -> jax.Array:
    """[L, 1, T, E]: layers whose tokens put half of their probability on each of two experts."""
    logits = np.zeros((len(pairs), 1, len(pairs[0]), num_experts), np.float32)
    for layer, chosen in enumerate(pairs):
        for token, (first, second) in enumerate(chosen):
            logits[layer, 0, token, first] = 60.001  # first, by a hair
            logits[layer, 0, token, second] = 60.0
    return jnp.asarray(logits)


UNIFORM = [(0, 1), (2, 3), (4, 5), (6, 7)]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([UNIFORM], 2.0),
        ([UNIFORM, UNIFORM], 2.0),
        ([[(0, 1)] * 4] * 3, 8.0),
        ([[(0, 1)] * 4, [(2, 3)] * 4, [(4, 5)] * 4, [(6, 7)] * 4], 2.0),
        ([[(0, 1)] * 4, [(2, 3)] * 4], 4.0),
    ],
    ids=["uniform", "uniform layers", "one pair", "disjoint pairs", "two pairs"],
)
def test_balancing_loss_of_known_routings(pairs, expected):
    """The layers are pooled: disjoint pairs look uniform, though every layer has collapsed."""
    statistics = router_statistics(logits_for(pairs), 2)
    np.testing.assert_allclose(balancing_loss(statistics), expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_balancing_loss_of_undecided_routers_is_k(k):
    np.testing.assert_allclose(
        balancing_loss(router_statistics(jnp.zeros((3, 2, 4, 8)), k)), k, rtol=1e-6
    )


def test_balancing_loss_by_hand():
    """Two layers of one token each, three experts, top-2."""
    p = jnp.array([[[[0.5, 0.3, 0.2]]], [[[0.1, 0.2, 0.7]]]])
    # Half of the tokens choose each of 0 then 1, and 2 then 1; mean probabilities .3, .25, .45.
    expected = 3 * (0.5 * 0.3 + 0.5 * 0.45 + 0.5 * 0.25 + 0.5 * 0.25)
    found = balancing_loss(router_statistics(jnp.log(p), 2))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_balancing_loss_leaves_out_padding():
    """A padded half on one pair of experts changes nothing; counted, it would."""
    logits = logits_for([[*UNIFORM, *[(0, 1)] * 4]])
    mask = jnp.array([[1.0] * 4 + [0.0] * 4])
    masked = balancing_loss(router_statistics(logits, 2, mask))
    np.testing.assert_allclose(masked, 2.0, rtol=1e-5)
    assert balancing_loss(router_statistics(logits, 2)) > 3
    assert balancing_loss(router_statistics(logits, 2, mask * 0)) == 0


def test_balancing_loss_gradient_evens_out():
    """Going against it takes probability from the crowded experts."""
    logits = jnp.zeros((1, 1, 6, 4)).at[..., 0].set(1.0).at[..., 1].set(0.5)
    gradient = jax.jit(jax.grad(lambda x: balancing_loss(router_statistics(x, 2))))(logits)
    assert (gradient[..., :2] > 0).all()
    assert (gradient[..., 2:] < 0).all()


def test_expert_load_shows_what_the_pooled_loss_hides():
    pairs = [[(0, 1)] * 4, [(2, 3)] * 4, UNIFORM]
    load = expert_load(router_statistics(logits_for(pairs), 2))
    expected = [[0.5, 0.5, *[0] * 6], [0, 0, 0.5, 0.5, *[0] * 4], [1 / 8] * 8]
    np.testing.assert_allclose(load, expected, rtol=1e-6)


@given(seed=st.integers(0, 2**16))
def test_load_and_entropy_bounds(seed):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(2, 2, 5, 6)) * rng.uniform(0.1, 10), jnp.float32)
    mask = jnp.asarray(rng.random((2, 5)) < 0.8, jnp.float32).at[0, 0].set(1)
    statistics = router_statistics(logits, 2, mask)
    load, entropy = expert_load(statistics), router_entropy(statistics)
    np.testing.assert_allclose(np.sum(load, axis=1), [1, 1], rtol=1e-5)
    # No expert can be more than one of a token's two.
    assert load.min() >= 0
    assert load.max() <= 0.5 + 1e-6
    assert entropy.min() >= 0
    assert entropy.max() <= np.log(6) + 1e-6


def test_entropy_by_hand():
    logits = jnp.stack([jnp.zeros((1, 3, 8)), jnp.zeros((1, 3, 8)).at[..., 2].set(100.0)])
    entropy = router_entropy(router_statistics(logits, 2))
    np.testing.assert_allclose(entropy, [np.log(8), 0], rtol=1e-6, atol=1e-6)


def test_z_loss_by_hand():
    """logsumexp of (0, 0) is log 2, of (3, 3) is 3 + log 2; the last token is padding."""
    logits = jnp.array([[[[0.0, 0.0], [3.0, 3.0], [9.0, 9.0]]], [[[0.0, 0.0]] * 3]])
    mask = jnp.array([[1.0, 1.0, 0.0]])
    first, second = np.log(2) ** 2, (3 + np.log(2)) ** 2
    expected = ((first + second) / 2 + first) / 2
    found = router_z_loss(router_statistics(logits, 1, mask))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert router_z_loss(router_statistics(logits, 1)) > 2 * expected
    assert router_z_loss(router_statistics(logits, 1, mask * 0)) == 0


def test_z_loss_slope_is_twice_the_normalizer_times_the_probability():
    logits = jnp.log(jnp.array([[[[0.7, 0.2, 0.1]]]])) + 5.0
    gradient = jax.jit(jax.grad(lambda x: router_z_loss(router_statistics(x, 2))))(logits)
    np.testing.assert_allclose(gradient[0, 0, 0], [7, 2, 1], rtol=1e-5)


def test_z_loss_has_a_gradient_where_the_balancing_loss_has_none():
    """Routers so sure that the other experts' probabilities underflow."""
    logits = jnp.zeros((1, 1, 4, 8)).at[..., :2].set(200.0)
    of_balancing = jax.jit(jax.grad(lambda x: balancing_loss(router_statistics(x, 2))))(logits)
    of_z = jax.jit(jax.grad(lambda x: router_z_loss(router_statistics(x, 2))))(logits)
    np.testing.assert_allclose(of_balancing, np.zeros_like(of_balancing), atol=1e-6)
    assert (of_z[..., :2] > 10).all()


def test_dead_experts_by_hand():
    """A token that does not count brings no expert to life."""
    pairs = [[(0, 1), (0, 2), (6, 7)], [(0, 1), (1, 0), (2, 3)]]
    logits = logits_for(pairs)
    mask = jnp.array([[1.0, 1.0, 0.0]])
    all_tokens = dead_expert_share(router_statistics(logits, 2))
    np.testing.assert_allclose(all_tokens, [3 / 8, 4 / 8])
    counted = dead_expert_share(router_statistics(logits, 2, mask))
    np.testing.assert_allclose(counted, [5 / 8, 6 / 8])
    np.testing.assert_array_equal(dead_expert_share(router_statistics(logits, 2, mask * 0)), [1, 1])


def test_an_expert_is_used_that_does_more_than_a_tenth_of_an_even_share():
    """Of 100 choices among 4 experts an even share is 25: 2 are too few."""
    statistics = router_statistics(logits_for([[(0, 1)]]), 2)
    statistics = statistics._replace(choices=jnp.array([[[50.0, 45.0, 3.0, 2.0]]]))
    np.testing.assert_array_equal(losses.used_expert_share(statistics), [0.75])


def test_an_expert_is_dead_in_a_batch_not_in_its_parts():
    parts = [router_statistics(logits_for([pairs]), 2) for pairs in ([(0, 1)] * 3, [(4, 5)] * 3)]
    whole = jax.tree.map(jnp.add, *parts)
    assert [float(dead_expert_share(part)[0]) for part in parts] == [6 / 8, 6 / 8]
    assert float(dead_expert_share(whole)[0]) == 4 / 8


def test_dropped_share_by_hand():
    """Of all pairs: 4 tokens of 2 choices, though half of them are padding."""
    logits = logits_for([UNIFORM, UNIFORM])
    mask = jnp.array([[1.0, 1.0, 0.0, 0.0]])
    statistics = router_statistics(logits, 2, mask, dropped=jnp.array([2.0, 0.0]))
    np.testing.assert_array_equal(dropped_share(statistics), [2 / 8, 0])
    np.testing.assert_array_equal(dropped_share(router_statistics(logits, 2)), [0, 0])
    np.testing.assert_array_equal(
        dropped_share(jax.tree.map(jnp.add, statistics, statistics))[0], 0.25
    )


def test_bias_direction_by_hand():
    """Loads 3, 2, 1, 2 of a mean of 2; the second layer is even, the third is empty."""
    choices = jnp.array([[[2.0, 2, 0, 0], [1, 0, 1, 2]], [[3, 3, 1, 1], [1, 1, 3, 3]]])
    statistics = router_statistics(jnp.zeros((2, 1, 4, 4)), 2)._replace(choices=choices)
    expected = [[-1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(selection_bias_direction(statistics), expected)
    empty = statistics._replace(choices=0 * choices)
    np.testing.assert_array_equal(selection_bias_direction(empty), np.zeros((2, 4)))


@pytest.mark.parametrize("num_experts", [3, 6, 7, 49])
def test_an_even_load_has_no_direction(num_experts):
    """Neither for numbers of experts whose shares do not have an exact mean."""
    logits = jnp.eye(num_experts)[None, None]
    direction = selection_bias_direction(router_statistics(logits, 1))
    np.testing.assert_array_equal(direction, np.zeros((1, num_experts)))


@pytest.mark.parametrize(
    ("kind", "expected"), [("huber", 8.0), ("mse", 25.0), ("mae", 5.0), ("pinball", 2.5)]
)
def test_kinds_of_point_losses(kind, expected):
    """Of an error of 5 either way; Huber, linear from 2 on, is 2 * (5 - 2 / 2)."""
    np.testing.assert_allclose(losses.point_loss(jnp.array([5.0, -5.0]), kind, 2.0), expected)


def test_only_the_steps_that_a_forecast_reads_count():
    """A head of three, of which two steps are read."""
    targets = Targets(jnp.array([[1.0, 2.0, 9.0]]), jnp.ones((1, 3)), steps={3: 2})
    predictions = {3: jnp.zeros((1, 3, 3))}
    found = losses.forecast_losses(predictions, targets, delta=1.0, kind="mae")
    # At the first position 1 and 2, at the second 2 and 9, at the third 9 alone.
    np.testing.assert_allclose(found[3], (1 + 2 + 2 + 9 + 9) / 5)
