"""Fitting how a loss falls with parameters and points: L(N, D) = E + A / N^a + B / D^b.

The form and how it is fitted are those of arXiv 2203.15556 (Section 3.3 and Appendix D.2): L-BFGS
on the Huber loss of the residuals of log L, from several starts. How far the fit can be trusted
comes from fitting again to runs drawn with replacement.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.data.series import positive_int
from timemoe_jax.errors import DataError

PARAMETERS = ("floor", "n_factor", "n_exponent", "d_factor", "d_exponent")
# Residuals of log L beyond a hundredth, about the difference between two seeds, count linearly. The
# paper's 1e-3 is for hundreds of runs; with a dozen it would be almost the absolute error.
HUBER_DELTA = 1e-2
MAX_EXPONENT = 3.0
# Values of N and of D without which their term and the floor cannot be told apart.
_DISTINCT = 3
# A few hundred steps settle the law; an exponent that the runs do not determine would take
# thousands.
_OPTIONS = {"maxiter": 300, "maxfun": 400}


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = floor + n_factor / N^n_exponent + d_factor / D^d_exponent."""

    floor: float  # E: what neither parameters nor points take away
    n_factor: float  # A, of the parameters N
    n_exponent: float  # a
    d_factor: float  # B, of the points D
    d_exponent: float  # b

    def predict(
        self, parameters: Float[np.ndarray, "*S"] | float, points: Float[np.ndarray, "*S"] | float
    ) -> Float64[np.ndarray, "*S"]:
        """The loss of so many parameters after so many points."""
        n = np.asarray(parameters, np.float64) ** -self.n_exponent
        d = np.asarray(points, np.float64) ** -self.d_exponent
        return self.floor + self.n_factor * n + self.d_factor * d


@dataclasses.dataclass(frozen=True)
class ScalingFit:
    """The result of `fit_scaling_law`."""

    law: ScalingLaw  # fitted to all runs
    resampled: tuple[ScalingLaw, ...]  # fitted to runs drawn with replacement
    confidence: float  # of the intervals, between 0 and 1
    num_runs: int
    residual: float  # the root mean square of the residuals of log L

    def interval(self, name: str) -> tuple[float, float]:
        """The interval of one of `PARAMETERS`."""
        low, high = self._quantiles(np.array([getattr(law, name) for law in self.resampled]))
        return float(low), float(high)

    def predict_interval(
        self, parameters: Float[np.ndarray, "*S"] | float, points: Float[np.ndarray, "*S"] | float
    ) -> Float64[np.ndarray, "two *S"]:
        """The interval of the predicted loss: its lower and its upper end."""
        return self._quantiles(
            np.array([law.predict(parameters, points) for law in self.resampled])
        )

    def _quantiles(self, values: Float64[np.ndarray, "R *S"]) -> Float64[np.ndarray, "two *S"]:
        tail = (1 - self.confidence) / 2
        return np.quantile(values, [tail, 1 - tail], axis=0)

    def as_dict(self) -> dict[str, Any]:
        """The law and its intervals, as JSON takes it."""
        return {
            "law": dataclasses.asdict(self.law),
            "intervals": {name: list(self.interval(name)) for name in PARAMETERS},
            "confidence": self.confidence,
            "num_runs": self.num_runs,
            "num_resamples": len(self.resampled),
            "residual": self.residual,
        }


def fit_scaling_law(
    parameters: Sequence[float] | Float[np.ndarray, " R"],
    points: Sequence[float] | Float[np.ndarray, " R"],
    losses: Sequence[float] | Float[np.ndarray, " R"],
    *,
    num_resamples: int = 200,
    confidence: float = 0.9,
    seed: int = 0,
) -> ScalingFit:
    """Fits L(N, D) = E + A / N^a + B / D^b to runs.

    Each run has N parameters, such as those activated by a point, D points that it was trained on,
    and a loss above 0 at its end. The law is fitted again to `num_resamples` draws of runs with
    replacement; a draw without enough different N and D is drawn again.

    Raises:
      DataError: there are fewer runs than the law has parameters, N or D do not differ enough to
        tell its terms apart, or a value is not a finite number above 0.
    """
    n = _checked("parameters", parameters)
    d = _checked("points", points)
    loss = _checked("losses", losses)
    if not len(n) == len(d) == len(loss):
        raise DataError(
            f"there are {len(n)} parameters, {len(d)} points and {len(loss)} losses; give one of "
            "each for every run"
        )
    if why := _why_not(n, d):
        raise DataError(why)
    num_resamples = positive_int("num_resamples", num_resamples)
    if not 0 < confidence < 1:
        raise DataError(f"confidence must be between 0 and 1, but is {confidence}")
    best = _fit(n, d, loss, None)
    rng = np.random.default_rng(seed)
    laws: list[ScalingLaw] = []
    while len(laws) < num_resamples:
        drawn = rng.integers(len(n), size=len(n))
        if _why_not(n[drawn], d[drawn]) is None:
            laws.append(_fit(n[drawn], d[drawn], loss[drawn], best))
    residuals = np.log(loss) - np.log(best.predict(n, d))
    return ScalingFit(
        best, tuple(laws), confidence, len(n), float(np.sqrt(np.mean(np.square(residuals))))
    )


