"""Reports what a corpus holds: how much, how long, how often sampled, how clean, how much twice.

Series are read one at a time and in parts, so memory grows by a few bytes per series and not with
the points. A hash of each series' values finds duplicates.
"""

import dataclasses
import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from timemoe_jax.data.formats.open import open_file
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError

UNKNOWN = "unknown"
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)

# Of float32, in which corpora store z-scores: values that differ by no more count as equal.
ROUNDING = 2.0**-23

_PART = 1 << 20  # points read at once
_EXAMPLES = 5  # of duplicates
_BAR = 40  # characters


@dataclasses.dataclass
class Share:
    """A part of a corpus."""

    sequences: int = 0
    points: int = 0

    def add(self, points: int) -> None:
        """Counts one more sequence."""
        self.sequences += 1
        self.points += points


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found in a corpus."""

    path: str  # where it lies
    total_sequences: int
    total_points: int
    sequences: int  # those inspected, evenly spread; everything below is about them
    points: int
    length_quantiles: dict[str, int]  # quantile -> points
    length_histogram: list[tuple[int, int, int]]  # first length, last, series
    frequencies: dict[str, Share]  # what the files say, or "unknown"
    domains: dict[str, Share]  # by the first folder below the path; "unknown" where there is none
    sources: dict[str, Share]  # by folder or file
    missing_points: int = 0  # NaN
    infinite_points: int = 0
    zero_points: int = 0  # zero, but for float32 rounding
    empty_sequences: int = 0  # without any point
    sequences_with_missing: int = 0  # at least one NaN
    all_missing_sequences: int = 0  # points, but no finite one
    constant_sequences: int = 0  # one finite value throughout, but for float32 rounding
    all_zero_sequences: int = 0  # constant at zero
    duplicate_sequences: int  # equal to an earlier one of two or more points
    duplicate_examples: list[tuple[str, str]]  # names of pairs, compared value by value
    skipped_files: list[str]  # files of a kind that is not read
    ignored_columns: list[str]  # of tables: no ids, times or values, or such as only count rows
    examples: list[int]  # numbers of random series, from as many sources as there are

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self)

    def to_text(self, most: int = 100) -> str:
        """The report for a terminal, with at most so many sources."""
        lines = [f"{self.path}: {self.total_sequences:,} sequences, {self.total_points:,} points"]
        if self.sequences < self.total_sequences:
            lines.append(
                f"sampled evenly: {self.sequences:,} sequences of {self.points:,} points; all "
                "below is about these"
            )
        quantiles = ", ".join(f"{name} {value:,}" for name, value in self.length_quantiles.items())
        lines += ["", f"length: {quantiles}", *_histogram_lines(self.length_histogram)]
        for title, shares in (
            ("frequency", self.frequencies),
            ("domain", self.domains),
            ("source", self.sources),
        ):
            lines += ["", *_share_lines(title, shares, self.points, most)]
        lines += ["", *self._quality_lines()]
        return "\n".join(lines)

    def _quality_lines(self) -> Iterator[str]:
        points, sequences = max(self.points, 1), max(self.sequences, 1)
        for name in ("missing", "infinite", "zero"):
            count = getattr(self, f"{name}_points")
            yield f"{name} points: {count:,} ({count / points:.2%})"
        for name in ("empty", "all_missing", "constant", "all_zero", "duplicate"):
            count = getattr(self, f"{name}_sequences")
            yield f"{name.replace('_', ' ')} sequences: {count:,} ({count / sequences:.2%})"
        yield f"sequences with missing points: {self.sequences_with_missing:,}"
        for one, other in self.duplicate_examples:
            yield f"  {other} is {one}"
        yield f"files not read: {len(self.skipped_files):,}"
        yield from (f"  {file}" for file in self.skipped_files[:_EXAMPLES])
        if self.ignored_columns:
            yield f"columns left out: {', '.join(map(repr, self.ignored_columns))}"


def inspect_source(
    source: SequenceSource,
    path: str = "",
    *,
    max_sequences: int | None = None,
    seed: int = 0,
    num_examples: int = 24,
) -> Inspection:
    """Reads a corpus once, at most `max_sequences` of it, evenly spread, and counts what is in it.

    Folders below `path`, from which the source was opened, name the domains and sources. The seed
    decides on the examples.

    Raises:
      DataError: `max_sequences` is less than one, or a series cannot be read.
    """
    if max_sequences is not None and max_sequences < 1:
        raise DataError(f"max_sequences is {max_sequences}; it must be at least 1")
    total = len(source)
    count = total if max_sequences is None else min(total, max_sequences)
    # The middle of each of `count` equal parts.
    chosen = (2 * np.arange(count, dtype=np.int64) + 1) * total // max(2 * count, 1)
    tally = _Tally(path, seed, num_examples)
    hashes = np.zeros(count, np.uint64)
    for k, i in enumerate(chosen.tolist()):
        hashes[k] = tally.see(source, i)
    duplicates, pairs = _duplicates(source, chosen, hashes)
    return Inspection(
        path=path,
        total_sequences=total,
        total_points=int(source.lengths.sum()),
        sequences=count,
        points=int(source.lengths[chosen].sum()),
        length_quantiles=_quantiles(source.lengths[chosen]),
        length_histogram=_histogram(source.lengths[chosen]),
        frequencies=tally.frequencies,
        domains=tally.domains,
        sources=tally.sources,
        duplicate_sequences=duplicates,
        duplicate_examples=pairs,
        skipped_files=list(source.skipped_files),
        ignored_columns=list(source.ignored_columns),
        examples=tally.examples(),
        **tally.counts,
    )


def _parts(source: SequenceSource, i: int) -> Iterator[Float64[np.ndarray, " _"]]:
    """Reads a series part by part, with only one kind of zero and one of NaN."""
    for at in range(0, int(source.lengths[i]), _PART):
        values = source.read(i, at, at + _PART).astype(np.float64) + 0.0
        values[np.isnan(values)] = np.nan
        yield values


class _Tally:
    """What is counted while the series go by."""

    def __init__(self, path: str, seed: int, num_examples: int):
        self._roots = [path] if Path(path).exists() else [p.strip() for p in path.split(",")]
        self._rng = np.random.default_rng(seed)
        self._num_examples = num_examples
        self._file = ""
        self._kept: dict[str, list[int]] = {}
        self._places: dict[str, tuple[str, str, str]] = {}
        self.counts: Counter[str] = Counter()
        self.frequencies: dict[str, Share] = {}
        self.domains: dict[str, Share] = {}
        self.sources: dict[str, Share] = {}

    def see(self, source: SequenceSource, i: int) -> int:
        """Counts a series, and returns the hash of its values."""
        points = int(source.lengths[i])
        title = source.name(i)
        if not title.startswith(f"{self._file} "):  # mostly the file of the one before
            self._file = file_of(title)
        file = self._file
        if file not in self._places:
            self._places[file] = (*_domain_and_source(file, self._roots), _frequency_of(file))
        domain, name, frequency = self._places[file]
        frequency = source.frequency_of(i) or frequency
        self.domains.setdefault(domain, Share()).add(points)
        self.sources.setdefault(name, Share()).add(points)
        self.frequencies.setdefault(frequency, Share()).add(points)
        self._keep(name, i)
        return self._read(source, i, points)

    def _read(self, source: SequenceSource, i: int, points: int) -> int:
        digest = hashlib.blake2b(points.to_bytes(8, "little"), digest_size=8)
        observed = missing = 0
        total, low, high = 0.0, math.inf, -math.inf
        values = np.zeros(0)
        for values in _parts(source, i):
            finite = values[np.isfinite(values)]
            missing += int(np.count_nonzero(np.isnan(values)))
            observed += len(finite)
            if len(finite):
                total += float(finite.sum())
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            digest.update(values.data)
        # A zero that was stored as a float32 z-score is off by the rounding of the mean.
        zero = ROUNDING * min(abs(total) / max(observed, 1), sys.float_info.max)
        again = [values] if points <= _PART else _parts(source, i)
        zeros = sum(int(np.count_nonzero(np.abs(part) <= zero)) for part in again)
        spread, largest = high - low, max(abs(low), abs(high))
        self.counts["missing_points"] += missing
        self.counts["infinite_points"] += points - observed - missing
        self.counts["zero_points"] += zeros
        self.counts["sequences_with_missing"] += missing > 0
        self.counts["empty_sequences"] += points == 0
        self.counts["all_missing_sequences"] += points > 0 and observed == 0
        self.counts["constant_sequences"] += observed > 0 and spread <= 2 * ROUNDING * largest
        self.counts["all_zero_sequences"] += 0 < observed == zeros
        return int.from_bytes(digest.digest(), "little")

    def _keep(self, name: str, i: int) -> None:
        """Keeps a random few of each source, each of its series with the same chance."""
        kept = self._kept.setdefault(name, [])
        if len(kept) < self._num_examples:
            kept.append(i)
        else:
            place = int(self._rng.integers(self.sources[name].sequences))
            if place < len(kept):
                kept[place] = i

    def examples(self) -> list[int]:
        """Series in a random order of sources; a second of a source once all have one."""
        queues = [self._rng.permutation(kept).tolist() for kept in self._kept.values()]
        order = self._rng.permutation(len(queues)).tolist()
        rounds = range(max(map(len, queues), default=0))
        drawn = [queues[k][turn] for turn in rounds for k in order if turn < len(queues[k])]
        return drawn[: self._num_examples]


def file_of(name: str) -> str:
    """The folder or file that the name of a series begins with; empty if there is none."""
    words = name.split(" ")
    starts = (" ".join(words[:k]) for k in range(len(words), 0, -1))
    return next((start for start in starts if start and Path(start).exists()), "")


def _domain_and_source(file: str, roots: list[str]) -> tuple[str, str]:
    if not file:
        return UNKNOWN, UNKNOWN
    for root in filter(None, roots):
        path = Path(file)
        if path.is_relative_to(root):
            parts = path.relative_to(root).parts
            return parts[0] if len(parts) > 1 else UNKNOWN, "/".join(parts) or path.name
    return UNKNOWN, file


def _frequency_of(file: str) -> str:
    """The frequency that a file gives for all its series."""
    # Lists of numbers give none, and reading them once is enough.
    if not file or Path(file).suffix.lower() in (".jsonl", ".npy", ".npz"):
        return UNKNOWN
    return open_file(Path(file)).frequency or UNKNOWN


def _duplicates(
    source: SequenceSource, chosen: Int64[np.ndarray, " N"], hashes: UInt64[np.ndarray, " N"]
) -> tuple[int, list[tuple[str, str]]]:
    """How many series equal an earlier one, and the names of a few such pairs."""
    # A series of a point or none is like many others.
    long = np.flatnonzero(source.lengths[chosen] >= 2)
    order = long[np.argsort(hashes[long], kind="stable")]
    repeats = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
    pairs: list[tuple[str, str]] = []
    for k in repeats.tolist():
        one, other = int(chosen[order[k - 1]]), int(chosen[order[k]])
        if len(pairs) < _EXAMPLES and np.array_equal(source[one], source[other], equal_nan=True):
            pairs.append((source.name(one), source.name(other)))
    return len(repeats), pairs


def _quantiles(lengths: Int64[np.ndarray, " N"]) -> dict[str, int]:
    if not len(lengths):
        return {}
    values = np.quantile(lengths, QUANTILES, method="inverted_cdf").tolist()
    names = ["min", *(f"{q:.0%}" for q in QUANTILES[1:-1]), "max"]
    return dict(zip(names, map(int, values), strict=True))


def _histogram(lengths: Int64[np.ndarray, " N"]) -> list[tuple[int, int, int]]:
    """Counts in bins that begin at 0, 1, 2, 5, 10, 20, 50 and so on, from the first in use."""
    edges = [0, *(m * 10**k for k in range(19) for m in (1, 2, 5) if m * 10**k < 2**63)]
    bins = np.bincount(np.searchsorted(edges, lengths, side="right") - 1, minlength=1)
    used = np.flatnonzero(bins)
    span = range(int(used[0]), int(used[-1]) + 1) if len(used) else range(0)
    return [(edges[b], edges[b + 1] - 1, int(bins[b])) for b in span]


def _histogram_lines(histogram: list[tuple[int, int, int]]) -> Iterator[str]:
    most = max((count for _, _, count in histogram), default=0)
    for first, last, count in histogram:
        bar = "#" * round(_BAR * count / most)
        yield f"  {f'{first:,} - {last:,}':>23} {count:>11,} {bar}".rstrip()


def _share_lines(title: str, shares: dict[str, Share], points: int, most: int) -> Iterator[str]:
    width = max([len(title), *map(len, shares)])
    yield f"{title:<{width}} {'sequences':>12} {'points':>16} {'share':>7}"
    ranked = sorted(shares.items(), key=lambda item: (-item[1].points, item[0]))
    for name, share in ranked[:most]:
        part = share.points / points if points else 0.0
        yield f"{name:<{width}} {share.sequences:>12,} {share.points:>16,} {part:>7.2%}"
    if len(ranked) > most:
        yield f"and {len(ranked) - most:,} more; JSON lists all"


def downsample(
    source: SequenceSource, i: int, num_bins: int = 400
) -> tuple[Float64[np.ndarray, " P"], Float64[np.ndarray, " P"]]:
    """The extremes of each of `num_bins` parts of a series, few enough points to draw.

    Returns positions and values: all of them for a series of at most `2 * num_bins` points, and NaN
    for a part whose points are all missing.
    """
    length = int(source.lengths[i])
    if length <= 2 * num_bins:
        return np.arange(float(length)), source[i].astype(np.float64)
    edges = np.linspace(0, length, num_bins + 1).astype(np.int64)
    # One read where that is little, else one for each part.
    whole = source[i].astype(np.float64) if length <= _PART else None
    positions, values = np.full(2 * num_bins, np.nan), np.full(2 * num_bins, np.nan)
    for b in range(num_bins):
        start, stop = int(edges[b]), int(edges[b + 1])
        part = source.read(i, start, stop) if whole is None else whole[start:stop]
        finite = np.flatnonzero(np.isfinite(part))
        positions[2 * b : 2 * b + 2] = start
        if len(finite):
            ends = sorted((finite[part[finite].argmin()], finite[part[finite].argmax()]))
            positions[2 * b : 2 * b + 2] = start + np.array(ends)
            values[2 * b : 2 * b + 2] = part[ends]
    return positions, values
