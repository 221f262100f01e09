"""Conversion to Time-300B folders: points per second of each format, beside pandas in memory.

python benchmarks/conversion.py

Series of 1000 float32 points are written in every format, and each file is converted as
`timemoe data convert` does, to a folder on disk. The reference reads the same file with pandas
whole, into one NumPy array per series, and writes nothing. Both take turns in one process, and the
best time of each counts. The last rows are the most memory that Arrow held while one series of a
long file was read, its index made of ids and times included, and while pyarrow reads it whole.
"""

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Report
from timemoe_jax.data.corpus.convert import convert
from timemoe_jax.data.formats.open import open_source

POINTS = 1000  # of a series


def write_files(folder: Path, count: int) -> None:
    """The same `count` series in every format."""
    values = np.random.default_rng(0).standard_normal((count, POINTS)).astype(np.float32)
    ids, steps = np.repeat(np.arange(count), POINTS), np.tile(np.arange(POINTS), count)
    sorted_rows = pa.table({"unique_id": ids, "ds": steps, "y": values.ravel()})
    pq.write_table(sorted_rows, folder / "sorted.parquet", row_group_size=1 << 16)
    by_time = sorted_rows.take(np.argsort(steps, kind="stable"))
    pq.write_table(by_time, folder / "interleaved.parquet", row_group_size=1 << 16)
    lists = pa.table({"target": pa.array(list(values), pa.list_(pa.float32()))})
    pq.write_table(lists, folder / "lists.parquet")
    save_to_disk(lists, folder / "dataset")
    wide = pd.DataFrame(values[:50].T, columns=[f"s{k}" for k in range(50)])
    wide.to_csv(folder / "wide.csv", index=False)
    lines = [f"s{k}:" + ",".join(map(str, row.tolist())) for k, row in enumerate(values[:50])]
    header = "@attribute series_name string\n@frequency hourly\n@data\n"
    (folder / "series.tsf").write_text(header + "\n".join(lines), encoding="utf-8")


def save_to_disk(table: pa.Table, folder: Path) -> None:
    """What Hugging Face datasets write: a stream, and a file that names it."""
    folder.mkdir()
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data.arrow"}]}), encoding="utf-8"
    )


def by_id(path: Path) -> int:
    """A long file whole, then a group for each series."""
    frame = pd.read_parquet(path)
    groups = frame.sort_values(["unique_id", "ds"], kind="stable").groupby("unique_id", sort=False)
    return sum(len(group.to_numpy()) for _, group in groups["y"])


def by_row(path: Path) -> int:
    """A file of lists whole."""
    if path.is_dir():
        with pa.memory_map(str(path / "data.arrow")) as stream:
            column = pa.ipc.open_stream(stream).read_pandas()["target"]
    else:
        column = pd.read_parquet(path)["target"]
    return sum(len(np.array(values)) for values in column)


def by_column(path: Path) -> int:
    """A wide CSV whole."""
    frame = pd.read_csv(path)
    return sum(len(frame[name].to_numpy()) for name in frame)


def by_line(path: Path) -> int:
    """A .tsf file, a line at a time."""
    lines = path.read_text(encoding="utf-8").split("@data\n")[1].splitlines()
    return sum(len(np.array(line.split(":")[1].split(","), np.float64)) for line in lines)


REFERENCES: dict[str, tuple[str, Callable[[Path], int]]] = {
    "sorted.parquet": ("read_parquet, groupby", by_id),
    "interleaved.parquet": ("read_parquet, groupby", by_id),
    "lists.parquet": ("read_parquet", by_row),
    "dataset": ("pyarrow, to_pandas", by_row),
    "wide.csv": ("pandas read_csv", by_column),
    "series.tsf": ("split and np.array", by_line),
}


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(folder: Path, rounds: int) -> Iterator[tuple[str, str, float, float]]:
    """For each file: its name, that of the reference, and points per second of both."""
    for name, (reference, read) in REFERENCES.items():
        ours, theirs = [], []
        points = read(folder / name)
        for turn in range(rounds):
            out = folder / f"out-{name}-{turn}"
            ours.append(seconds(functools.partial(_convert, folder / name, out, points)))
            theirs.append(seconds(functools.partial(read, folder / name)))
        yield name, reference, points / min(ours), points / min(theirs)


def _convert(path: Path, out: Path, points: int) -> None:
    report = convert(path, out, progress=False)
    assert report.sources[0].points == points, "every point is converted"


def memory(path: Path) -> tuple[float, float]:
    """The most that Arrow held in MB for one series, and for the whole file."""
    pool = pa.default_memory_pool()
    source = open_source(str(path))
    assert len(source[len(source) // 2]) == POINTS
    one = pool.max_memory() / 1e6
    table = pq.read_table(path)
    return one, max(pool.max_memory(), table.nbytes) / 1e6


def main() -> None:
    """Writes the files, takes the times, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--series", type=int, help="how many; default 20000, 500 if quick")
    args = parser.parse_args()
    report = Report(args.json)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = args.series or (500 if args.quick else 20000)
        write_files(folder, count)
        pa.default_memory_pool().release_unused()
        for file, reference, ours, theirs in measured(folder, 2 if args.quick else 3):
            report.add(f"convert {file}", ours, "points/s", reference, theirs)
            print(f"{file:22} {ours / 1e6:8.2f}  {reference:22} {theirs / 1e6:8.2f} M points/s")
        held, whole = _memory_apart(folder / "sorted.parquet")
        report.add("read one series", held, "MB", "pyarrow read_table", whole)
        print(f"one series of sorted.parquet: {held:.1f} MB; read_table: {whole:.1f} MB")
    report.write()


def _memory_apart(path: Path) -> tuple[float, float]:
    """`memory` in a process of its own, since a pool remembers its most."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory, (path,))


if __name__ == "__main__":
    main()
