"""Windows of a fixed length into which series are packed, one after the other.

Series lie end to end in a seeded order and are cut at the length, as in the published training
code. Only the end of the last window is padded. A search finds a window, so memory grows with the
series, not with the windows.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.pipeline.standardize import StandardizedSeries
from timemoe_jax.data.pipeline.windows import Extent, Index, Numbers, Windows, check_made_for
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError


class Packing(Index, Protocol):
    """An index whose windows hold pieces of several series."""

    def pieces(self, i: int) -> list[tuple[int, int, int]]:
        """The pieces of window `i` in order: a series, its first point, that after its last."""


class PackedIndex:
    """An `Index` of windows of `length + 1` points: inputs w[:-1], targets w[1:].

    Neighboring windows share one point, the last target of one and the first input of the next, so
    in an epoch each point of a series but its first is a target exactly once. A series of fewer
    than two points is in no window, and only its points are uncovered. The seed decides on the
    order of the series; None leaves it as it is. `groups` says how many consecutive series make up
    each group, by default one of all: every window is of one group.
    """

    def __init__(
        self,
        lengths: Int64[np.ndarray, " num_sequences"],
        length: int,
        seed: int | None = None,
        groups: Sequence[int] | None = None,
    ):
        groups = [len(lengths)] if groups is None else list(groups)
        if length < 1:
            raise DataError(f"window length {length} must be at least 1")
        if sum(groups) != len(lengths) or min(groups, default=0) < 0:
            raise DataError(
                f"groups {groups} must be numbers of series that add up to the {len(lengths)} there"
            )
        self.length, self.size = length, length + 1
        self.num_sequences = len(lengths)
        self.skipped_sequences = int(np.count_nonzero(lengths < 2))
        self.uncovered_points = int(np.sum(lengths[lengths < 2]))
        self._lengths = lengths
        self._group_stops = np.cumsum(groups, dtype=np.int64)
        self._lay_out(seed)
        self.padded_points = len(self) * (length + 1) - self.extent(0, len(lengths)).points

    def _lay_out(self, seed: int | None) -> None:
        """Places the series of each group one after the other, from the start of a window."""
        rng = None if seed is None else np.random.default_rng(seed)
        small = self.num_sequences <= np.iinfo(np.uint32).max
        kind = np.uint32 if small else np.int64
        orders: list[np.ndarray] = [np.zeros(0, kind)]
        starts: list[np.ndarray] = [np.zeros(0, np.int64)]
        windows, points, first = [0], [0], 0
        for stop in self._group_stops.tolist():
            order = (first + np.flatnonzero(self._lengths[first:stop] >= 2)).astype(kind)
            if rng is not None:
                rng.shuffle(order)
            ends = np.cumsum(self._lengths[order], dtype=np.int64)
            total = int(ends[-1]) if ends.size else 0
            orders.append(order)
            starts.append(windows[-1] * self.length + ends - self._lengths[order])
            windows.append(windows[-1] + -(-max(total - 1, 0) // self.length))
            # Every window but the first of a group shows its first point again.
            shared = max(windows[-1] - windows[-2] - 1, 0)
            points.append(points[-1] + total + shared)
            first = stop
        self._order, self._starts = np.concatenate(orders), np.concatenate(starts)
        # The first window of each group and the points before it; where its series are placed.
        self._windows, self._points = np.array(windows), np.array(points)
        self._placed = np.cumsum([len(order) for order in orders])

    def __len__(self) -> int:
        return int(self._windows[-1])

    def extent(self, first: int, stop: int) -> Extent:
        """The extent of series `first` to `stop`, which must be one or more whole groups."""
        bounds = np.concatenate([np.zeros(1, np.int64), self._group_stops])
        if first > stop or first not in bounds or stop not in bounds:
            raise DataError(
                f"series {first} to {stop} are not whole groups of the index; groups end at "
                f"{self._group_stops.tolist()}"
            )
        a, b = int(np.searchsorted(bounds, first)), int(np.searchsorted(bounds, stop, "right")) - 1
        points = int(self._points[b] - self._points[a])
        return Extent(int(self._windows[a]), int(self._windows[b]), points)

    def pieces(self, i: int) -> list[tuple[int, int, int]]:
        """As `Packing.pieces`; raises an IndexError if there is no such window."""
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} asked of {len(self)}")
        begin, end = i * self.length, (i + 1) * self.length + 1
        group = int(np.searchsorted(self._windows, i, side="right")) - 1
        at = int(np.searchsorted(self._starts, begin, side="right")) - 1
        # As many series as the window can hold, at most.
        stop = min(int(self._placed[group + 1]), at + 1 + self.length)
        stop = at + int(np.searchsorted(self._starts[at:stop], end, side="left"))
        sequences = self._order[at:stop]
        starts = self._starts[at:stop]
        stops = np.minimum(end - starts, self._lengths[sequences])
        firsts = np.maximum(begin - starts, 0)
        return list(zip(sequences.tolist(), firsts.tolist(), stops.tolist(), strict=True))


class PackedSource(Windows):
    """Random access to packed windows, each series z-scored by the statistics of its whole.

    Item i is {"values": float32 [length + 1], "mask": bool [length + 1], "sequence": int64
    [length + 1], "segments": int32 [length + 1]}: values and mask as in a `WindowSource`; the
    series of each point, -1 for padding; and the number of its piece in the window, from 1, or 0
    for padding.

    The index must be made of `source.lengths`. With `bleeds` there are no segments: attention and
    targets cross from one series to the next, as in the published training code.
    """

    index: Packing

    def __init__(self, source: SequenceSource, index: Packing, bleeds: bool = False):
        check_made_for(index, source)
        self.source = source
        self.index = index
        self._bleeds = bleeds
        self._series = StandardizedSeries(source)

    def batch(self, numbers: Numbers) -> dict[str, np.ndarray]:
        """As `Windows.batch`."""
        shape = (len(numbers), self.index.size)
        values, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        sequences, segments = np.full(shape, -1, np.int64), np.zeros(shape, np.int32)
        for row in np.flatnonzero(numbers >= 0).tolist():
            at = 0
            pieces = self.index.pieces(int(numbers[row]))
            for segment, (sequence, start, stop) in enumerate(pieces, start=1):
                here = slice(at, at + stop - start)
                self._series.read(sequence, start, values[row, here], mask[row, here])
                sequences[row, here], segments[row, here] = sequence, segment
                at = here.stop
        batch = {"values": values, "mask": mask, "sequence": sequences}
        return batch if self._bleeds else {**batch, "segments": segments}
