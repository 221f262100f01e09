"""Finds stretches of benchmarks in a corpus, as they are or scaled, shifted and rounded.

A model that was trained on the rows it is scored on looks better than it is. Every window of W
points of each benchmark channel gets fingerprints. The corpus is read once, a window at every W-th
point, and each of its windows is looked up: any shared stretch of 2 W - 1 points holds such a
window. Windows with the same fingerprint are then compared point by point, so the report never
holds a coincidence of fingerprints.

There are two kinds of fingerprint, each in two versions that round differently, so that one finds
a value that float32 moved over an edge of the other. `values` are the numbers themselves on a grid
relative to the window's range. `shape` is the signs of second, or third, differences, which no
scaling, mirroring or shift changes.
"""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from timemoe_jax.data.formats.csv_files import read_csv
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError

# Equal within float32 rounding, relative to the largest value of the window.
VALUE_TOLERANCE = 1e-6
# The least correlation of a scaled copy with its original; rounding leaves 1 - 1e-12.
MIN_CORRELATION = 0.99999
# Below these a window is like many others, and a match would say nothing.
MIN_DISTINCT_SHARE = 1 / 8  # distinct values per point
MIN_TURNS_SHARE = 1 / 4  # changes of the sign of the second difference per point
NEGLIGIBLE = 1e-3  # of a window's deviation: differences below count as none
NEAR_CONSTANT = 1e-5  # deviation relative to the largest value: the noise of float32

_FEWEST_POINTS = 16
_MOST_PER_FINGERPRINT = 16
_BATCH = 4096  # windows worked on at once
_PART = 1 << 20  # points read at once

WindowRows = Float64[np.ndarray, "N W"]


class Fingerprints(NamedTuple):
    """The keys by which windows are looked up."""

    hashes: UInt64[np.ndarray, "4 N"]  # two of values, then two of shapes
    compared: Bool[np.ndarray, " N"]  # not trivial
    turning: Bool[np.ndarray, " N"]  # not smooth either, so compared by shape too
    ignored: Counter[str]  # windows by the reason why they are not compared


@dataclasses.dataclass(frozen=True)
class Overlap:
    """A stretch that a corpus shares with a benchmark."""

    source: str  # the name of the corpus sequence
    sequence: int  # its number in the corpus
    offset: int  # its first shared point
    benchmark: str  # the CSV
    column: str  # the channel
    row: int  # its first shared row, 0 being the first below the header
    points: int  # at least so many are shared; the stretch may go on for less than a window
    kind: str  # "values" where they are equal within float32 rounding, else "shape"
    scale: float  # corpus = scale * benchmark + shift
    shift: float

    def __str__(self) -> str:
        how = "equal" if self.kind == "values" else f"x {self.scale:.6g} {self.shift:+.6g}"
        return (
            f"{self.source}, from point {self.offset:,}: {self.points:,} points of "
            f"{Path(self.benchmark).name} {self.column!r}, from row {self.row:,} ({how})"
        )


@dataclasses.dataclass(frozen=True)
class OverlapReport:
    """What a search found, and what it could not compare."""

    window: int  # W, the points of a window
    overlaps: tuple[Overlap, ...]  # what was found, in the order of the corpus
    counts: dict[str, int]  # of everything that was read and compared
    benchmark_ignored: dict[str, int]  # windows that were not compared, by reason
    corpus_ignored: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self)

    def to_text(self, most: int = 20) -> str:
        """The report for a terminal, with at most so many of the overlaps."""
        lines = [f"{name.replace('_', ' ')}: {count:,}" for name, count in self.counts.items()]
        for name in ("benchmark_ignored", "corpus_ignored"):
            for reason, count in sorted(getattr(self, name).items()):
                lines.append(f"{name.split('_')[0]} windows not compared, {reason}: {count:,}")
        lines += [f"  {overlap}" for overlap in self.overlaps[:most]]
        if len(self.overlaps) > most:
            lines.append(f"  and {len(self.overlaps) - most:,} more; JSON lists all")
        verdict = f"{len(self.overlaps):,} shared stretches" if self.overlaps else "no overlap"
        lines.append(f"{verdict} (every stretch of {2 * self.window - 1} points would be found)")
        return "\n".join(lines)


