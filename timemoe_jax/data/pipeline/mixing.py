"""How often a run draws from each source.

A share is a part of the points trained on. Within a source, every window comes once in an epoch of
that source, so its points are drawn evenly; `order` says which draw takes which window.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from timemoe_jax.data.config import DataConfig, parse_mixing_weights
from timemoe_jax.data.formats.open import SourcePart
from timemoe_jax.data.pipeline.windows import Extent, Index
from timemoe_jax.errors import DataError

PerPart = Float[np.ndarray, " parts"]  # a number for each source

# Without a limit on epochs, the pattern of sources repeats after so many draws.
_CYCLE = 1 << 30
# The most names that a summary or an error lists.
_FEW = 12


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The plan of how often a run draws from each source."""

    parts: tuple[SourcePart, ...]  # the sources
    extents: tuple[Extent, ...]  # the windows of each
    # How many of every `sum(counts)` draws are of each source; None: all windows are one pool.
    counts: tuple[int, ...] | None
    draws: int  # the windows that the run takes
    policy: str  # `data.mixing`, and how a limit on epochs changed it

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """The domains in alphabetical order, or the sources where there is only one domain."""
        return tuple(sorted(set(self._label_of_parts)))

    @functools.cached_property
    def _label_of_parts(self) -> list[str]:
        domains = [part.domain for part in self.parts]
        return domains if len(set(domains)) > 1 else [part.label for part in self.parts]

    @functools.cached_property
    def _label_numbers(self) -> np.ndarray:
        return np.searchsorted(self.labels, self._label_of_parts)

    def epochs(self) -> PerPart:
        """How many epochs of each source the run takes."""
        windows = np.array([len(extent) for extent in self.extents], float)
        counts = windows if self.counts is None else np.array(self.counts, float)
        return self.draws * counts / np.sum(counts) / np.maximum(windows, 1)

    def shares(self) -> dict[str, float]:
        """The planned share of the points trained on, by label."""
        points = self.epochs() * [extent.points for extent in self.extents]
        shares = dict.fromkeys(self.labels, 0.0)
        for label, share in zip(self._label_of_parts, points / np.sum(points), strict=True):
            shares[label] += float(share)
        return shares

    def count(
        self, sequence: Int64[np.ndarray, "B *S"], mask: Bool[np.ndarray, "B *C S"]
    ) -> Float[np.ndarray, " labels"]:
        """Counts the observed points of a batch by label.

        `sequence` is the series of each row [B] or variate [B, C], or of each point [B, S], and
        below 0 where there is none.
        """
        if sequence.ndim < mask.ndim:
            ids, points = sequence.ravel(), np.count_nonzero(mask, axis=-1).ravel()
        else:
            # Points of a series are neighbors: one search for each piece.
            flat = sequence.ravel()
            begins = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
            ids, points = flat[begins], np.add.reduceat(mask.ravel(), begins, dtype=np.int64)
        stops = [part.stop for part in self.parts]
        known = ids >= 0
        which = self._label_numbers[np.searchsorted(stops, ids[known], side="right")]
        return np.bincount(which, points[known], minlength=len(self.labels))

    def __str__(self) -> str:
        epochs, labels = self.epochs(), np.array(self._label_of_parts)
        endless = set(labels[[part.endless for part in self.parts]])
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        shown = []
        for label, share in shares[:_FEW]:
            of_label = epochs[labels == label]
            low, high = np.min(of_label), np.max(of_label)
            times = _plain(low) if high - low < 0.01 * high else f"{_plain(low)} to {_plain(high)}"
            times = "endless" if label in endless else f"{times} epochs"
            shown.append(f"{label} {share:.2%} ({times})")
        if len(shares) > _FEW:
            rest = sum(share for _, share in shares[_FEW:])
            shown.append(f"{len(shares) - _FEW} more {rest:.2%}")
        idle = [part.label for part, n in zip(self.parts, epochs, strict=True) if n == 0]
        left_out = f"; never drawn from: {', '.join(idle)}" if idle else ""
        return f"{self.policy}: {', '.join(shown)}{left_out}"


def _plain(epochs: float) -> str:
    """Three digits, without an exponent: 0.202, 13.3, 1,330."""
    return f"{epochs:,.0f}" if epochs >= 100 else f"{epochs:.3g}" if epochs >= 1e-3 else "< 0.001"


