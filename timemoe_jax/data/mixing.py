"""Mixing sources: how often each is drawn from, and which draw gives which window.

A share is one of the points trained on. Within a source every window comes once in an epoch of that
source, so that its points are drawn evenly. Nothing here keeps a position: draw i is computed from
i, the seed and the plan, in memory that grows with the sources alone.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float, Int64

from timemoe_jax.config import DataConfig, parse_mixing_weights
from timemoe_jax.data.windows import Extent, Index, Windows
from timemoe_jax.errors import DataError

# Draws among which the order is shuffled: sources would come in a fixed pattern otherwise, and one
# process of several could see nothing but one of them.
BLOCK = 256
# Without a limit on epochs, the draws after which the pattern of sources begins anew.
_CYCLE = 1 << 40
_ROUNDS = 6
_BITS = (1 << 64) - 1
# Shown one by one in a summary; beyond, domains are.
_FEW = 12


@dataclasses.dataclass(frozen=True)
class SourcePart:
    """The series of one file or folder within a source.

    Attributes:
      domain: the folder that it lies in.
      name: of the file or folder.
      first: its first series.
      stop: the series after its last.
    """

    domain: str
    name: str
    first: int
    stop: int

    @property
    def label(self) -> str:
        """Its domain and name."""
        return f"{self.domain}/{self.name}"


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What a run draws from where.

    Attributes:
      parts: the sources.
      extents: the windows of each.
      counts: of every `sum(counts)` draws, how many are of each source; None draws from all
        windows as one pool.
      draws: the windows that the run takes.
      policy: `data.mixing`, and how a limit on epochs changed it.
    """

    parts: tuple[SourcePart, ...]
    extents: tuple[Extent, ...]
    counts: tuple[int, ...] | None
    draws: int
    policy: str

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """The domains in alphabetical order; of a single one, its sources."""
        return tuple(sorted(set(self._label_of_parts)))

    @functools.cached_property
    def _label_of_parts(self) -> list[str]:
        domains = [part.domain for part in self.parts]
        return domains if len(set(domains)) > 1 else [part.label for part in self.parts]

    @functools.cached_property
    def _label_numbers(self) -> np.ndarray:
        return np.searchsorted(self.labels, self._label_of_parts)

    def epochs(self) -> Float[np.ndarray, " parts"]:
        """How often each source is gone through in the run."""
        windows = np.array([len(extent) for extent in self.extents], float)
        counts = windows if self.counts is None else np.array(self.counts, float)
        return self.draws * counts / np.sum(counts) / np.maximum(windows, 1)

    def shares(self) -> dict[str, float]:
        """The planned share of the points trained on, by label."""
        points = self.epochs() * [extent.points for extent in self.extents]
        found = dict.fromkeys(self.labels, 0.0)
        for label, share in zip(self._label_of_parts, points / np.sum(points), strict=True):
            found[label] += float(share)
        return found

    def count(
        self, sequence: Int64[np.ndarray, "B *S"], mask: Bool[np.ndarray, "B S"]
    ) -> Float[np.ndarray, " labels"]:
        """How many points of a batch are of each label.

        Args:
          sequence: the series of each row, or of each point of it; below 0 where there is none.
          mask: True where a point was observed.
        """
        if sequence.ndim == 1:
            ids, points = sequence, np.count_nonzero(mask, axis=1)
        else:
            # Points of a series are neighbours: one search for each piece.
            flat = sequence.ravel()
            begins = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
            ids, points = flat[begins], np.add.reduceat(mask.ravel(), begins, dtype=np.int64)
        stops = [part.stop for part in self.parts]
        known = ids >= 0
        which = self._label_numbers[np.searchsorted(stops, ids[known], side="right")]
        return np.bincount(which, points[known], minlength=len(self.labels))

    def __str__(self) -> str:
        epochs, labels = self.epochs(), np.array(self._label_of_parts)
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        shown = []
        for label, share in shares[:_FEW]:
            of_label = epochs[labels == label]
            low, high = np.min(of_label), np.max(of_label)
            times = f"{low:.3g}" if high - low < 0.01 * high else f"{low:.3g} to {high:.3g}"
            shown.append(f"{label} {share:.2%} ({times} epochs)")
        if len(shares) > _FEW:
            rest = sum(share for _, share in shares[_FEW:])
            shown.append(f"{len(shares) - _FEW} more {rest:.2%}")
        idle = [part.label for part, n in zip(self.parts, epochs, strict=True) if n == 0]
        left_out = f"; never drawn from: {', '.join(idle)}" if idle else ""
        return f"{self.policy}: {', '.join(shown)}{left_out}"


