"""Chaotic systems: Lorenz, Roessler and Mackey-Glass, one coordinate of each observed.

Lorenz (J. Atmos. Sci. 20, 1963) and Roessler (Phys. Lett. A 57, 1976) are both of the form
s' = c + L s + a xz + b xy with s = (x, y, z), so that one classical Runge-Kutta step advances
series of either kind together. Mackey-Glass (Science 197, 1977) is a delay equation: over less
than one delay its production is known, and what remains is linear and solved exactly, many steps
at once.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.data.generators.draws import PerSeries, kinds, log_uniform, uniform
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng

# Runge-Kutta steps between points, and steps before the first point, to reach the attractor.
SUBSTEPS = 3
_WARM_UP = 600
# Nodes per delay of a Mackey-Glass equation, and delays before the first point.
NODES = 64
_WARM_UP_DELAYS = 20


class Quadratic(NamedTuple):
    """Coefficients of s' = constant + linear s + xz_term x z + xy_term x y, one set per series."""

    constant: Float64[np.ndarray, "3 count"]
    linear: Float64[np.ndarray, "3 3 count"]
    xz_term: Float64[np.ndarray, "3 count"]
    xy_term: Float64[np.ndarray, "3 count"]


@dataclasses.dataclass(frozen=True)
class Chaos(Generator):
    """Draws one coordinate of chaotic systems, from random states, sampled at random steps."""

    citation: ClassVar[str] = "Lorenz (1963); Roessler (1976); Mackey and Glass (1977)"

    lorenz_step: Bounds = (0.008, 0.06)  # time between points; a turn takes about 0.75
    rossler_step: Bounds = (0.05, 0.4)  # the same; a turn of Roessler's takes about 6
    mackey_nodes: Bounds = (2, 12)  # time between points, in 64ths of the delay
    delay: Bounds = (17.0, 40.0)  # delay of Mackey-Glass; it is chaotic from about 17 on
    # Deviation of observation noise, as a share of the series' own; half of them have none.
    noise: Bounds = (0.0, 0.05)
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of the three systems

    def _draw(self, rng: Rng, count: int, length: int) -> Float[np.ndarray, " {count} {length}"]:
        names = ("lorenz", "rossler", "mackey_glass")
        rows = kinds(rng, dict(zip(names, self.weights, strict=True)), count)
        values = np.empty((count, length))
        systems, steps, chosen = [], [], []
        for name, system, parameters, step in (
            ("lorenz", lorenz, lorenz_parameters, self.lorenz_step),
            ("rossler", rossler, rossler_parameters, self.rossler_step),
        ):
            if name in rows:
                systems.append(system(*parameters(rng, rows[name].size)))
                steps.append(log_uniform(rng, step, rows[name].size))
                chosen.append(rows[name])
        if systems:
            parts = zip(*systems, strict=True)
            joined = Quadratic(*(np.concatenate(part, axis=-1) for part in parts))
            drawn = np.concatenate(chosen)
            start = rng.uniform(0.5, 3.0, (3, drawn.size))
            path = integrate(joined, start, np.concatenate(steps), length, _WARM_UP)
            seen = rng.integers(0, 3, drawn.size)
            values[drawn] = path[:, seen, np.arange(drawn.size)].T
        if "mackey_glass" in rows:
            delayed = rows["mackey_glass"]
            values[delayed] = self._mackey_glass(rng, delayed.size, length)
        scale = uniform(rng, self.noise, count, 1) * values.std(axis=1, keepdims=True)
        scale *= rng.random((count, 1)) < 0.5
        return values + scale * rng.standard_normal((count, length))

    def _mackey_glass(
        self, rng: Rng, count: int, length: int
    ) -> Float64[np.ndarray, "{count} {length}"]:
        low, high = (int(bound) for bound in self.mackey_nodes)
        stride = rng.integers(low, high + 1, count)
        start = rng.uniform(0.5, 1.3, count)
        nodes = _WARM_UP_DELAYS * NODES + high * length
        path = mackey_glass(uniform(rng, self.delay, count), start, nodes)
        at = _WARM_UP_DELAYS * NODES + stride[:, None] * np.arange(length)
        return np.take_along_axis(path, at, axis=1)


