"""The order in which windows are drawn: draw i is computed from i, the seed and the plan alone.

Nothing keeps a position, so a run can begin at any draw, and any process can make any of them.
Draws are computed many at once, each in a fraction of a microsecond.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int64, Shaped, UInt64

from timemoe_jax.data.pipeline.mixing import Mixture

Draws = Int64[np.ndarray, " n"]  # numbers of draws, or of what they take

# The order is shuffled among so many draws. Otherwise sources would come in a fixed pattern, and
# one of several processes could see nothing but one source.
BLOCK = 256
_ROUNDS = 6


class Order(Protocol):
    """Which window each draw takes."""

    def windows(self, draws: Draws) -> Draws:
        """The windows of some draws; -1 where there is none left."""


class PoolOrder:
    """Draws every window once in an epoch: in order, or in another order each epoch with a seed.

    With `repeat`, epochs follow one another without end. The seed is from 0 to 2**32 - 1.
    """

    def __init__(self, num_windows: int, seed: int | None, repeat: bool):
        self._num_windows = num_windows
        self._seed = None if seed is None else int(_seeds(seed, 1)[0])
        self._repeat = repeat

    def windows(self, draws: Draws) -> Draws:
        """The windows of some draws; -1 after the last epoch."""
        epochs, within = np.divmod(draws, self._num_windows)
        if self._seed is not None:
            seeds = self._seed + epochs.astype(np.uint64)
            within = permuted(within, np.full_like(within, self._num_windows), seeds)
        return within if self._repeat else np.where(epochs == 0, within, -1)


class MixedOrder:
    """The draws of a mixture whose plan has counts, without end.

    Without a seed, the windows of a source come in order, and sources in a fixed pattern. With one,
    from 0 to 2**32 - 1, sources are mixed within short stretches, and the windows of each come in
    another order each epoch, except those of generated series, which keep theirs.
    """

    def __init__(self, mixture: Mixture, seed: int | None):
        assert mixture.counts is not None
        self._schedule = Schedule(mixture.counts)
        self._firsts = np.array([extent.first for extent in mixture.extents], np.int64)
        self._lengths = np.array([len(extent) for extent in mixture.extents], np.int64)
        self._endless = np.array([part.endless for part in mixture.parts])
        # One seed for the blocks, and one for each source.
        self._seeds = None if seed is None else _seeds(seed, 1 + len(mixture.parts))

    def windows(self, draws: Draws) -> Draws:
        """The windows of some draws."""
        if self._seeds is not None:
            draws = self._shuffled(draws, self._seeds[0])
        parts, k = self._schedule.locate(draws)
        lengths = self._lengths[parts]
        epochs, within = np.divmod(k, lengths)
        if self._seeds is not None:
            seeds = self._seeds[1 + parts] + epochs.astype(np.uint64)
            moved = permuted(within, lengths, seeds)
            within = np.where(self._endless[parts], within, moved)
        return self._firsts[parts] + within

    def _shuffled(self, draws: Draws, seed: np.uint64) -> Draws:
        """Permutes draws within their blocks; no block reaches beyond a cycle."""
        cycle = self._schedule.cycle
        turns, k = np.divmod(draws, cycle)
        blocks, within = np.divmod(k, BLOCK)
        sizes = np.minimum(BLOCK, cycle - blocks * BLOCK)
        seeds = seed + (turns * -(-cycle // BLOCK) + blocks).astype(np.uint64)
        return draws - within + permuted(within, sizes, seeds)


class Schedule:
    """The source of each draw: among `sum(counts)` draws, `counts` of each source, evenly spread.

    The sources are the leaves of a binary tree. Of the first k draws that reach a node,
    floor(k * a / (a + b)) go to its left half, whose counts sum to a, and the others to its right
    half, whose counts sum to b. So the first k draws hold each source's share to within the depth
    of the tree, and a whole cycle holds it exactly. The sum of the counts must be above 0.
    """

    def __init__(self, counts: Sequence[int]):
        self.cycle = sum(counts)  # the draws after which it begins anew
        # Products of two numbers of a cycle must not overflow: long cycles use Python's integers.
        self._dtype: Any = np.int64 if self.cycle < 1 << 31 else object
        self._counts = np.array(counts, self._dtype)
        self._before = np.cumsum([0, *self._counts], dtype=self._dtype)

    def locate(self, draws: Draws) -> tuple[Draws, Draws]:
        """The source of each draw, and how many draws before it are of that source."""
        draws = draws.astype(self._dtype)
        turns, k = draws // self.cycle, draws % self.cycle
        low = np.zeros(len(draws), np.int64)
        high = np.full(len(draws), len(self._counts), np.int64)
        for _ in range((len(self._counts) - 1).bit_length()):
            # At a leaf the middle is the leaf itself, so a draw stays there.
            middle = (low + high) // 2
            left = self._before[middle] - self._before[low]
            both = self._before[high] - self._before[low]
            earlier = k * left // both
            goes_left = ((k + 1) * left // both > earlier).astype(bool)
            high, low = np.where(goes_left, middle, high), np.where(goes_left, low, middle)
            k = np.where(goes_left, earlier, k - earlier)
        return low, (turns * self._counts[low] + k).astype(np.int64)


def permuted(i: Draws, size: Draws, seed: UInt64[np.ndarray, " n"]) -> Draws:
    """Maps each i, from 0 to size - 1, by a permutation of its size and seed, in constant memory.

    This is a Feistel network over the bits of the size, repeated while it leads beyond the size
    (Black and Rogaway 2002, doi 10.1007/3-540-45760-7_9). A size is from 1 to 2**53. Grain's
    shuffle permutes one index at a time, and is too slow for the thousands that are needed here.
    """
    # The exponent of a float is the number of bits of a whole number.
    bits = np.frexp((size - 1).astype(np.float64))[1].astype(np.uint64)
    low_bits = (bits + np.uint64(1)) // np.uint64(2)
    one = np.uint64(1)
    low_mask, high_mask = (one << low_bits) - one, (one << (bits - low_bits)) - one
    keys = [_hashed(seed * np.uint64(_ROUNDS) + np.uint64(k)) for k in range(_ROUNDS)]
    result = i.astype(np.uint64)
    beyond = np.arange(len(i))
    while beyond.size:
        low = result[beyond] & low_mask[beyond]
        high = result[beyond] >> low_bits[beyond]
        for turn, key in enumerate(keys):
            if turn % 2:
                low ^= _hashed(key[beyond] ^ high) & low_mask[beyond]
            else:
                high ^= _hashed(key[beyond] ^ low) & high_mask[beyond]
        result[beyond] = high << low_bits[beyond] | low
        beyond = beyond[result[beyond] >= size[beyond].astype(np.uint64)]
    return result.astype(np.int64)


def _hashed(value: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Hashes 64 bits to 64 bits by a step of SplitMix (doi 10.1145/2660193.2660195)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _seeds(seed: int, count: int) -> Shaped[np.ndarray, " count"]:
    """Independent seeds for several purposes."""
    return np.random.SeedSequence(seed).generate_state(count).astype(np.uint64)
