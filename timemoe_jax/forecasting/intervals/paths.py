"""Sample paths: draws of a whole future, so that sums and maxima over time have honest intervals.

Quantiles say what each step may be, but not how the steps depend on one another. If the steps were
drawn independently, a sum over a week would be far too certain. So the draws of a step, taken from
its quantiles, are put in the order of the errors of earlier forecasts: at every step a path has the
rank that one earlier trajectory of errors had there (the Schaake shuffle: Clark, Gangopadhyay, Hay,
Rajagopalan and Wilby, The Schaake shuffle, 2004; ensemble copula coupling: Schefzik,
Thorarinsdottir and Gneiting, Uncertainty quantification in complex simulation models using ensemble
copula coupling, 2013).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.series import check_levels
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.intervals.quantiles import quantile_function
from timemoe_jax.forecasting.intervals.rolling import label_series

# The levels of the quantiles to draw from: fine enough for any shape, and 9 errors calibrate them.
SAMPLING_LEVELS = tuple(k / 20 for k in range(1, 20))
# With fewer trajectories, ranks say nothing about how steps depend on one another.
FEWEST_TRAJECTORIES = 4


def sample_paths(
    quantiles: Float64[np.ndarray, "N H Q"],
    levels: Sequence[float] | Float64[np.ndarray, " Q"],
    residuals: Sequence[Float64[np.ndarray, "_ _"]],
    num_samples: int,
    seed: int,
    series: Sequence[Float64[np.ndarray, " _"]],
    names: Sequence[str] | None = None,
) -> Float64[np.ndarray, "N S H"]:
    """Draws sample paths whose steps follow quantiles and depend on one another as errors did.

    The draws of a step are spread evenly: as many in each of equal parts of its distribution. With
    more samples than trajectories of errors, every trajectory orders several of them, at different
    places within its rank; with fewer, some are chosen at random. Ties are ranked at random.
    Missing errors are interpolated along their trajectory, for its ranks alone; a trajectory of
    which more than half is missing is left out.

    The residuals of each series are K trajectories of errors, as in `Calibrated.residuals`; at
    least 4 of them must be at least half known. The seed, which is not negative, and the values of
    a series determine its draws, whatever else is in the call. The paths have the units of the
    quantiles.

    Raises:
      DataError: an argument is out of range, or a series has too few trajectories.
    """
    tau = check_levels(levels)
    labels = label_series(names, len(quantiles))
    _check(quantiles, tau, num_samples, seed, labels)
    for name, entries in (("residuals", residuals), ("series", series)):
        if len(entries) != len(quantiles):
            raise DataError(f"{name} has {len(entries)} entries, but quantiles {len(quantiles)}")
    horizon = quantiles.shape[1]
    paths = np.empty((len(quantiles), num_samples, horizon))
    for i, label in enumerate(labels):
        if residuals[i].ndim != 2 or residuals[i].shape[1] != horizon:
            raise DataError(
                f"the residuals of {label} have the shape {residuals[i].shape}; it must be "
                f"[K, {horizon}]"
            )
        trajectories = _trajectories(residuals[i], label)
        rng = np.random.default_rng([seed, _fingerprint(series[i])])
        paths[i] = quantile_function(_ranked(trajectories, num_samples, rng), quantiles[i], tau)
    return paths


def _trajectories(residuals: Float64[np.ndarray, "K H"], label: str) -> Float64[np.ndarray, "_ H"]:
    """The trajectories that are at least half known, with missing errors interpolated."""
    known = ~np.isnan(residuals)
    steps = np.arange(residuals.shape[1])
    rows = np.flatnonzero(2 * known.sum(axis=1) >= len(steps))
    if len(rows) < FEWEST_TRAJECTORIES:
        raise DataError(
            f"{label} has {len(rows)} trajectories of errors of which at least half is known, of "
            f"{len(residuals)}; sample paths need {FEWEST_TRAJECTORIES}: give a longer series or a "
            "calibration set"
        )
    filled = residuals[rows]
    for row, observed in zip(filled, known[rows], strict=True):
        row[~observed] = np.interp(steps[~observed], steps[observed], row[observed])
    return filled


def _ranked(
    trajectories: Float64[np.ndarray, "K H"], num_samples: int, rng: np.random.Generator
) -> Float64[np.ndarray, "S H"]:
    """Probabilities, evenly spread over (0, 1) at every step, in the order of trajectories."""
    parts = []
    for start in range(0, num_samples, len(trajectories)):
        size = min(len(trajectories), num_samples - start)
        chosen = trajectories[rng.permutation(len(trajectories))[:size]]
        # The second key decides between ties, anew at every step.
        order = np.lexsort((rng.uniform(size=chosen.shape), chosen), axis=0)
        ranks = np.argsort(order, axis=0)
        # All steps of a path have the same position within their rank: a position for each step
        # would be independent of the others, and weaken the dependence.
        parts.append((ranks + rng.uniform(size=(size, 1))) / size)
    # A uniform draw may be exactly 0, and a normal quantile infinite.
    return np.clip(np.concatenate(parts), 2.0**-53, 1 - 2.0**-53)


def _fingerprint(series: Float64[np.ndarray, " T"]) -> int:
    """A number that depends on the values of a series alone."""
    values = np.ascontiguousarray(series, np.dtype("<f8")) + 0.0  # -0 becomes 0
    values[np.isnan(values)] = np.nan
    return int.from_bytes(hashlib.blake2b(values.tobytes(), digest_size=16).digest(), "little")


def _check(
    quantiles: np.ndarray, levels: np.ndarray, num_samples: int, seed: int, labels: Sequence[str]
) -> None:
    if num_samples < 1:
        raise DataError(f"num_samples must be at least 1, but is {num_samples}")
    if seed < 0:
        raise DataError(f"seed must not be negative, but is {seed}")
    if quantiles.ndim != 3 or quantiles.shape[-1] != len(levels) or len(levels) < 2:
        raise DataError(
            f"quantiles has the shape {quantiles.shape}; it must be [N, H, Q] of the "
            f"{len(levels)} levels given, and they at least 2"
        )
    for label, rows in zip(labels, quantiles, strict=True):
        if not np.isfinite(rows).all() or (np.diff(rows, axis=-1) < 0).any():
            raise DataError(f"the quantiles of {label} are not finite, or they cross")