def lorenz_parameters(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sigma, rho and beta near the classical 10, 28 and 8/3, where the system is chaotic."""
    return rng.uniform(9, 11, count), rng.uniform(27, 40, count), rng.uniform(2.4, 2.9, count)


def rossler_parameters(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and c near 0.2, 0.2 and 5.7, where the system is bounded and mostly chaotic."""
    return rng.uniform(0.17, 0.22, count), rng.uniform(0.15, 0.3, count), rng.uniform(5, 7, count)


def lorenz(sigma: PerSeries, rho: PerSeries, beta: PerSeries) -> Quadratic:
    """x' = sigma (y - x), y' = x (rho - z) - y, z' = xy - beta z."""
    zero, one = np.zeros_like(sigma), np.ones_like(sigma)
    return Quadratic(
        constant=np.array([zero, zero, zero]),
        linear=np.array([[-sigma, sigma, zero], [rho, -one, zero], [zero, zero, -beta]]),
        xz_term=np.array([zero, -one, zero]),
        xy_term=np.array([zero, zero, one]),
    )


def rossler(a: PerSeries, b: PerSeries, c: PerSeries) -> Quadratic:
    """x' = -y - z, y' = x + a y, z' = b + z (x - c)."""
    zero, one = np.zeros_like(a), np.ones_like(a)
    return Quadratic(
        constant=np.array([zero, zero, b]),
        linear=np.array([[zero, -one, -one], [one, a, zero], [zero, zero, -c]]),
        xz_term=np.array([zero, zero, one]),
        xy_term=np.array([zero, zero, zero]),
    )


def integrate(
    system: Quadratic,
    state: Float64[np.ndarray, "3 count"],
    step: PerSeries,
    length: int,
    warm_up: int = 0,
    substeps: int = SUBSTEPS,
) -> Float64[np.ndarray, "{length} 3 count"]:
    """Solves the systems from a state by classical Runge-Kutta steps of order four.

    A series has `length` points, `step` apart in time, with `substeps` Runge-Kutta steps between
    two of them. The first is the state after `warm_up` steps.
    """
    h, derivative = step / substeps, _derivative(system)
    path = np.empty((length, *state.shape))
    for t in range(length):
        for _ in range(warm_up if t == 0 else substeps):
            first = derivative(state)
            second = derivative(state + h / 2 * first)
            third = derivative(state + h / 2 * second)
            fourth = derivative(state + h * third)
            second += third
            state = state + h / 6 * (first + 2 * second + fourth)
        path[t] = state
    return path


def _derivative(system: Quadratic) -> Callable[[np.ndarray], np.ndarray]:
    """The right-hand side, with all its products as one array operation."""
    # The three linear terms, xz and xy.
    terms = np.concatenate(
        [system.linear.swapaxes(0, 1), system.xz_term[None], system.xy_term[None]]
    )
    factors = np.empty((5, 1, terms.shape[-1]))
    products = np.empty_like(terms)

    def derivative(s: np.ndarray) -> np.ndarray:
        factors[:3, 0] = s
        np.multiply(s[0], s[2], out=factors[3, 0])
        np.multiply(s[0], s[1], out=factors[4, 0])
        np.multiply(terms, factors, out=products)
        slope = products.sum(axis=0)
        slope += system.constant
        return slope

    return derivative


def mackey_glass(
    delay: PerSeries,
    start: PerSeries,
    length: int,
    beta: float = 0.2,
    gamma: float = 0.1,
    power: float = 10.0,
) -> Float64[np.ndarray, "count {length}"]:
    """Solves x' = beta x(t - delay) / (1 + x(t - delay)^power) - gamma x, from a constant past.

    Over each step, the production is integrated by the cubic through four nodes, times the exact
    decay: an error of order four. `start` is x up to time 0, where the first node is; nodes are
    delay / NODES apart.
    """
    # Steps of one turn: the last needs the production a node further, all of it known.
    h, turn = delay / NODES, NODES - 1
    path = np.empty((delay.size, NODES + length + turn))
    path[:, : NODES + 1] = start[:, None]
    decay = np.exp(-gamma * h[:, None] * np.arange(1, turn + 1))
    # The integral of a cubic from its second to its third node, each value decayed on the way.
    share = np.array((-1.0, 13.0, 13.0, -1.0)) / 24
    weights = h * share[:, None] * np.exp(-gamma * h * np.array((2.0, 1.0, 0.0, -1.0))[:, None])
    for at in range(NODES, NODES + length - 1, turn):
        # What the production at nodes at - 1, at, ..., at + turn + 1 is made from.
        past = path[:, max(at - 1 - NODES, 0) : at + turn - NODES + 2]
        if at == NODES:
            past = np.concatenate([start[:, None], past], axis=1)
        made = beta * past / (1.0 + past**power)
        gained = sum(w[:, None] * made[:, j : j + turn] for j, w in enumerate(weights))
        rising = np.cumsum(gained / decay, axis=1)
        path[:, at + 1 : at + 1 + turn] = decay * (path[:, at, None] + rising)
    return path[:, NODES : NODES + length]
