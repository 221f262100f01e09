"""From windows to batches with Grain: shuffled, repeated, split over processes, resumable."""

import dataclasses
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

    Items are those of the windows, B = `batch_size` of this process along axis 0: {"values":
    float32 [B, size], "mask": bool [B, size], "sequence": int64 [B]} of a `WindowSource`. The seed
    of the order is from 0 to 2**32 - 1. So many threads prepare batches ahead of use; 0 prepares
    one on demand. Iterators have get_state, set_state and close.

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


@dataclasses.dataclass(eq=False, repr=False)
class _Batches:
    """Random access to the batches of a process.

    An item is a whole batch, filled in place: one item for each window, stacked afterwards, would
    cost several times as much as the windows themselves.
    """

    windows: Windows
    order: Order
    batch_size: int
    process_index: int
    process_count: int
    num_batches: int
    drawn: dict[int, Int64[np.ndarray, "group B"]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, i: SupportsIndex) -> dict[str, np.ndarray]:
        num_batches = max(1, _DRAWS // self.batch_size)
        group, within = divmod(i.__index__(), num_batches)
        return self.windows.batch(self._draw(group, num_batches)[within])

    def _draw(self, group: int, num_batches: int) -> Int64[np.ndarray, "group B"]:
        """The windows of some batches in a row, which threads ask for at about the same time."""
        drawn = self.drawn.get(group)
        if drawn is None:
            size = num_batches * self.batch_size
            draws = np.arange(group * size, (group + 1) * size, dtype=np.int64)
            draws = draws * self.process_count + self.process_index
            drawn = self.order.windows(draws).reshape(num_batches, self.batch_size)
            self.drawn = {**dict(list(self.drawn.items())[-1:]), group: drawn}
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
    within = f"from 0 to {process_count - 1}, since process_count is {process_count}"
    for name, value, good, right in (
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
        ("seed", seed, 0 <= seed < 2**32, "from 0 to 2**32 - 1"),
        ("num_threads", num_threads, num_threads >= 0, "at least 0"),
        ("process_count", process_count, process_count >= 1, "at least 1"),
        ("process_index", process_index, 0 <= process_index < process_count, within),
    ):
        if not good:
            raise DataError(f"{name} is {value}; it must be {right}")