def find_overlaps(
    corpus: SequenceSource, benchmarks: Sequence[str | os.PathLike[str]], window: int = 64
) -> OverlapReport:
    """Searches a corpus, which is read once, for stretches of the channels of benchmark CSVs.

    A channel is a numeric column. Every shared stretch of 2 `window` - 1 points that is not trivial
    is found; shorter ones may be. Memory grows with the benchmarks, by about 120 bytes a point and
    channel, not with the corpus.

    Raises:
      DataError: there is no benchmark, one cannot be read, or the window is below 16 points.
    """
    if window < _FEWEST_POINTS:
        raise DataError(f"window is {window}; fewer than {_FEWEST_POINTS} points match by chance")
    index = _Index(benchmarks, window)
    counts, ignored = Counter[str](), Counter[str]()
    matches = []
    for windows, sequences, offsets in _corpus_windows(corpus, window, counts):
        prints = fingerprints(windows)
        ignored += prints.ignored
        queries, starts = index.look_up(prints, counts)
        kinds = _verify(windows[queries], index.windows(starts), prints.turning[queries])
        true = kinds > 0
        counts["matches_of_exactly_periodic_windows_left_out"] += int(np.count_nonzero(kinds < 0))
        rows = (sequences[queries], offsets[queries], starts, kinds)
        matches.append(np.stack([row[true] for row in rows]))
    joined = np.concatenate(matches, axis=1) if matches else np.zeros((4, 0), np.int64)
    every = {
        "benchmark_channels": len(index.names),
        "benchmark_points": len(index.points),
        "benchmark_windows": index.num_windows,
        "corpus_sequences": len(corpus),
        "corpus_points": int(corpus.lengths.sum()),
        **{name: counts[name] for name in _COUNTED},
        "matching_windows": joined.shape[1],
    }
    overlaps = tuple(_merge(joined, corpus, index))
    return OverlapReport(window, overlaps, every, dict(index.ignored), dict(ignored))


_COUNTED = (
    "corpus_windows",
    "corpus_sequences_shorter_than_a_window",
    "corpus_points_in_those",
    "equal_fingerprints",
    "fingerprints_beyond_16_places_left_out",
    "matches_of_exactly_periodic_windows_left_out",
)


