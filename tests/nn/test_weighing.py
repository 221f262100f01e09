"""Means of forecasts by their precisions: hand-computed, and what decides them."""

import jax.numpy as jnp
import numpy as np
import pytest

from timemoe_jax.nn import copies, weighing

LEVELS = (0.1, 0.5, 0.9)
HORIZON = 6
OWN = jnp.array([[[-1.0, 0.0, 2.0]] * HORIZON])  # [N=1, P, Q]


def others(
    squares: float | np.ndarray = 1.0, values: float = 3.0, drawn: float = 0.0
) -> weighing.Precise:
    shape = (1, weighing.FORECASTS, HORIZON)
    said = jnp.full(shape, values), jnp.broadcast_to(squares, shape)
    return weighing.Precise(*said, jnp.full((1, HORIZON), drawn))


def factors(**given: float) -> jnp.ndarray:
    """Zeros but for some: of the forecast `k0` to `k4`, of the model `own`, of chance `chance`."""
    at = {**{f"k{i}": i for i in range(weighing.FORECASTS)}, "own": -2, "chance": -1}
    said = np.zeros((1, weighing.FACTORS, HORIZON), np.float32)
    for name, value in given.items():
        said[:, at[name]] = value
    return jnp.asarray(said)


def test_a_mean_by_hand():
    """Four precisions of 1, e^-3 of the match, and 400 of the model, whose deviation is 1/20."""
    said = weighing.weigh(OWN, others(), factors(), LEVELS)
    precisions = np.array([1, 1, 1, 1, np.exp(-3.0), 400])
    own = 400 / precisions.sum()
    chance = np.exp(-0.7) / np.sqrt(precisions.sum()) * np.array([-1.281552, 0, 1.281552])
    by_hand = own * np.array([-1.0, 0.0, 2.0]) + (1 - own) * 3.0 + chance
    np.testing.assert_allclose(said[0], np.tile(by_hand, (HORIZON, 1)), rtol=1e-4)


def test_a_mean_is_drawn_towards_growth_as_it_is():
    """Half of the way for the middle quantile; the others are the root of 1.5 times as far off."""
    said = np.asarray(weighing.weigh(OWN, others(), factors(), LEVELS))
    drawn = np.asarray(weighing.weigh(OWN, others(drawn=0.5), factors(), LEVELS))
    np.testing.assert_allclose(drawn[..., 1], (said[..., 1] + 3.0) / 2, rtol=1e-5)
    np.testing.assert_allclose(np.diff(drawn), np.sqrt(1.5) * np.diff(said), rtol=1e-5)


def test_a_mean_is_drawn_the_further_the_fewer_points_were_seen():
    """Precisions of 2, 4 and twice 1: growth has half of them, and no say beyond 6 steps of 12."""

    def drawn(seen: float, of_grown: float = 0.25) -> np.ndarray:
        squares = [jnp.full((1, 8), a) for a in (0.5, of_grown, 1.0)]
        given = jnp.zeros((1, copies.COPIES, 8)), jnp.zeros(1), squares[2], squares[0]
        nothing = jnp.full(1, 1e6), jnp.full(1, 40.0), jnp.zeros(1)
        return np.asarray(weighing.precise(*given, *nothing, squares[1], jnp.array([seen])).drawn)

    by_hand = 1.5 * 0.5 * np.maximum(1 - np.arange(1, 9) / 6, 0)
    np.testing.assert_allclose(drawn(12.0)[0], by_hand, rtol=1e-4)
    np.testing.assert_allclose(drawn(480.0)[0, 0], 1.5 * 0.5 * 0.1 * (1 - 1 / 240), rtol=1e-4)
    assert (drawn(12.0, of_grown=100.0) < 0.005).all()
    assert drawn(24.0, of_grown=1e-9).max() == 1


def test_what_never_erred_decides_and_what_errs_much_says_nothing():
    sure = np.full((weighing.FORECASTS, 1), 100.0)
    sure[1] = 0.0
    np.testing.assert_allclose(weighing.weigh(OWN, others(sure), factors(), LEVELS), 3, atol=0.01)
    said = weighing.weigh(OWN, others(1e6), factors(chance=-6), LEVELS)
    np.testing.assert_allclose(said, OWN, atol=1e-3)


@pytest.mark.parametrize("name", ["k0", "k1", "k3", "k4"])
def test_a_factor_moves_the_mean_towards_its_forecast_up_to_a_bound(name):
    said = [
        float(weighing.weigh(OWN, others(), factors(**{name: value}), LEVELS)[0, 0, 1])
        for value in (-6, 0, 3, 6, 60)
    ]
    assert said == sorted(said)
    assert said[1] < said[2] < said[3] == said[4] < 3


def test_quantiles_never_decrease():
    rng = np.random.default_rng(0)
    drawn = jnp.asarray(rng.normal(0, 4, (1, weighing.FACTORS, HORIZON)), jnp.float32)
    squares = np.exp(rng.normal(0, 4, (weighing.FORECASTS, HORIZON)))
    said = np.asarray(weighing.weigh(OWN, others(squares), drawn, LEVELS))
    assert (np.diff(said, axis=-1) >= 0).all()


def test_what_is_weighed():
    """The last value by its changes, those of the farthest known beyond it; a match goes apart.

    Growth goes on for as many points as are known of what departs from it.
    """
    copied = jnp.arange(3.0 * HORIZON).reshape(1, copies.COPIES, HORIZON)
    phases, changes = jnp.full((1, HORIZON), 0.5), jnp.array([[0.1, 0.2, 0.4]])
    growth, departures = jnp.array([0.5]), jnp.array([[0.01, 0.02, 0.03]])
    for span, added in ((40.0, np.zeros(6)), (8.0, [0.1, 0.2, 0.4, 0.4, 0.4, 0.4])):
        values, squares, _ = weighing.precise(
            *(copied, jnp.array([7.0]), phases, changes, jnp.array([0.01]), jnp.array([span])),
            *(growth, departures, jnp.array([100.0])),
        )
        grown = [7.5, 8.0, 8.5, 8.5, 8.5, 8.5]
        np.testing.assert_array_equal(values[0], [[7.0] * HORIZON, grown, *copied[0]])
        np.testing.assert_allclose(squares[0, 0], [0.1, 0.2, 0.4, 0.4, 0.4, 0.4])
        np.testing.assert_allclose(squares[0, 1], [0.01, 0.02, 0.03, 0.03, 0.03, 0.03])
        np.testing.assert_array_equal(squares[0, 2:4], 0.5)
        apart = 0.01 * (1 + np.arange(HORIZON) / span) + added
        np.testing.assert_allclose(squares[0, 4], apart, rtol=1e-5)