def plan_mixture(
    parts: Sequence[SourcePart], index: Index, config: DataConfig, draws: int
) -> Mixture:
    """Decides how often a run of `draws` windows, all its updates together, uses each source.

    A source that would go beyond `max_epochs_per_source` gives exactly so many epochs, and the
    others more, in proportion to their weights. A packed index needs the sources as its groups.

    Raises:
      DataError: a weight is of no source, a source has no weight, or the limit on epochs leaves too
        few windows.
    """
    extents = tuple(index.extent(part.first, part.stop) for part in parts)
    windows = np.array([len(extent) for extent in extents], float)
    points = np.array([extent.points for extent in extents], float)
    weights = _weights(parts, points, config)
    # Windows to draw for each point: a source of short series pads more.
    rates = weights * windows / np.maximum(points, 1)
    if config.mixing_unit == "windows":
        rates = weights * (windows > 0)
    limit, policy = config.max_epochs_per_source, config.mixing
    # Generated series are drawn in their order, for which a pool has no room.
    pooled = config.mixing == "points" and not any(part.endless for part in parts)
    counts: tuple[int, ...] | None = None
    if limit:
        limits = np.floor(limit * np.where(rates > 0, windows, 0))
        if np.sum(limits) < draws:
            raise DataError(
                f"max_epochs_per_source {limit:g} allows {int(np.sum(limits)):,} windows, but the "
                f"run takes {draws:,}; raise it, or lower train.num_steps or train.batch_size"
            )
        wanted, at_limit = _fill(rates, limits, draws)
        if at_limit.any():
            names = [part.label for part, full in zip(parts, at_limit, strict=True) if full]
            shown = ", ".join(names[:_FEW]) + (" and more" if len(names) > _FEW else "")
            policy += f", at most {limit:g} epochs of {shown}"
        if not pooled:
            counts = _whole(wanted, draws)
    elif not pooled:
        wanted = np.maximum(rates / np.sum(rates) * _CYCLE, rates > 0)
        counts = _whole(wanted, int(np.floor(np.sum(wanted))))
    return Mixture(tuple(parts), extents, counts, draws, policy)


def _weights(parts: Sequence[SourcePart], points: PerPart, config: DataConfig) -> PerPart:
    """The share of the points that each source should have, up to a common factor."""
    endless = np.array([part.endless for part in parts])
    if endless.any():
        weights = np.zeros(len(parts))
        real = [part for part in parts if not part.endless]
        weights[~endless] = _weights(real, points[~endless], config) if real else 0.0
        share, total = config.synthetic_share, np.sum(weights)
        # Without real series, generated ones are all that a run draws.
        weights[endless] = (share / (1 - share) * total if real else 1.0) / np.sum(endless)
        return weights
    if config.mixing == "points":
        return points
    if config.mixing == "power":
        return np.where(points > 0, points**config.mixing_power, 0.0)
    return _fixed_weights(parts, points, parse_mixing_weights(config.mixing_weights))


def _fixed_weights(
    parts: Sequence[SourcePart], points: PerPart, given: dict[str, float]
) -> PerPart:
    """The weights of `data.mixing_weights`, divided among a domain's sources by their points."""
    # A source that is named itself has no share in the weight of its domain.
    entries = [part.label if part.label in given else part.domain for part in parts]
    without = [p.label for p, entry in zip(parts, entries, strict=True) if entry not in given]
    if without:
        raise DataError(
            f"mixing_weights gives no weight to {', '.join(without[:_FEW])}; name the domain or "
            "the source, with weight 0 to leave it out"
        )
    totals: dict[str, float] = {}
    for entry, weight in given.items():
        totals[entry] = sum(n for e, n in zip(entries, points, strict=True) if e == entry)
        if entry not in entries:
            known = sorted({*(part.domain for part in parts), *(part.label for part in parts)})
            raise DataError(
                f"mixing_weights names {entry!r}, but no source is left for it; "
                f"there are {', '.join(known[: 2 * _FEW])}"
            )
        if weight > 0 and totals[entry] == 0:
            raise DataError(f"mixing_weights gives {entry!r} {weight:g}, but it has no window")
    return np.array(
        [given[e] * n / max(totals[e], 1) for e, n in zip(entries, points, strict=True)]
    )


def _fill(
    rates: PerPart, limits: PerPart, total: int
) -> tuple[PerPart, Bool[np.ndarray, " parts"]]:
    """Divides a total by the rates, none above its limit; returns also which reached the limit."""
    full = np.zeros(len(rates), bool)
    while True:
        free = np.where(full, 0.0, rates)
        if not free.any():
            return np.where(full, limits, 0.0), full
        wanted = np.where(full, limits, (total - np.sum(limits[full])) * free / np.sum(free))
        over = ~full & (wanted > limits)
        if not over.any():
            return wanted, full
        full |= over


def _whole(wanted: PerPart, total: int) -> tuple[int, ...]:
    """Rounds to whole numbers of a given sum, each within one of its number."""
    counts = np.floor(wanted).astype(np.int64)
    missing = total - int(np.sum(counts))
    largest = np.argsort(counts - wanted, kind="stable")[:missing]
    counts[largest] += 1
    return tuple(counts.tolist())


def share_metrics(labels: Sequence[str], points: Float[np.ndarray, " labels"]) -> Mapping[str, Any]:
    """The realized share of each label, for the log; empty with one label or without any point."""
    total = float(np.sum(points))
    if len(labels) < 2 or total == 0:
        return {}
    return {f"share_{label}": n / total for label, n in zip(labels, points, strict=True)}