class _Index:
    """Every window of the benchmarks, by its fingerprints."""

    def __init__(self, benchmarks: Sequence[str | os.PathLike[str]], window: int):
        self.window = window
        self.names: list[tuple[str, str]] = []  # the file and column of each channel
        channels = []
        for path in benchmarks:
            table = read_csv(path)
            self.names += [(str(table.path), column) for column in table.columns]
            channels += list(table.values.T)
        if not channels:
            raise DataError("no benchmark was given; give at least one CSV")
        self.points = np.concatenate(channels)  # those of all channels, one after the other
        self.ends = np.cumsum([len(channel) for channel in channels])  # of each in `points`
        del channels, table
        self.ignored: Counter[str] = Counter()
        self.num_windows = 0
        self._tables = self._build()

    def _build(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The four kinds of fingerprints, each sorted, with the first points of their windows."""
        narrow = np.int32 if len(self.points) < 2**31 else np.int64
        parts = [[(np.zeros(0, np.uint64), np.zeros(0, narrow))] for _ in range(4)]
        for begin, end in zip([0, *self.ends[:-1]], self.ends, strict=True):
            firsts = np.arange(begin, max(begin, end - self.window + 1))
            self.num_windows += len(firsts)
            for at in range(0, len(firsts), _BATCH):
                some = firsts[at : at + _BATCH]
                prints = fingerprints(self.windows(some))
                self.ignored += prints.ignored
                for kind, keep in enumerate(_looked_up(prints)):
                    parts[kind].append((prints.hashes[kind][keep], some[keep].astype(narrow)))
        tables = []
        while parts:  # those that are sorted need no memory any more
            hashes, starts = map(np.concatenate, zip(*parts.pop(0), strict=True))
            order = np.argsort(hashes, kind="stable")
            tables.append((hashes[order], starts[order]))
        return tables

    def windows(self, starts: Int64[np.ndarray, " N"]) -> WindowRows:
        """The windows that begin at some points."""
        if len(self.points) < self.window:
            return np.zeros((0, self.window))
        return np.lib.stride_tricks.sliding_window_view(self.points, self.window)[starts]

    def look_up(
        self, prints: Fingerprints, counts: Counter[str]
    ) -> tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        """The pairs of a window and a place in the benchmarks that share a fingerprint."""
        pairs = []
        for kind, keep in enumerate(_looked_up(prints)):
            table, starts = self._tables[kind]
            asked = np.flatnonzero(keep)
            low = np.searchsorted(table, prints.hashes[kind][asked], side="left")
            high = np.searchsorted(table, prints.hashes[kind][asked], side="right")
            taken = np.minimum(high - low, _MOST_PER_FINGERPRINT)
            counts["fingerprints_beyond_16_places_left_out"] += int((high - low - taken).sum())
            within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
            places = starts[np.repeat(low, taken) + within]
            pairs.append(np.stack([np.repeat(asked, taken), places]))
        both = np.unique(np.concatenate(pairs, axis=1), axis=1)
        counts["equal_fingerprints"] += both.shape[1]
        return both[0], both[1]


def _looked_up(prints: Fingerprints) -> tuple[np.ndarray, ...]:
    return prints.compared, prints.compared, prints.turning, prints.turning


def fingerprints(windows: WindowRows) -> Fingerprints:
    """Computes the fingerprints of windows of W points [N, W], and which windows say nothing."""
    num_points = windows.shape[1]
    finite = np.isfinite(windows).all(axis=1)
    values = np.where(finite[:, None], windows, 0.0)
    largest = np.abs(values).max(axis=1)
    # To at most one, so that no square overflows or vanishes.
    unit = values / np.where(largest > 0, largest, 1.0)[:, None]
    std = unit.std(axis=1)
    ordered = np.sort(unit, axis=1)
    small = (NEGLIGIBLE * std)[:, None]
    distinct = 1 + np.count_nonzero(np.diff(ordered, axis=1) > small, axis=1)
    second = np.diff(unit, n=2, axis=1)
    third = np.diff(second, axis=1)
    signs = _signs(second, small)
    turns = np.count_nonzero(np.diff(signs, axis=1), axis=1)
    reasons = (
        ("missing values", ~finite),
        ("constant or nearly", std <= NEAR_CONSTANT),
        ("few distinct values", distinct < MIN_DISTINCT_SHARE * num_points),
        ("a straight line", np.count_nonzero(signs, axis=1) == 0),
    )
    compared = np.ones(len(windows), bool)
    ignored = Counter[str]()
    for reason, holds in reasons:
        ignored[reason] += int(np.count_nonzero(compared & holds))
        compared &= ~holds
    turning = compared & (turns >= MIN_TURNS_SHARE * num_points)
    ignored["smooth, so compared by value alone"] += int(np.count_nonzero(compared & ~turning))
    spread = (ordered[:, -1] - ordered[:, 0]) * largest
    hashes = np.stack(
        [
            _hash_values(values, spread, largest, shift=0.0),
            _hash_values(values, spread, largest, shift=0.5),
            _hash_signs(signs),
            _hash_signs(_signs(third, 2 * small)),
        ]
    )
    return Fingerprints(hashes, compared, turning, +ignored)


def _signs(differences: np.ndarray, small: np.ndarray) -> np.ndarray:
    return (differences > small).astype(np.int8) - (differences < -small).astype(np.int8)


def _coefficients(count: int, seed: int) -> UInt64[np.ndarray, " count"]:
    return np.random.default_rng(seed).integers(1, 2**63, count, dtype=np.uint64) * 2 + 1


def _hash_signs(signs: np.ndarray) -> UInt64[np.ndarray, " N"]:
    """A linear hash, which a mirrored window negates; the smaller of the two counts."""
    wide = signs.astype(np.int64).view(np.uint64)
    hashes = wide @ _coefficients(signs.shape[1], seed=1)
    return np.minimum(hashes, -hashes)


def _hash_values(
    values: WindowRows, spread: np.ndarray, largest: np.ndarray, shift: float
) -> UInt64[np.ndarray, " N"]:
    """A hash of the values on a grid whose step is a power of two.

    The step is a 64th of the range, but at least 2**10 times the resolution of float32, so that
    hardly any value lies where rounding moves it. With `shift`, both the powers of two and the grid
    move by a half. The odd offset keeps round decimals off the edges.
    """
    finest = np.maximum(spread / 64, largest * 2.0**-14)
    exponent = np.ceil(np.log2(np.where(finest > 0, finest, 1.0)) + shift)
    steps = np.floor(values * np.exp2(-exponent)[:, None] + (0.2357 + shift))
    # Beyond 2**62 only where the range is a sliver of the values; any number will do there.
    whole = np.clip(steps, -(2.0**62), 2.0**62).astype(np.int64).view(np.uint64)
    coefficients = _coefficients(values.shape[1] + 1, seed=2)
    return whole @ coefficients[1:] + exponent.astype(np.int64).view(np.uint64) * coefficients[0]


def _verify(
    corpus: WindowRows, benchmark: WindowRows, turning: Bool[np.ndarray, " M"]
) -> Int64[np.ndarray, " M"]:
    """2 where two windows are equal, 1 where one is a scaled copy, else 0.

    It is negative where they also repeat themselves exactly, as every window of such a cycle does.
    """
    limit = VALUE_TOLERANCE * np.abs(benchmark).max(axis=1, initial=0)
    equal = np.abs(corpus - benchmark).max(axis=1, initial=0) <= limit
    a, b = _standard(corpus), _standard(benchmark)
    alike = np.abs((a * b).mean(axis=1)) >= MIN_CORRELATION
    cyclic = np.zeros(len(b), bool)
    for period in range(1, b.shape[1] // 2 + 1):
        cyclic |= (np.abs(b[:, period:] - b[:, :-period]) <= NEGLIGIBLE).all(axis=1)
    kinds = np.where(equal, 2, np.where(alike & turning, 1, 0))
    return np.where(cyclic, -kinds, kinds).astype(np.int64)


def _standard(windows: WindowRows) -> WindowRows:
    """Windows, none constant, at mean 0 and deviation 1."""
    unit = windows / np.abs(windows).max(axis=1, keepdims=True, initial=np.finfo(float).tiny)
    centered = unit - unit.mean(axis=1, keepdims=True)
    return centered / np.sqrt(np.mean(np.square(centered), axis=1, keepdims=True))


def _corpus_windows(
    corpus: SequenceSource, window: int, counts: Counter[str]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Adjacent windows, and one at the end of each sequence, in batches, with their places."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    ready = 0
    for part in _side_by_side(corpus, window, counts):
        parts.append(part)
        ready += len(part[0])
        if ready >= _BATCH:
            yield tuple(map(np.concatenate, zip(*parts, strict=True)))
            parts, ready = [], 0
    if parts:
        yield tuple(map(np.concatenate, zip(*parts, strict=True)))


def _side_by_side(
    corpus: SequenceSource, window: int, counts: Counter[str]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for i, length in enumerate(corpus.lengths.tolist()):
        if length < window:
            counts["corpus_sequences_shorter_than_a_window"] += 1
            counts["corpus_points_in_those"] += length
            continue
        step = _PART // window * window
        for at in range(0, length - window + 1, step):
            values = corpus.read(i, at, at + step).astype(np.float64)
            whole = len(values) // window
            windows = values[: whole * window].reshape(whole, window)
            offsets = at + window * np.arange(whole)
            if at + step > length - window and length % window:
                last = corpus.read(i, length - window, length).astype(np.float64)
                windows = np.concatenate([windows, last[None]])
                offsets = np.append(offsets, length - window)
            counts["corpus_windows"] += len(windows)
            yield windows, np.full(len(windows), i), offsets


def _merge(
    matches: Int64[np.ndarray, "4 M"], corpus: SequenceSource, index: _Index
) -> Iterable[Overlap]:
    """Joins matching windows that continue each other into stretches."""
    sequences, offsets, starts, kinds = matches
    channels = np.searchsorted(index.ends, starts, side="right")
    order = np.lexsort((offsets, starts - offsets, channels, sequences))
    sequences, offsets, starts, kinds, channels = (
        row[order] for row in (sequences, offsets, starts, kinds, channels)
    )
    keys = np.stack([sequences, channels, starts - offsets])
    # One window between two that match may have been trivial, or rounded apart.
    breaks = np.diff(keys, axis=1).any(axis=0) | (np.diff(offsets) > 2 * index.window)
    edges = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(offsets)]])
    overlaps = []
    for first, after in itertools.pairwise(edges):
        if first == after:
            continue
        points = int(offsets[after - 1] - offsets[first]) + index.window
        sequence, offset, start = int(sequences[first]), int(offsets[first]), int(starts[first])
        scale, shift = _fit(corpus.read(sequence, offset, offset + points), index, start)
        file, column = index.names[channels[first]]
        row = start - (int(index.ends[channels[first] - 1]) if channels[first] else 0)
        kind = "values" if (kinds[first:after] == 2).all() else "shape"
        name = corpus.name(sequence)
        overlap = Overlap(name, sequence, offset, file, column, row, points, kind, scale, shift)
        overlaps.append(overlap)
    return sorted(overlaps, key=lambda overlap: (overlap.sequence, overlap.offset))


def _fit(values: np.ndarray, index: _Index, start: int) -> tuple[float, float]:
    """The scale and shift that turn a stretch of a benchmark into one of the corpus."""
    benchmark = index.points[start : start + len(values)]
    both = np.isfinite(values) & np.isfinite(benchmark)
    x, y = benchmark[both], values[both].astype(np.float64)
    centered = x - x.mean()
    scale = float(centered @ (y - y.mean()) / (centered @ centered))
    return scale, float(y.mean() - scale * x.mean())