def plan_mixture(
    parts: Sequence[SourcePart], index: Index, config: DataConfig, draws: int
) -> Mixture:
    """Decides how often each source is drawn from.

    Args:
      parts: the sources.
      index: of their windows; one that packs needs the sources as its groups.
      config: `mixing` and what belongs to it.
      draws: the windows that the run takes: its updates times its batch size. Where a source would
        be gone through more often than `max_epochs_per_source`, it is drawn from that often over
        the run, and the others more in the proportion of their weights.

    Raises:
      DataError: a weight is of no source or a source without a weight, or the limit on epochs
        leaves too few windows.
    """
    extents = tuple(index.extent(part.first, part.stop) for part in parts)
    windows = np.array([len(extent) for extent in extents], float)
    points = np.array([extent.points for extent in extents], float)
    weights = _weights(parts, points, config)
    # Windows to draw for each point: a source of short series pads more.
    rates = weights * windows / np.maximum(points, 1)
    limit, policy = config.max_epochs_per_source, config.mixing
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
        if config.mixing != "points":
            counts = _whole(wanted, draws)
    elif config.mixing != "points":
        wanted = np.maximum(rates / np.sum(rates) * _CYCLE, rates > 0)
        counts = _whole(wanted, int(np.floor(np.sum(wanted))))
    return Mixture(tuple(parts), extents, counts, draws, policy)


def _weights(
    parts: Sequence[SourcePart], points: Float[np.ndarray, " parts"], config: DataConfig
) -> Float[np.ndarray, " parts"]:
    """The share of the points that each source is to have, up to a factor."""
    if config.mixing == "points":
        return points
    if config.mixing == "power":
        return np.where(points > 0, points**config.mixing_power, 0.0)
    given = parse_mixing_weights(config.mixing_weights)
    # A source that is named by itself is no part of what its domain's weight is shared among.
    entries = [part.label if part.label in given else part.domain for part in parts]
    without = [p.label for p, entry in zip(parts, entries, strict=True) if entry not in given]
    if without:
        raise DataError(
            f"mixing_weights gives no weight to {', '.join(without[:_FEW])}; name the domain or "
            "the source, with weight 0 to leave it out"
        )
    for entry, weight in given.items():
        total = sum(n for e, n in zip(entries, points, strict=True) if e == entry)
        if entry not in entries:
            known = sorted({*(part.domain for part in parts), *(part.label for part in parts)})
            raise DataError(
                f"mixing_weights names {entry!r}, of which there is no source left to weigh; "
                f"there are {', '.join(known[: 2 * _FEW])}"
            )
        if weight > 0 and total == 0:
            raise DataError(f"mixing_weights gives {entry!r} {weight:g}, but it has no window")
    totals = {e: sum(points[k] for k, other in enumerate(entries) if other == e) for e in given}
    return np.array(
        [given[e] * n / max(totals[e], 1) for e, n in zip(entries, points, strict=True)]
    )


def _fill(
    rates: Float[np.ndarray, " parts"], limits: Float[np.ndarray, " parts"], total: int
) -> tuple[Float[np.ndarray, " parts"], Bool[np.ndarray, " parts"]]:
    """Shares out a total in proportion to the rates, none above its limit; and who reached it."""
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


def _whole(wanted: Float[np.ndarray, " parts"], total: int) -> tuple[int, ...]:
    """Whole numbers of a given sum, each within one of what is wanted."""
    counts = np.floor(wanted).astype(np.int64)
    missing = total - int(np.sum(counts))
    largest = np.argsort(counts - wanted, kind="stable")[:missing]
    counts[largest] += 1
    return tuple(counts.tolist())


