"""Series read off a random causal graph over Gaussian processes (CauKer).

Roots of an acyclic graph are draws from Gaussian processes with composite kernels, plus a mean
function. Every other node is a random linear combination of what activation functions, one per
edge, make of its parents. Some nodes that are no roots are observed.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.data.generators.draws import kinds, standardize, uniform
from timemoe_jax.data.generators.families.gaussian_process import GaussianProcess
from timemoe_jax.data.generators.generator import Generator, Rng
from timemoe_jax.errors import DataError

ACTIVATIONS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda x: x,
    lambda x: np.maximum(x, 0.0),
    lambda x: np.where(x > 0, x, 0.1 * x),
    np.tanh,
    lambda x: 1.0 / (1.0 + np.exp(-3.0 * x)),
    lambda x: np.sin(2.0 * x),
    np.square,
    lambda x: np.mod(x, 1.0),
)


@dataclasses.dataclass(frozen=True)
class CausalGraph(Generator):
    """Draws observed nodes of random causal graphs, `observed` of each graph."""

    citation: ClassVar[str] = "CauKer (arXiv 2508.02879)"

    roots: int = 4  # Gaussian processes of a graph
    nodes: int = 8  # further nodes of a graph
    max_parents: int = 3  # the most parents of a node
    observed: int = 4  # how many nodes of a graph are given out as series; at most `nodes`
    noise: tuple[float, float] = (0.0, 0.1)  # deviation of each node's noise; its own is 1
    process: GaussianProcess = dataclasses.field(default_factory=GaussianProcess)  # of the roots

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.roots < 1 or self.max_parents < 1 or not 1 <= self.observed <= self.nodes:
            raise DataError(
                f"roots {self.roots}, max_parents {self.max_parents} and observed {self.observed} "
                f"must be at least 1, and observed at most nodes {self.nodes}"
            )

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        graphs = -(-count // self.observed)
        roots = self.process.generate(rng, graphs * self.roots, length)
        roots = standardize(standardize(roots) + mean_functions(rng, len(roots), length))
        values = np.empty((graphs, self.roots + self.nodes, length), np.float32)
        values[:, : self.roots] = roots.reshape(graphs, self.roots, length)
        for node in range(self.roots, values.shape[1]):
            values[:, node] = self._node(rng, values[:, :node])
        order = rng.permuted(np.tile(np.arange(self.nodes), (graphs, 1)), axis=1)
        shown = self.roots + order[:, : self.observed]
        series = np.take_along_axis(values, shown[:, :, None], axis=1)
        return series.reshape(-1, length)[:count]

    def _node(
        self, rng: Rng, before: Float[np.ndarray, "graphs nodes length"]
    ) -> Float[np.ndarray, "graphs length"]:
        """Computes the next node of every graph from some of those before it."""
        graphs, known, length = before.shape
        total = np.zeros((graphs, length), np.float32)
        parents = rng.permuted(np.tile(np.arange(known), (graphs, 1)), axis=1)
        wanted = rng.integers(1, min(self.max_parents, known) + 1, graphs)
        for slot in range(int(wanted.max())):
            weight = rng.standard_normal((graphs, 1))
            activation = rng.integers(0, len(ACTIVATIONS), graphs)
            for which, function in enumerate(ACTIVATIONS):
                rows = np.flatnonzero((activation == which) & (slot < wanted))
                if rows.size:
                    inputs = before[rows, parents[rows, slot]]
                    total[rows] += weight[rows] * function(inputs)
        noise = uniform(rng, self.noise, graphs, 1) * rng.standard_normal((graphs, length))
        return standardize(standardize(total) + noise)


def mean_functions(rng: Rng, count: int, length: int) -> Float64[np.ndarray, "{count} {length}"]:
    """Draws what is added to each root: nothing, a line, an exponential, a sine, or impulses."""
    x = np.linspace(0.0, 1.0, length)
    values = np.zeros((count, length))
    weights = {"none": 4.0, "line": 2.0, "exponential": 1.0, "sine": 2.0, "impulses": 1.0}
    for kind, rows in kinds(rng, weights, count).items():
        size = (rows.size, 1)
        if kind == "line":
            values[rows] = rng.normal(0.0, 3.0, size) * x
        elif kind == "exponential":
            values[rows] = rng.normal(0.0, 1.0, size) * np.exp(rng.uniform(-3.0, 2.0, size) * x)
        elif kind == "sine":
            cycles = np.exp(rng.uniform(np.log(1.0), np.log(max(2.0, length / 8)), size))
            phase = rng.uniform(0.0, 2 * np.pi, size)
            values[rows] = rng.normal(0.0, 1.0, size) * np.sin(2 * np.pi * cycles * x + phase)
        elif kind == "impulses":
            hit = rng.random((rows.size, length)) < 4.0 / length
            values[rows] = hit * rng.normal(0.0, 4.0, hit.shape)
    return values
