"""Whether two methods differ: paired differences, their intervals, and tests."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from timemoe_jax.errors import DataError

RESAMPLES = 2000
LEVEL = 0.95  # of confidence intervals
NUMBERS_AT_ONCE = 2**22  # of a bootstrap's weights
# A signed-rank test of five pairs cannot fall below 0.06, whatever they are.
LEAST_PAIRS = 6


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval of 95%; NaN where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low != self.low:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True)
class Paired:
    """How errors A compare with errors B of the same windows."""

    a: float  # the mean error
    b: float
    difference: Interval  # of the means, A - B
    ratio: Interval  # of the means, A / B
    wins: float  # the share of windows in which A is smaller; ties count half
    series_wins: float  # the same of the mean errors of series
    windows: int
    series: int
    p: float  # two-sided, of a signed-rank test of the series' mean errors; NaN of few series


def compare_paired(
    a: Float64[np.ndarray, " W"],
    b: Float64[np.ndarray, " W"],
    series: Shaped[np.ndarray, " W"],
    seed: int = 0,
) -> Paired:
    """Compares the errors of two methods on the same windows.

    Intervals are percentiles of 2,000 bootstrap samples of whole series, since the windows of a
    series are not independent; with few series they are wider ones (`interval`). The test is
    Wilcoxon's signed-rank test of the mean errors of series, with Pratt's way with ties.

    Args:
      a, b: errors of windows; pairs with NaN must have been left out.
      series: what tells the series of the windows apart.
      seed: of the bootstrap.

    Raises:
      DataError: there is no pair.
    """
    if not len(a):
        raise DataError("there is no window that both have a score of")
    _, cluster = np.unique(series, return_inverse=True)
    sums = sums_by_series(a, b, cluster)
    means = sums[:, :2] / sums[:, 2:]
    boot_a, boot_b = resampled_means(sums, seed)
    return Paired(
        a=float(a.mean()),
        b=float(b.mean()),
        difference=interval(float(a.mean() - b.mean()), boot_a - boot_b, len(means)),
        ratio=interval(float(_over(a.mean(), b.mean())), _over(boot_a, boot_b), len(means)),
        wins=win_rate(a, b),
        series_wins=win_rate(means[:, 0], means[:, 1]),
        windows=len(a),
        series=len(means),
        p=signed_rank(means[:, 0] - means[:, 1]),
    )


def sums_by_series(
    a: Float64[np.ndarray, " W"], b: Float64[np.ndarray, " W"], cluster: Int64[np.ndarray, " W"]
) -> Float64[np.ndarray, "S 3"]:
    """For each series: the sum of A, that of B, and the windows."""
    return np.stack(
        [np.bincount(cluster, weights) for weights in (a, b, np.ones(len(a)))], axis=1
    ).astype(np.float64)


def resampled_means(
    sums: Float64[np.ndarray, "S 3"], seed: int
) -> tuple[Float64[np.ndarray, " R"], Float64[np.ndarray, " R"]]:
    """The mean errors of A and B in bootstrap samples of series."""
    rng, count = np.random.default_rng(seed), len(sums)
    step = max(1, NUMBERS_AT_ONCE // count)
    parts = []
    for first in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - first)
        parts.append(rng.multinomial(count, np.full(count, 1 / count), size) @ sums)
    totals = np.concatenate(parts)
    return totals[:, 0] / totals[:, 2], totals[:, 1] / totals[:, 2]


def interval(value: float, resampled: Float64[np.ndarray, " R"], clusters: int) -> Interval:
    """An estimate with percentiles of its bootstrap samples, which are of so many clusters.

    Percentiles of few clusters are as narrow as a normal distribution's where Student's would be
    right, so that more extreme ones are taken (Hesterberg, What Teachers Should Know About the
    Bootstrap, The American Statistician 69, 2015, Section 5.2). A single cluster has no interval.
    """
    from scipy.special import ndtr, stdtrit

    known = resampled[np.isfinite(resampled)]
    if not known.size or clusters < 2:
        return Interval(value, float("nan"), float("nan"))
    tail = stdtrit(clusters - 1, (1 - LEVEL) / 2)
    outside = float(ndtr(tail * np.sqrt(clusters / (clusters - 1))))
    low, high = np.quantile(known, [outside, 1 - outside])
    return Interval(value, float(low), float(high))


def win_rate(a: Float64[np.ndarray, " _"], b: Float64[np.ndarray, " _"]) -> float:
    """The share of pairs in which `a` is smaller; equal pairs count half."""
    return float(np.mean((a < b) + 0.5 * (a == b))) if len(a) else float("nan")


def signed_rank(differences: Float64[np.ndarray, " S"]) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test; NaN of fewer than 6 differences."""
    if len(differences) < LEAST_PAIRS:
        return float("nan")
    if not differences.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences, zero_method="pratt").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, 1979); those that are NaN do not count."""
    known = [i for i, p in enumerate(p_values) if p == p]
    adjusted, least = [float("nan")] * len(p_values), 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(known) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def _over(above: np.ndarray | np.floating, below: np.ndarray | np.floating) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(below) > 0, np.divide(above, below), np.nan)
