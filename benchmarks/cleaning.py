"""Speed of cleaning: points per second and core of one series after another, and of a folder.

The floor of a series is a read of the same bytes: one pass over them that keeps the largest, from
memory where the series are longer than the caches. Both are in seconds of processor time, so that
other programs on the machine count less. A folder is also measured by the clock; its floor there
is a copy of the files. Run it from the root: `python benchmarks/cleaning.py`.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from timemoe_jax.data.corpus.clean import clean_folder
from timemoe_jax.data.corpus.clean_rules import clean
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder

if TYPE_CHECKING:
    from benchmarks.measure import Report, Side

LENGTHS = (128, 256, 512, 8192, 1 << 24)  # short series, a usual one, one beyond the caches
FOLDER_LENGTHS = (8192, 512)


def main() -> None:
    """Prints the tables, and writes their rows if asked to."""
    # Here, as the processes that clean import this file, too, and need no JAX.
    from benchmarks.measure import Report

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    report = Report(args.json)
    print(f"{os.cpu_count()} cores, numpy {np.__version__}")
    # First: a process counts the memory of the one that starts it as its own.
    for length in FOLDER_LENGTHS:
        measure_folder(report, args.quick, length)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    if children:
        report.add("peak memory of a process", children, "MB")
        print(f"\npeak memory of a process: {children:.0f} MB")
    measure_series(report, args.quick)
    report.write()


def inputs(count: int) -> Iterator[tuple[str, np.ndarray, int]]:
    """Names, points, and the length of the series that they are cut into."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=count).astype(np.float32)
    for length in LENGTHS:
        yield f"clean float32 x {min(length, count)}", values, length
    yield "clean float64 x 8192", values.astype(np.float64), 8192
    rounded = np.round(values, 1)
    yield "one decimal, float32 x 8192", rounded, 8192
    plateaus = values.copy()
    plateaus.reshape(-1, 512)[::3] = 1
    yield "a third repeated, float32 x 8192", plateaus, 8192
    gaps = values.copy()
    gaps[::1000] = np.nan
    yield "a gap every 1000, float32 x 8192", gaps, 8192


def measure_series(report: "Report", quick: bool) -> None:
    """One core, the series in memory."""
    from benchmarks.measure import interleave

    count = 1 << (21 if quick else 25)
    print(f"\n{'one core, in memory':36s} {'Mpt/s':>8s} {'read':>8s} {'of the read':>12s} spread")
    for name, values, length in inputs(count):
        parts = np.split(values, np.arange(length, count, length))
        sides = {"clean": seconds(clean_all, parts), "read": seconds(read_all, parts)}
        timings = interleave(sides, rounds=2 if quick else 5)
        rate, floor = (count / timings[side].best / 1e6 for side in sides)
        report.add(name, rate, "million points/s", "read of the bytes", floor)
        spread = max(timing.spread for timing in timings.values())
        print(f"{name:36s} {rate:8.0f} {floor:8.0f} {rate / floor:12.1%} {spread:5.0%}")


def measure_folder(report: "Report", quick: bool, length: int) -> None:
    """From files to files, which the page cache holds; the series have `length` points."""
    count = 1 << ((22 if quick else 27) if length > 1024 else (21 if quick else 26))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        block = rng.normal(size=1 << 20).astype(np.float32).reshape(-1, length)
        series = (row for _ in range(count // block.size) for row in block)
        write_time_moe_folder(folder / "in", series, points_per_file=count // 4)
        started = time.perf_counter()
        shutil.copytree(folder / "in", folder / "copy")
        floor = count / (time.perf_counter() - started) / 1e6
        title = f"a folder of float32 x {length}"
        print(f"\n{title:36s} {'Mpt/s':>8s} {'copy':>8s} {'of the copy':>12s}")
        for processes in sorted({1, len(os.sched_getaffinity(0))}):
            out = folder / f"out{processes}"
            before, started = processor_time(), time.perf_counter()
            clean_folder(
                str(folder / "in"),
                out,
                num_processes=processes,
                points_per_task=count // 16,
                progress=False,
            )
            taken, used = time.perf_counter() - started, processor_time() - before
            plural = "es" if processes > 1 else ""
            label = f"folder of {length}, {processes} process{plural}"
            rate = count / taken / 1e6
            report.add(label, rate, "million points/s", "copy of the files", floor)
            report.add(f"{label}, of processor time", count / used / 1e6, "million points/s")
            print(f"{label:36s} {rate:8.0f} {floor:8.0f} {rate / floor:12.1%}")
            print(f"{'  per second of processor time':36s} {count / used / 1e6:8.0f}")
            shutil.rmtree(out)


def processor_time() -> float:
    """Seconds that this process and those it started have used, on all cores."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def seconds(run: Callable[[list[np.ndarray]], None], parts: list[np.ndarray]) -> "Side":
    """The side of something that NumPy computes."""

    def side(calls: int) -> list[float]:
        taken = []
        for _ in range(calls):
            start = time.process_time()
            run(parts)
            taken.append(time.process_time() - start)
        return taken

    return side


def clean_all(parts: list[np.ndarray]) -> None:
    """Cleans each series."""
    for part in parts:
        clean(part)


def read_all(parts: list[np.ndarray]) -> None:
    """Reads each series once: whole numbers, as NaN would slow a maximum of floats down."""
    for part in parts:
        part.view(np.int64).max()


if __name__ == "__main__":
    main()