class Schedule:
    """Which source each draw is of: of every `sum(counts)` draws `counts` of each, evenly spread.

    A tree of sources is split in two again and again; of the first k draws that reach a node,
    floor(k * a / (a + b)) go to its left half, whose counts are a in all, and the others to its
    right, whose counts are b. So the first k draws hold as many of each source as its share says,
    within the depth of the tree, and after a whole cycle exactly as many.

    Args:
      counts: of each source; above 0 in all.
    """

    def __init__(self, counts: Sequence[int]):
        # Python's whole numbers: the products are beyond 64 bits.
        self._before = [0]
        for count in counts:
            self._before.append(self._before[-1] + count)

    @property
    def cycle(self) -> int:
        """The draws after which it begins anew."""
        return self._before[-1]

    def locate(self, i: int) -> tuple[int, int]:
        """The source of draw `i`, and how many draws before it are of that source."""
        turn, k = divmod(i, self.cycle)
        low, high = 0, len(self._before) - 1
        while high - low > 1:
            middle = (low + high) // 2
            left = self._before[middle] - self._before[low]
            both = self._before[high] - self._before[low]
            earlier = k * left // both
            if (k + 1) * left // both > earlier:
                high, k = middle, earlier
            else:
                low, k = middle, k - earlier
        return low, turn * (self._before[low + 1] - self._before[low]) + k


class MixedWindows:
    """Random access to the draws of a mixture, without end: item i is the window of draw i.

    Args:
      windows: of all sources.
      mixture: a plan with counts.
      seed: of the order, from 0 to 2**32 - 1.
      shuffle: whether to mix the windows of a source, in another order each epoch, and sources
        within short stretches; else windows come in order, sources in a fixed pattern.
    """

    def __init__(self, windows: Windows, mixture: Mixture, seed: int, shuffle: bool):
        assert mixture.counts is not None
        self._windows = windows
        self._extents = mixture.extents
        self._schedule = Schedule(mixture.counts)
        self._shuffle = shuffle
        # One for the blocks, and one for each source.
        sequence = np.random.SeedSequence(seed)
        self._seeds = sequence.generate_state(1 + len(mixture.parts)).tolist()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return self._windows[self.locate(i)]

    def locate(self, i: SupportsIndex) -> int:
        """The window of draw `i`."""
        i = i.__index__()
        if self._shuffle:
            i = self._shuffled(i)
        part, k = self._schedule.locate(i)
        extent = self._extents[part]
        epoch, within = divmod(k, len(extent))
        if self._shuffle:
            within = permuted(within, len(extent), self._seeds[1 + part] + epoch)
        return extent.first + within

    def _shuffled(self, i: int) -> int:
        """Moves a draw within its block; no block reaches beyond a cycle."""
        cycle = self._schedule.cycle
        turn, k = divmod(i, cycle)
        block, within = divmod(k, BLOCK)
        size = min(BLOCK, cycle - block * BLOCK)
        seed = self._seeds[0] + turn * -(-cycle // BLOCK) + block
        return i - within + permuted(within, size, seed)


def permuted(i: int, size: int, seed: int) -> int:
    """Where a permutation of `size` numbers takes `i`, in constant memory and time.

    A Feistel network over the next even number of bits, repeated while it leads beyond the size
    (Black and Rogaway 2002, doi 10.1007/3-540-45760-7_9). Grain's own takes milliseconds for a
    few numbers, since its network is of 16 bits at least.

    Args:
      i: from 0 to size - 1.
      size: at least 1.
      seed: of the permutation, any whole number.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [_hashed(seed * _ROUNDS + k) for k in range(_ROUNDS)]
    while True:
        left, right = i >> half, i & ((1 << half) - 1)
        for key in keys:
            left, right = right, left ^ (_hashed(key ^ right) >> (64 - half))
        i = left << half | right
        if i < size:
            return i


def _hashed(value: int) -> int:
    """64 bits from 64 bits: a step of SplitMix (doi 10.1145/2660193.2660195)."""
    value = (value + 0x9E3779B97F4A7C15) & _BITS
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _BITS
    return value ^ (value >> 31)


def share_metrics(labels: Sequence[str], points: Float[np.ndarray, " labels"]) -> Mapping[str, Any]:
    """The realised share of each label for the log; nothing where there is one label or no point.

    Args:
      labels: those of the mixture.
      points: the points of each.
    """
    total = float(np.sum(points))
    if len(labels) < 2 or total == 0:
        return {}
    return {f"share_{label}": n / total for label, n in zip(labels, points, strict=True)}
