"""Laws of known exponents are found again, and what does not determine one is refused."""

import math

import numpy as np
import pytest

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.studies.scaling_law import (
    PARAMETERS,
    ScalingLaw,
    _objective,
    fit_scaling_law,
)

LAW = ScalingLaw(floor=0.3, n_factor=5.0, n_exponent=0.35, d_factor=60.0, d_exponent=0.4)
SIZES = np.array([1e4, 3e4, 1e5, 3e5, 1e6])
POINTS = np.array([1e6, 4e6, 1.6e7, 6.4e7])
N, D = (grid.ravel() for grid in np.meshgrid(SIZES, POINTS))


def test_a_law_by_hand():
    law = ScalingLaw(floor=1.0, n_factor=6.0, n_exponent=0.5, d_factor=8.0, d_exponent=1.0)
    assert law.predict(4.0, 2.0) == 1 + 6 / 2 + 8 / 2


def test_losses_without_noise_give_the_law_back():
    found = fit_scaling_law(N, D, LAW.predict(N, D), num_resamples=1)
    for name in PARAMETERS:
        assert getattr(found.law, name) == pytest.approx(getattr(LAW, name), rel=0.02), name
    assert found.residual < 1e-4
    assert found.num_runs == len(N)


def test_noise_of_half_a_percent_leaves_the_truth_within_the_intervals():
    noise = np.exp(0.005 * np.random.default_rng(0).normal(size=len(N)))
    found = fit_scaling_law(N, D, LAW.predict(N, D) * noise, num_resamples=40, confidence=0.95)
    for name in ("n_exponent", "d_exponent", "floor"):
        low, high = found.interval(name)
        assert low < getattr(LAW, name) < high, name
        assert high - low < 0.5, name  # and they say something
    low, high = found.predict_interval(N, D)
    assert np.mean((low < LAW.predict(N, D)) & (LAW.predict(N, D) < high)) > 0.8
    assert 0.002 < found.residual < 0.008


def test_units_of_the_parameters_change_their_factor_alone():
    losses = LAW.predict(N, D)
    found = fit_scaling_law(1000 * N, D, 2 * losses, num_resamples=1).law
    assert found.n_exponent == pytest.approx(LAW.n_exponent, rel=0.02)
    assert found.floor == pytest.approx(2 * LAW.floor, rel=0.02)
    assert found.predict(1000 * N, D) == pytest.approx(2 * losses, rel=1e-3)


def test_the_gradient_is_that_of_the_objective():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 7)), rng.normal(size=7)
    theta = np.array([-1.0, 0.2, -0.3, 0.4, 0.7])
    _, gradient = _objective(theta, x, y)
    for i in range(5):
        step = 1e-6 * np.eye(5)[i]
        change = _objective(theta + step, x, y)[0] - _objective(theta - step, x, y)[0]
        assert gradient[i] == pytest.approx(change / 2e-6, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(
    ("n", "d", "loss", "message"),
    [
        (N[:4], D[:4], np.ones(4), "4 different runs, fewer than the 5 parameters"),
        (np.repeat(1e4, 9), np.arange(1.0, 10), np.ones(9), "parameters has 1 different values"),
        (N, np.where(D > 5e6, 2.0, 1.0), np.ones(len(N)), "points has 2 different values"),
        (N, D, np.zeros(len(N)), r"losses\[0\] is 0.0"),
        (N, D, np.full(len(N), math.nan), r"losses\[0\] is nan"),
        (N, -D, np.ones(len(N)), r"points\[0\] is -"),
        (N, D[:-1], np.ones(len(N)), "20 parameters, 19 points and 20 losses"),
        (N[None], D, np.ones(len(N)), "parameters must be one number for each run"),
        (["many"] * 6, D[:6], np.ones(6), "parameters must be numbers"),
    ],
)
def test_what_does_not_determine_a_law(n, d, loss, message):
    with pytest.raises(DataError, match=message):
        fit_scaling_law(n, d, loss)


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"num_resamples": 0}])
def test_impossible_options(options):
    with pytest.raises(DataError, match=next(iter(options))):
        fit_scaling_law(N, D, LAW.predict(N, D), **options)
