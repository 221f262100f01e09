"""From windows to batches with Grain: shuffled, repeated, split over processes, resumable."""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import SupportsIndex

import grain
import numpy as np
from jaxtyping import Float, Int64

from timemoe_jax.data.mixing import Mixture, SourcePart
from timemoe_jax.data.order import MixedOrder, Order, PoolOrder
from timemoe_jax.data.sequence_source import SequenceSource
from timemoe_jax.data.sources import ConcatSource, find_files, open_file, open_source
from timemoe_jax.data.windows import Index, Windows
from timemoe_jax.errors import DataError

# Draws whose windows are found at a time.
_DRAWS = 4096


def make_dataset(
    window_source: Windows,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    repeat: bool,
    num_threads: int,
    process_index: int = 0,
    process_count: int = 1,
    mixture: Mixture | None = None,
) -> grain.IterDataset:
    """Makes batches of windows, the same ones for the same arguments on any machine.

    All processes together take the same windows in a step, however many they are, as long as
    `batch_size * process_count` is the same. The state of an iterator is the number of batches
    taken: that of any process fits any other, of another number of processes too.

    With `repeat` the windows go round without end, in another order each time if shuffled, and a
    batch may join two rounds. Without it each window comes once, and rows of mask False and
    sequence -1 fill the last batch: every process makes the same number of batches of one size.

    A mixture whose plan has counts decides what comes how often instead: an epoch is then one of a
    source, and draws follow one another without end.

    Args:
      window_source: the windows.
      batch_size: B, the rows of a batch of this process.
      seed: of the order, from 0 to 2**32 - 1.
      shuffle: whether to mix the windows of all series.
      repeat: whether to go on after the last window.
      num_threads: how many batches to prepare at once ahead of use; 0 prepares one on demand.
      process_index: which of the processes this is.
      process_count: how many processes share the windows, none taking what another takes.
      mixture: the plan of several sources; for `repeat` alone.

    Returns:
      a dataset of the items of the source, B of each along axis 0: {"values": float32 [B, size],
      "mask": bool [B, size], "sequence": int64 [B]} of a `WindowSource`.
      Its iterators have get_state, set_state and close.

    Raises:
      DataError: there is no window, or an argument is out of its range.
    """
    _check(window_source, batch_size, seed, num_threads, process_index, process_count)
    order: Order
    drawn_seed = seed if shuffle else None
    # All processes together take this many windows in a step.
    together = batch_size * process_count
    num_batches = sys.maxsize if repeat else -(-len(window_source) // together)
    if mixture is not None and mixture.counts is not None and repeat:
        order = MixedOrder(mixture, drawn_seed)
    else:
        order = PoolOrder(len(window_source), drawn_seed, repeat)
    batches = _Batches(window_source, order, batch_size, process_index, process_count, num_batches)
    # The buffer counts batches: two for each thread keep it busy.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return grain.MapDataset.source(batches).to_iter_dataset(options)


class _Batches:
    """Random access to the batches of a process.

    An item is a whole batch, filled in place: one item for each window, stacked afterwards, would
    cost several times as much as the windows themselves.
    """

    def __init__(
        self,
        windows: Windows,
        order: Order,
        batch_size: int,
        process_index: int,
        process_count: int,
        num_batches: int,
    ):
        self._windows = windows
        self._order = order
        self._batch_size = batch_size
        self._process_index, self._process_count = process_index, process_count
        self._num_batches = num_batches
        self._group = max(1, _DRAWS // batch_size)
        self._drawn: dict[int, Int64[np.ndarray, "group B"]] = {}

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, i: SupportsIndex) -> dict[str, np.ndarray]:
        group, within = divmod(i.__index__(), self._group)
        return self._windows.batch(self._draw(group)[within])

    def _draw(self, group: int) -> Int64[np.ndarray, "group B"]:
        """The windows of some batches in a row, which threads ask for at about the same time."""
        drawn = self._drawn.get(group)
        if drawn is None:
            size = self._group * self._batch_size
            draws = np.arange(group * size, (group + 1) * size, dtype=np.int64)
            draws = draws * self._process_count + self._process_index
            drawn = self._order.windows(draws).reshape(self._group, self._batch_size)
            self._drawn = {**dict(list(self._drawn.items())[-1:]), group: drawn}
        return drawn


def _check(
    window_source: Windows,
    batch_size: int,
    seed: int,
    num_threads: int,
    process_index: int,
    process_count: int,
) -> None:
    if len(window_source) == 0:
        raise DataError(
            f"there is no window: each of the {len(window_source.source)} series has fewer than "
            "two points"
        )
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}; it must be from 0 to 2**32 - 1")
    if num_threads < 0:
        raise DataError(f"num_threads is {num_threads}; it must be at least 0")
    if process_count < 1:
        raise DataError(f"process_count is {process_count}; it must be at least 1")
    if not 0 <= process_index < process_count:
        raise DataError(
            f"process_index is {process_index}; it must be from 0 to {process_count - 1}, since "
            f"process_count is {process_count}"
        )