def _checked(name: str, values: Any) -> Float64[np.ndarray, " R"]:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name} must be numbers, one for each run, but is {values!r}") from None
    if array.ndim != 1:
        raise DataError(f"{name} must be one number for each run, but has shape {array.shape}")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if wrong.size:
        raise DataError(
            f"{name}[{wrong[0]}] is {array[wrong[0]]}; it must be a finite number above 0"
        )
    return array


def _why_not(n: Float64[np.ndarray, " R"], d: Float64[np.ndarray, " R"]) -> str | None:
    """Why runs of these parameters and points do not determine the law, if they do not."""
    runs = len(np.unique(np.stack([n, d]), axis=1).T)
    if runs < len(PARAMETERS):
        return (
            f"there are {runs} different runs, fewer than the {len(PARAMETERS)} parameters of the "
            "law; add sizes or numbers of points"
        )
    for name, values in (("parameters", n), ("points", d)):
        different = len(np.unique(values))
        if different < _DISTINCT:
            return (
                f"{name} has {different} different values; below {_DISTINCT} its term cannot be "
                "told from the floor: add runs with others"
            )
    return None


def _fit(
    n: Float64[np.ndarray, " R"],
    d: Float64[np.ndarray, " R"],
    loss: Float64[np.ndarray, " R"],
    near: ScalingLaw | None,
) -> ScalingLaw:
    """The best local minimum from several starts, or the one from a law that is near.

    Both terms are parametrized by their value at the geometric means of N and D, which hardly
    depends on the exponents.
    """
    from scipy.optimize import minimize

    middle = np.array([np.mean(np.log(n)), np.mean(np.log(d))])
    x = np.stack([np.log(n), np.log(d)]) - middle[:, None]
    y = np.log(loss)
    lowest = float(np.min(loss))
    bounds = [(None, None)] * 3 + [(0.0, MAX_EXPONENT)] * 2
    if near is None:
        starts = _starts(lowest, float(np.mean(loss)))
    else:
        exponents = np.array([near.n_exponent, near.d_exponent])
        factors = np.log([near.n_factor, near.d_factor]) - exponents * middle
        starts = [np.array([math.log(max(near.floor, 1e-300)), *factors, *exponents])]
    minima = [
        minimize(_objective, start, (x, y), "L-BFGS-B", True, bounds=bounds, options=_OPTIONS)
        for start in starts
    ]
    floor, *factors, a, b = min(minima, key=lambda minimum: minimum.fun).x
    at_one = np.exp(np.array(factors) + np.array([a, b]) * middle)
    return ScalingLaw(math.exp(floor), float(at_one[0]), float(a), float(at_one[1]), float(b))


def _starts(lowest: float, mean: float) -> list[Float64[np.ndarray, "5"]]:
    """Logs of the floor and of both terms in the middle of the runs, and exponents."""
    starts = []
    for share, a, b in itertools.product((0.2, 0.7, 0.95), (0.15, 0.6), (0.15, 0.6)):
        term = math.log(max(mean - share * lowest, 1e-12) / 2)
        starts.append(np.array([math.log(share * lowest), term, term, a, b]))
    return starts


def _objective(
    theta: Float64[np.ndarray, "5"],
    x: Float64[np.ndarray, "2 R"],
    y: Float64[np.ndarray, " R"],
) -> tuple[float, Float64[np.ndarray, "5"]]:
    """The Huber loss of the residuals of log L in units of its delta, and its gradient."""
    exponents = theta[3:]
    terms = np.stack([np.full(len(y), theta[0]), *(theta[1:3, None] - exponents[:, None] * x)])
    top = terms.max(axis=0)
    predicted = top + np.log(np.exp(terms - top).sum(axis=0))
    error = (predicted - y) / HUBER_DELTA
    size = np.abs(error)
    inner = np.minimum(size, 1.0)
    slope = np.clip(error, -1.0, 1.0) / HUBER_DELTA
    shares = np.exp(terms - predicted) * slope
    gradient = np.concatenate([shares.sum(axis=1), -(shares[1:] * x).sum(axis=1)])
    return float(np.sum(inner * (size - 0.5 * inner))), gradient
