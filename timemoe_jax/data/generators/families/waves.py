"""Series of a few exact frequencies, as the tides are."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.generators.draws import log_uniform, smooth, uniform
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng


@dataclasses.dataclass(frozen=True)
class Tides(Generator):
    """Draws sums of sines whose periods have no common multiple, some with a slow swell and noise.

    The further periods of a series lie near the first, its half or its third, so that the sum
    beats, or anywhere.
    """

    citation: ClassVar[str] = "Doodson, Proc. R. Soc. A 100 (1921): harmonic analysis of tides"

    period: Bounds = (4.0, 400.0)  # of the first sine, in points
    sines: tuple[int, int] = (1, 8)  # how many, each number as likely
    near: float = 0.08  # deviation of the logarithm of a period near another
    decay: Bounds = (0.3, 1.5)  # the k-th amplitude falls as k to this power
    noise: Bounds = (0.005, 0.5)  # deviation of noise, in those of the sum
    swell: Bounds = (0.05, 0.8)  # deviation of the logarithm of a slow factor, where there is one

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        most = self.sines[1]
        number = rng.integers(self.sines[0], most + 1, count)
        first = log_uniform(rng, self.period, count, 1)
        divisor = rng.choice([1.0, 1.0, 2.0, 3.0], (count, most))
        close = first / divisor * np.exp(self.near * rng.standard_normal((count, most)))
        anywhere = rng.random((count, most)) < 0.3
        period = np.where(anywhere, log_uniform(rng, self.period, count, most), close)
        period[:, 0] = first[:, 0]
        order = np.arange(most)
        amplitude = (order + 1.0) ** -uniform(rng, self.decay, count, 1)
        amplitude = amplitude * (order < number[:, None])
        angle = (
            rng.random((count, most, 1)) + np.arange(length) / np.maximum(period, 2.1)[..., None]
        )
        values = np.einsum("nk,nkt->nt", amplitude, np.sin(2 * np.pi * angle))
        swelling = uniform(rng, self.swell, count, 1) * (rng.random((count, 1)) < 0.3)
        values *= np.exp(swelling * smooth(rng, np.full(count, max(1.0, length / 6)), length))
        # Half of them are as clean as a formula.
        noise = log_uniform(rng, self.noise, count, 1) * (rng.random((count, 1)) < 0.5)
        scale = values.std(axis=1, keepdims=True)
        return values + noise * scale * rng.standard_normal((count, length))
