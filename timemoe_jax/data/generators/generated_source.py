"""A source of generated series, made on access and practically endless."""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from timemoe_jax.data.generators.augmentations import Augmentation
from timemoe_jax.data.generators.generator import Generator
from timemoe_jax.data.generators.registry import make_generator, parse_families
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError

# Series that are drawn at once, and blocks that are read in turn. Both decide which series is
# which, so other numbers would give another source. Large blocks are fast to read in order, small
# ones in any other order; these are fast enough for either.
BLOCK = 16
LANES = 16


def draw_block(
    name: str, generator: Generator, seed: int, number: int, count: int, length: int
) -> tuple[Float32[np.ndarray, "{count} {length}"], int]:
    """Draws block `number` of a family; returns also how many unusable series were replaced."""
    return generator.generate_counted(_rng(seed, name, number), count, length)


def _rng(seed: int, name: str, number: int) -> np.random.Generator:
    # The family's name takes part, so that families of one seed share no random numbers.
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number])


class GeneratedSource(SequenceSource):
    """Series of several families; series i depends on the families, seed, length and i alone.

    Series are drawn in blocks of 16 of one family. Neighbors in the source are of 16 different
    blocks, whose families are drawn by weight, so a batch read in order is a mixture. Reading in
    order is many times faster, and no less random: in a shuffled order, each series costs its whole
    block.

    Families are drawn by their weights, equal ones if None, and series have at least two points.
    The augmentation changes each block after it is drawn; what it makes missing is NaN.
    """

    def __init__(
        self,
        families: Mapping[str, Generator],
        weights: Mapping[str, float] | None,
        length: int,
        seed: int,
        num_sequences: int = 1_000_000,
        augmentation: Augmentation | None = None,
    ):
        if length < 2 or num_sequences < 1 or seed < 0:
            raise DataError(
                f"length {length} must be at least 2, num_sequences {num_sequences} at least 1, "
                f"and seed {seed} at least 0"
            )
        weights = dict.fromkeys(families, 1.0) if weights is None else weights
        if not families or weights.keys() != families.keys() or min(weights.values()) <= 0:
            raise DataError(
                f"families {', '.join(families) or 'none'} must be at least one, and weights "
                f"{dict(weights)} give each a positive number"
            )
        self._families, self._length, self._seed = dict(families), length, seed
        self._names = list(families)
        share = np.array([weights[name] for name in self._names], np.float64)
        self._ends = np.cumsum(share / share.sum())
        self._augmentation = augmentation
        # One number, seen num_sequences times.
        self.lengths = np.broadcast_to(np.int64(length), num_sequences)
        self._make_cache()

    @classmethod
    def parse(
        cls,
        families: str,
        length: int,
        seed: int,
        num_sequences: int = 1_000_000,
        real: SequenceSource | None = None,
        augmentation: Augmentation | None = None,
    ) -> "GeneratedSource":
        """Makes a source of families such as `arima:2,chaos`, all of them, equally, if empty.

        Each has its default parameters; `real` is what tsmixup mixes. Takes and raises otherwise
        what the constructor does.
        """
        weights = parse_families(families)
        generators = {name: make_generator(name, real) for name in weights}
        return cls(generators, weights, length, seed, num_sequences, augmentation)

    def _make_cache(self) -> None:
        # Two rounds of blocks, since several threads read a little ahead of one another.
        self._blocks: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._lane_locks = [threading.Lock() for _ in range(LANES)]

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_blocks", "_cache_lock", "_lane_locks")
        return {key: value for key, value in self.__dict__.items() if key not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_cache()

    def _read(self, i: int, start: int, stop: int) -> Float32[np.ndarray, " _"]:
        block, row = _locate(i)
        # A copy, so that a caller that writes to it does not change the series.
        return self._block(block)[row, start:stop].copy()

    def family(self, i: int) -> str:
        """The name of the family that series `i` is of."""
        block, _ = _locate(i)
        return self._names[int(self._lane_families(block // LANES)[block % LANES])]

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"generated series {i} ({self.family(i)}) of seed {self._seed}"

    def _block(self, number: int) -> Float32[np.ndarray, "16 length"]:
        with self._lane_locks[number % LANES]:
            with self._cache_lock:
                if number in self._blocks:
                    self._blocks.move_to_end(number)
                    return self._blocks[number]
            name = self._names[int(self._lane_families(number // LANES)[number % LANES])]
            family = self._families[name]
            values, _ = draw_block(name, family, self._seed, number, BLOCK, self._length)
            if self._augmentation is not None:
                rng = _rng(self._seed, f"augmentation of {name}", number)
                values = self._augmentation(rng, values)
            with self._cache_lock:
                self._blocks[number] = values
                while len(self._blocks) > 2 * LANES:
                    self._blocks.popitem(last=False)
            return values

    def _lane_families(self, group: int) -> Int64[np.ndarray, " 16"]:
        """The family of each of the blocks that are read in turn, by systematic sampling.

        Of 16 blocks a family gets its share, rounded up or down at random.
        """
        rng = _rng(self._seed, "lanes", group)
        points = (np.arange(LANES) + rng.random()) / LANES
        families = np.minimum(np.searchsorted(self._ends, points), len(self._names) - 1)
        return rng.permutation(families)


def _locate(i: int) -> tuple[int, int]:
    """The block of series `i` and its row there; blocks are read in turn, a row of each."""
    group, inner = divmod(i, BLOCK * LANES)
    row, lane = divmod(inner, LANES)
    return group * LANES + lane, row
