"""From windows to batches with Grain: shuffled, repeated, split over processes, resumable."""

import sys
from typing import SupportsIndex

import grain
import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.pipeline.mixing import Mixture
from timemoe_jax.data.pipeline.order import MixedOrder, Order, PoolOrder
from timemoe_jax.data.pipeline.windows import Windows
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
