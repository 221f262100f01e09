"""What opening a Time-300B folder costs, in time and memory, with and without its index.

python benchmarks/folder_index.py
python benchmarks/folder_index.py --sequences 1000000 --folder FOLDER

A folder of 48 million sequences is generated, as many as all of Time-300B: its meta.json (4 GB)
is as the published ones are, its data file is sparse. Everything is measured in a process of its
own, which imports nothing of JAX; memory is its resident set, `peak` the most it ever had.

- `make`: the first opening, which reads meta.json and writes meta.index.
- `open`: a later one; the best of some. `not cached`: what the system still had of the index in
  memory was dropped before.
- `lengths`: what a training run does next, a `WindowIndex` of windows of 4096 points.
- `read`: sequences drawn at random, 64 points of each.
- `json.load`: the meta.json of a folder of 1 million, read whole into Python objects: the
  reference, per sequence, of `make` and `open`.

--folder keeps the folder, and takes it as it is if it is there. MB are 10^6 bytes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

SEQUENCES, QUICK_SEQUENCES, JSON_SEQUENCES = 48_000_000, 1_000_000, 1_000_000
BLOCK = 1 << 18
ENTRY = '{"offset": %d, "length": %d, "mean": %r, "std": %r}'
ROUNDS = 5
READS = 20_000


def generate(folder: Path, count: int) -> None:
    """Writes a folder of `count` sequences of 1 to 2000 points each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, total = np.random.default_rng(0), 0
    with open(folder / "meta.part", "w", encoding="utf-8") as stream:
        # The points of the file come last: they are known only then.
        stream.write(f'{{"num_sequences": {count}, "dtype": "float32", "scales": [')
        for first in range(0, count, BLOCK):
            size = min(BLOCK, count - first)
            lengths = rng.integers(1, 2001, size)
            offsets = total + np.cumsum(lengths) - lengths
            means, stds = rng.normal(0, 100, size), rng.gamma(2.0, 10.0, size) + 1e-3
            rows = zip(
                *(column.tolist() for column in (offsets, lengths, means, stds)), strict=True
            )
            stream.write((", " if first else "") + ", ".join([ENTRY % row for row in rows]))
            total += int(lengths.sum())
        stream.write(f'], "files": {{"data-1-of-1.bin": {total}}}}}')
    with open(folder / "data-1-of-1.bin", "wb") as data:
        data.truncate(4 * total)
    (folder / "meta.part").replace(folder / "meta.json")


def memory(field: str) -> float:
    """MB of this process by a field of its status, as Linux gives it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def measure_opening(folder: Path) -> dict[str, float]:
    """Opens the folder, reads from it, and says what each took."""
    from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource
    from timemoe_jax.data.pipeline.windows import WindowIndex

    taken = {"imports MB": memory("VmRSS")}
    start = time.perf_counter()
    source = TimeMoeFolderSource(folder)
    taken |= {"s": time.perf_counter() - start, "MB": memory("VmRSS"), "peak MB": memory("VmHWM")}
    start = time.perf_counter()
    WindowIndex(source.lengths, 4096)
    taken |= {"lengths s": time.perf_counter() - start, "lengths peak MB": memory("VmHWM")}
    chosen = np.random.default_rng(0).integers(0, len(source), READS).tolist()
    start = time.perf_counter()
    for i in chosen:
        source.read(i, 0, 64)
    taken["read us"] = (time.perf_counter() - start) / READS * 1e6
    return taken | {"read MB": memory("VmRSS")}


def measure_json(folder: Path) -> dict[str, float]:
    """Reads meta.json as a whole."""
    before, start = memory("VmRSS"), time.perf_counter()
    with open(folder / "meta.json", "rb") as stream:
        meta = json.load(stream)
    seconds = time.perf_counter() - start
    count = len(meta["scales"])
    return {"s": seconds, "peak MB": memory("VmHWM") - before, "count": count}


def drop_cache(path: Path) -> None:
    """Lets the system forget what it holds of a file."""
    import os

    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(kind: str, folder: Path) -> dict[str, float]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--measure", kind, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(args: argparse.Namespace, folder: Path, small: Path) -> None:
    """Measures everything, and prints and writes the rows."""
    from benchmarks.measure import Report

    report = Report(args.json)
    generate(small, JSON_SEQUENCES // (20 if args.quick else 1))
    whole = measured("json", small)
    if not (folder / "meta.json").exists():
        generate(folder, args.sequences)
    (folder / "meta.index").unlink(missing_ok=True)
    text = (folder / "meta.json").stat().st_size / 1e6
    made = measured("opening", folder)
    index = folder / "meta.index"
    drop_cache(index)
    cold = measured("opening", folder)
    opened = [measured("opening", folder) for _ in range(2 if args.quick else ROUNDS)]
    best = min(opened, key=lambda taken: taken["s"])
    # json.load grows with the sequences.
    factor = args.sequences / whole["count"]
    reference = {"s": whole["s"] * factor, "peak MB": whole["peak MB"] * factor}
    name = f"{args.sequences}"
    report.add(f"json.load {name}, by {int(whole['count'])}", reference["s"], "s")
    report.add(f"json.load {name}, by {int(whole['count'])} peak", reference["peak MB"], "MB")
    for kind, taken in (("make", made), ("open not cached", cold), ("open", best)):
        report.add(f"{kind} {name}", taken["s"], "s", "json.load", reference["s"])
        peak = taken["peak MB"] - taken["imports MB"]
        report.add(f"{kind} {name} peak", peak, "MB", "json.load", reference["peak MB"])
    report.add(f"make {name} rate", text / made["s"], "MB/s")
    report.add(f"meta.json {name}", text, "MB")
    report.add(f"meta.index {name}", index.stat().st_size / 1e6, "MB")
    report.add(f"open {name} whole process", best["MB"], "MB")
    report.add(f"lengths {name}", best["lengths s"], "s")
    report.add(f"lengths {name} whole process peak", best["lengths peak MB"], "MB")
    report.add(f"read {name}", best["read us"], "us")
    report.add(f"read {name} whole process", best["read MB"], "MB")
    for row in report.rows:
        ratio = "" if row["ratio"] is None else f"  {row['ratio']:.4f} of {row['reference']}"
        print(f"{row['name']:45} {row['value']:12.3f} {row['unit']}{ratio}")
    report.write()


def main() -> None:
    """Reads the flags, and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less than a minute: 1 million")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--sequences", type=int, help=f"default {SEQUENCES}")
    parser.add_argument("--folder", type=Path, help="where to keep the generated folder")
    parser.add_argument("--measure", choices=("opening", "json"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        kinds = {"opening": measure_opening, "json": measure_json}
        print(json.dumps(kinds[args.measure](args.folder)))
        return
    args.sequences = args.sequences or (QUICK_SEQUENCES if args.quick else SEQUENCES)
    with tempfile.TemporaryDirectory(prefix="folder_index_") as temporary:
        place = Path(temporary)
        run(args, args.folder or place / "large", place / "small")


if __name__ == "__main__":
    main()
