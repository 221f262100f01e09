"""Composite kernels: the covariance of what is drawn is the kernel."""

import numpy as np
import pytest

from timemoe_jax.data.generators.families import gaussian_process
from timemoe_jax.data.generators.families.gaussian_process import GaussianProcess, Kernels


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def covariance(kernels: Kernels, series: int, length: int) -> np.ndarray:
    """The composite kernel of one series at x = 0, 1 / length, ..., by its definition."""
    x = np.arange(length) / length
    d = x[:, None] - x
    total = np.zeros((length, length))
    for j in np.flatnonzero(kernels.used[series]):
        s, a = kernels.scale[series, j], kernels.shape[series, j]
        each = (
            lambda s=s: np.exp(-(d**2) / (2 * s**2)),
            lambda s=s: np.exp(-2 * np.sin(np.pi * d / s) ** 2),
            lambda s=s, a=a: (1 + d**2 / (2 * a * s**2)) ** -a,
            lambda s=s: s**2 + x[:, None] * x,
            lambda s=s: s**2 * np.eye(length),
        )[kernels.kind[series, j]]()
        total = total * each if j and kernels.product[series, j] else total + each
    return total


def empirical(kernels: Kernels, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The covariance of many draws of one kernel, and the kernel."""
    many = Kernels(
        *(
            np.repeat(getattr(kernels, name), count, axis=0)
            for name in ("kind", "scale", "shape", "product", "used")
        )
    )
    values = gaussian_process.sample(rng(3), many, length, 32)
    return values.T @ values / count, covariance(kernels, 0, length)


def kernels_of(*parts: tuple[int, float, float, bool]) -> Kernels:
    kind, scale, shape, product = (np.array([column]) for column in zip(*parts, strict=True))
    return Kernels(kind, scale, shape, product, np.ones_like(product, bool))


GP = gaussian_process


@pytest.mark.parametrize(
    "parts",
    [
        [(GP.RBF, 0.1, 1.0, False)],
        [(GP.PERIODIC, 0.25, 1.0, False)],
        [(GP.RATIONAL, 0.1, 0.5, False)],
        [(GP.LINEAR, 0.5, 1.0, False)],
        [(GP.WHITE, 0.3, 1.0, False)],
        [(GP.PERIODIC, 0.2, 1.0, False), (GP.RBF, 0.3, 1.0, True)],
        [(GP.PERIODIC, 0.2, 1.0, False), (GP.LINEAR, 0.5, 1.0, True), (GP.WHITE, 0.5, 1.0, False)],
        [(GP.LINEAR, 0.1, 1.0, False), (GP.LINEAR, 1.0, 1.0, True), (GP.RBF, 0.1, 1.0, False)],
        [(GP.WHITE, 1.0, 1.0, False), (GP.LINEAR, 0.1, 1.0, True), (GP.PERIODIC, 0.3, 1.0, False)],
    ],
)
def test_the_covariance_is_that_of_the_kernel(parts):
    measured, kernel = empirical(kernels_of(*parts), 6000, 24)
    np.testing.assert_allclose(measured, kernel, atol=0.09 * kernel.max())


def test_the_covariance_of_drawn_compositions():
    generator = GaussianProcess()
    for seed in range(5):
        kernels = generator.kernels(rng(seed), 1, 20)
        measured, kernel = empirical(kernels, 4000, 20)
        np.testing.assert_allclose(measured, kernel, atol=0.12 * kernel.max())


def test_kernels_by_hand():
    """Two points half the domain apart."""
    x = 0.5
    rbf = covariance(kernels_of((GP.RBF, 0.5, 1.0, False)), 0, 2)
    assert rbf[0, 1] == pytest.approx(np.exp(-0.5))
    periodic = covariance(kernels_of((GP.PERIODIC, 1.0, 1.0, False)), 0, 2)
    assert periodic[0, 1] == pytest.approx(np.exp(-2.0))
    rational = covariance(kernels_of((GP.RATIONAL, 0.5, 2.0, False)), 0, 2)
    assert rational[0, 1] == pytest.approx((1 + 1 / 4) ** -2)
    both = kernels_of((GP.LINEAR, 2.0, 1.0, False), (GP.WHITE, 3.0, 1.0, False))
    np.testing.assert_allclose(covariance(both, 0, 2), [[13, 4], [4, 13 + x * x]])


def test_waves_are_sums_of_sines_and_cosines():
    frequency = rng().uniform(-3, 3, (2, 5))
    coefficients = rng(1).standard_normal((2, 2, 5))
    angle = frequency[:, :, None] * np.arange(77)
    expected = np.sum(
        coefficients[0][..., None] * np.cos(angle) + coefficients[1][..., None] * np.sin(angle),
        axis=1,
    )
    found = gaussian_process._waves(frequency, coefficients, 77)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_draws_are_close_to_gaussian():
    kernels = kernels_of((GP.RBF, 0.1, 1.0, False))
    many = Kernels(*(np.repeat(a, 3000, axis=0) for a in vars(kernels).values()))
    values = gaussian_process.sample(rng(), many, 16, 256)[:, 5]
    assert np.mean(values**4) / np.mean(values**2) ** 2 == pytest.approx(3.0, abs=0.4)
