"""The mixtures of cycles, trends and noise of `timemoe_jax.data.synthetic`, as a family."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from timemoe_jax.data import synthetic
from timemoe_jax.data.generators.generator import Generator, Rng


@dataclasses.dataclass(frozen=True)
class Components(Generator):
    """Draws sums and products of the parts that real series are made of, one series at a time."""

    citation: ClassVar[str] = "after Harvey (1989), Structural Time Series Models"

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        return np.stack([synthetic.generate(rng, length) for _ in range(count)])
