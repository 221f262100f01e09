"""Chaotic systems: their equations, the order of the integration, and their attractors."""

import numpy as np
import pytest

from timemoe_jax.data.generators.families import chaos


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def lorenz_of(count: int) -> chaos.Quadratic:
    one = np.ones(count)
    return chaos.lorenz(10 * one, 28 * one, 8 / 3 * one)


def test_derivatives_are_those_of_the_equations():
    """One tiny step from a state, against the equations written out."""
    x, y, z = np.array([1.3]), np.array([-0.7]), np.array([2.1])
    state, h = np.stack([x, y, z]), np.array([1e-6])
    step = chaos.integrate(lorenz_of(1), state, h, 2, substeps=1)
    expected = np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])
    np.testing.assert_allclose((step[1] - step[0]) / h, expected, rtol=1e-4)
    one = np.ones(1)
    step = chaos.integrate(chaos.rossler(0.2 * one, 0.3 * one, 5 * one), state, h, 2, substeps=1)
    expected = np.stack([-y - z, x + 0.2 * y, 0.3 + z * (x - 5)])
    np.testing.assert_allclose((step[1] - step[0]) / h, expected, rtol=1e-4)


def test_runge_kutta_is_of_order_four():
    state, step = np.array([[1.0], [1.0], [20.0]]), np.array([0.4])

    def end(substeps: int) -> np.ndarray:
        return chaos.integrate(lorenz_of(1), state, step, 2, substeps=substeps)[-1]

    exact = end(4000)
    errors = [np.abs(end(n) - exact).max() for n in (40, 80)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.3)


def test_lorenz_stays_on_its_attractor_and_close_starts_part():
    start = rng().uniform(1, 3, (3, 20))
    near = np.concatenate([start, start + 1e-6], axis=1)
    path = chaos.integrate(lorenz_of(40), near, np.full(40, 0.03), 1000, warm_up=600)
    x, y, z = path[:, 0], path[:, 1], path[:, 2]
    assert np.abs(x).max() < 22
    assert np.abs(y).max() < 30
    assert z.min() > 0
    assert z.max() < 50
    # Both wings are visited, and the known mean of z is about 23.5.
    assert np.all((x > 5).any(axis=0) & (x < -5).any(axis=0))
    assert z.mean() == pytest.approx(23.5, abs=0.6)
    short = chaos.integrate(lorenz_of(40), near, np.full(40, 0.03), 1000)
    gap = np.abs(short[:, :, :20] - short[:, :, 20:]).max(axis=1)
    assert gap[10].max() < 1e-4
    assert np.median(gap[900:]) > 1


def test_half_of_the_orbits_are_observed_without_noise():
    generator = chaos.Chaos(noise=(0.3, 0.3), weights=(1.0, 1.0, 0.0), lorenz_step=(0.01, 0.01))
    values = generator.generate(np.random.default_rng(0), 60, 300).astype(np.float64)
    rough = np.abs(np.diff(values, 4, axis=1)).mean(axis=1) / values.std(axis=1)
    assert 0.3 < np.mean(rough > 0.5) < 0.7
    assert 0.3 < np.mean(rough < 0.2) < 0.7


def test_mackey_glass_follows_a_reference_of_a_small_step():
    """Euler's method with 64 * 40 steps per delay, from the same constant past."""
    delay, start, fine = 17.0, 0.9, 40
    path = chaos.mackey_glass(np.array([delay]), np.array([start]), 700)[0]
    steps = 64 * fine
    h = delay / steps
    x = np.full(steps + 1 + 700 * fine, start)
    for k in range(steps, len(x) - 1):
        past = x[k - steps]
        x[k + 1] = x[k] + h * (0.2 * past / (1 + past**10) - 0.1 * x[k])
    reference = x[steps::fine][:700]
    np.testing.assert_allclose(path, reference, atol=5e-3)
    assert np.ptp(path) > 0.5


def test_mackey_glass_of_other_coefficients():
    """Without production it decays exponentially; the past of each series is its own."""
    path = chaos.mackey_glass(np.array([10.0, 20.0]), np.array([1.0, 2.0]), 200, beta=0.0)
    t = np.arange(200) / 64 * np.array([[10.0], [20.0]])
    np.testing.assert_allclose(path, np.array([[1.0], [2.0]]) * np.exp(-0.1 * t), rtol=1e-9)
    cubic = chaos.mackey_glass(np.array([17.0]), np.array([0.9]), 50, power=3.0)
    assert np.all(np.isfinite(cubic))


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_every_chaotic_system_stays_bounded_and_moves(weights):
    values = chaos.Chaos(weights=weights).generate(rng(), 64, 1500)
    assert np.abs(values).max() < 200
    half = values[:, 750:]
    assert np.all(half.std(axis=1) > 0.02)