class SubsetSource(SequenceSource):
    """Some of the series of another source, in the order given.

    Args:
      source: all the series.
      ids: the numbers of those to keep.

    Raises:
      DataError: a number is not one of a series of the source.
    """

    def __init__(self, source: SequenceSource, ids: Int64[np.ndarray, " num_sequences"]):
        outside = ids[(ids < 0) | (ids >= len(source))]
        if outside.size:
            raise DataError(f"ids holds {outside[0]}; the source has series 0 to {len(source) - 1}")
        self._source = source
        self._ids = ids
        self.lengths = source.lengths[ids]
        self.skipped_files = source.skipped_files
        self.ignored_columns, self.frequency = source.ignored_columns, source.frequency

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        return self._source.read(int(self._ids[i]), start, stop)

    def read_stored(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        """As `SequenceSource.read_stored` says."""
        return self._source.read_stored(int(self._ids[i]), start, stop)

    def frequency_of(self, i: SupportsIndex) -> str | None:
        """The sampling frequency of series `i`, as the source knows it."""
        return self._source.frequency_of(int(self._ids[self._checked(i)]))

    def label(self, i: int) -> str:
        """The name that series `i` has of its own, in the source."""
        return self._source.label(int(self._ids[i]))

    def name(self, i: int) -> str:
        """What to call series `i` in a message: its name in the source."""
        return self._source.name(int(self._ids[i]))


def open_parts(paths: str) -> tuple[SequenceSource, list[SourcePart]]:
    """Opens files and folders as `open_source` does, and says which series are of which of them.

    The domain of a file or a folder is the name of the folder that it lies in, unless its source
    has one of its own.

    Args:
      paths: as for `open_source`.

    Raises:
      DataError: as `open_source` does.
    """
    opened: list[SequenceSource] = []
    parts: list[SourcePart] = []
    skipped: list[str] = []
    # A path may itself hold a comma.
    names = [paths] if os.path.exists(paths) else [p.strip() for p in paths.split(",")]
    for name in filter(None, names):
        found, passed = find_files(Path(name)) if os.path.exists(name) else ([], [])
        if not found:
            open_source(name)  # which says what is wrong with it
        for file in found:
            opened.append(open_file(file))
            first = parts[-1].stop if parts else 0
            parts.append(_part_of(opened[-1], file, first))
        skipped.extend(map(str, passed))
    if len(opened) == 1 and not skipped:
        return opened[0], parts
    return ConcatSource(opened, skipped) if opened else open_source(paths), parts


def _part_of(source: SequenceSource, file: Path, first: int) -> SourcePart:
    path = Path(os.path.abspath(file))
    domain = getattr(source, "domain", None) or path.parent.name
    name = getattr(source, "source_name", None) or path.name
    return SourcePart(domain, name, first, first + len(source))


def subset_parts(
    parts: Sequence[SourcePart], ids: Int64[np.ndarray, " num_sequences"]
) -> list[SourcePart]:
    """The parts of a `SubsetSource` of a source.

    Args:
      parts: those of the source.
      ids: the series that are kept, ascending.
    """
    stops = np.searchsorted(ids, [part.stop for part in parts]).tolist()
    return [
        dataclasses.replace(part, first=first, stop=stop)
        for part, first, stop in zip(parts, [0, *stops[:-1]], stops, strict=True)
    ]


def split_sources(
    parts: Sequence[SourcePart], names: str
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]]:
    """Holds whole sources out from training.

    Args:
      parts: the sources.
      names: those to hold out, "domain/source" with commas between.

    Returns:
      the series to train on and those to hold out, ascending.

    Raises:
      DataError: a name is of no source, or nothing is left to train on.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    known = {part.label for part in parts}
    if unknown := sorted(wanted - known):
        raise DataError(
            f"validation_sources names {', '.join(unknown)}, which is none of the sources: "
            f"{', '.join(sorted(known))}"
        )
    held_out = np.zeros(parts[-1].stop if parts else 0, bool)
    for part in parts:
        held_out[part.first : part.stop] = part.label in wanted
    if held_out.all():
        raise DataError(f"validation_sources {names!r} leaves nothing to train on")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def split_sequences(
    num_sequences: int, fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]]:
    """Chooses whole series to hold out from training.

    Args:
      num_sequences: how many there are.
      fraction: the share to hold out, from 0 to less than 1; above 0 it holds out at least one,
        and it always leaves at least one.
      seed: of the choice, at least 0.

    Returns:
      the numbers of the series to train on, and of those held out, both ascending.

    Raises:
      DataError: an argument is out of its range, or the only series would be held out.
    """
    if not 0.0 <= fraction < 1.0 or seed < 0 or num_sequences < 1:
        raise DataError(
            f"num_sequences is {num_sequences}, fraction {fraction} and seed {seed}; they must be "
            "at least 1, from 0 to less than 1, and at least 0"
        )
    if fraction == 0.0:
        return np.arange(num_sequences, dtype=np.int64), np.zeros(0, np.int64)
    if num_sequences == 1:
        raise DataError(
            f"a fraction {fraction} of one series cannot be held out, since whole series are; give "
            "a fraction of 0, or other data to validate on"
        )
    held_out = min(max(1, round(fraction * num_sequences)), num_sequences - 1)
    order = np.random.default_rng(seed).permutation(num_sequences).astype(np.int64, copy=False)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


@dataclasses.dataclass(frozen=True)
class DatasetSummary:
    """What a source of series comes to as training data.

    Attributes:
      sequences: the series.
      points: their points, all together.
      windows: the windows cut from them.
      skipped_sequences: series of fewer than two points, which give no window.
      uncovered_points: points that are in no window.
      skipped_files: files passed over while searching folders.
      padded_share: the share of the windows' points that lie beyond the end of a series.
      updates_per_epoch: the batches in which every window comes once.
    """

    sequences: int
    points: int
    windows: int
    skipped_sequences: int
    uncovered_points: int
    skipped_files: int
    padded_share: float
    updates_per_epoch: int

    def __str__(self) -> str:
        return (
            f"{self.sequences:,} sequences, {self.points:,} points, {self.windows:,} windows "
            f"({self.padded_share:.1%} padding), {self.updates_per_epoch:,} updates per epoch; "
            f"left out: {self.skipped_sequences:,} sequences of fewer than two points, "
            f"{self.uncovered_points:,} points in no window, {self.skipped_files:,} files"
        )


def describe(source: SequenceSource, index: Index, batch_size: int) -> DatasetSummary:
    """Counts what a source gives, and what it does not, at a window length and batch size.

    Args:
      source: the series.
      index: the windows, made of `source.lengths`.
      batch_size: the rows of a batch over all processes.
    """
    cells = len(index) * index.size
    return DatasetSummary(
        sequences=len(source),
        points=int(np.sum(source.lengths)),
        windows=len(index),
        skipped_sequences=index.skipped_sequences,
        uncovered_points=index.uncovered_points,
        skipped_files=len(source.skipped_files),
        padded_share=index.padded_points / cells if cells else 0.0,
        updates_per_epoch=math.ceil(len(index) / batch_size),
    )
