"""How fast series are generated: millions of points per minute and core, by family and overall.

python benchmarks/generators.py

The floor is 5 million points per minute and core, overall. A family's time is what its processor
spent, not the clock's, so that other users of the machine count little; the best of some rounds.
Overall is for equally many points of each family. Then the same through GeneratedSource, read in
order and shuffled (where each series costs its whole block), and through the whole of
`timemoe data synthesize`: the processor's time of all its processes, with their start and files.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Report, describe_machine
from timemoe_jax.data.corpus.synthesize import BLOCK, synthesize
from timemoe_jax.data.generators.generated_source import BLOCK as SOURCE_BLOCK
from timemoe_jax.data.generators.generated_source import LANES, GeneratedSource
from timemoe_jax.data.generators.registry import FAMILIES, MIXUP, make_generator, parse_families
from timemoe_jax.data.series_source import ArraySource

FLOOR = 5.0  # million points per minute and core

Row = Callable[[str, float, float], None]  # name, points, seconds


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join([*FAMILIES, MIXUP]))
    parser.add_argument("--length", type=int, default=4096, help="points of a series")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=200_000_000, help="that synthesize writes")
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    if args.quick:
        args.length, args.rounds, args.points = 256, 1, 200_000
    return args


def best(run: Callable[[], object], rounds: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest round."""
    seconds = []
    for _ in range(rounds):
        start = clock()
        run()
        seconds.append(clock() - start)
    return min(seconds)


def read(source: GeneratedSource, order: np.ndarray) -> None:
    """Reads series in an order."""
    for i in order:
        source[int(i)]


def main() -> None:
    """Prints and writes the rows."""
    args = parse()
    report = Report(args.json)
    print(describe_machine())

    def add(name: str, points: float, seconds: float) -> None:
        rate = points / seconds * 60 / 1e6
        report.add(name, rate, "Mpoint/min/core", "floor", FLOOR)
        print(f"{name:32s} {rate:9.1f} Mpoint/min/core {rate / FLOOR:8.1f} x floor")

    walks = np.random.default_rng(0).standard_normal((50, 4 * args.length)).cumsum(axis=1)
    real = ArraySource(list(walks))
    time_families(args, real, add)
    time_source(args, real, add)
    time_synthesis(args, real, add)
    report.write()


def time_families(args: argparse.Namespace, real: ArraySource, add: Row) -> None:
    """Each family alone, and equally many points of all."""
    shape, total, names = f"{BLOCK}x{args.length}", 0.0, list(parse_families(args.families))
    for name in names:
        generator, rng = make_generator(name, real), np.random.default_rng(0)
        generator.generate(rng, 2, 64)  # what a first call loads
        draw = functools.partial(generator.generate, rng, BLOCK, args.length)
        seconds = best(draw, args.rounds, time.process_time)
        total += seconds
        add(f"{name} {shape}", BLOCK * args.length, seconds)
    add(f"overall {shape}", len(names) * BLOCK * args.length, total)


def time_source(args: argparse.Namespace, real: ArraySource, add: Row) -> None:
    """The source of a training run, read in order and shuffled."""
    source = GeneratedSource.parse(args.families, args.length, 0, 1_000_000, real)
    # Of whole rounds of blocks, so that no block is made for a part of its series.
    count = SOURCE_BLOCK * LANES * (1 if args.quick else 8)
    seconds = best(lambda: read(source, np.arange(count)), 1, time.process_time)
    add("GeneratedSource in order", count * args.length, seconds)
    order = np.random.default_rng(0).integers(0, len(source), 32 if args.quick else 512)
    seconds = best(lambda: read(source, order), 1, time.process_time)
    add("GeneratedSource shuffled", len(order) * args.length, seconds)


def time_synthesis(args: argparse.Namespace, real: ArraySource, add: Row) -> None:
    """A corpus from start to end, per core."""
    with tempfile.TemporaryDirectory() as folder:
        start = sum(os.times()[:4])  # of this process and those it waited for
        manifest = synthesize(
            Path(folder) / "corpus",
            args.points,
            families=args.families,
            length=args.length,
            real=real,
            progress=False,
        )
        seconds = sum(os.times()[:4]) - start
    add(f"synthesize {manifest['points'] / 1e6:.0f}M", manifest["points"], seconds)


if __name__ == "__main__":
    main()
