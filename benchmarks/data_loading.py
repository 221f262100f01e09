"""The data pipeline: points per second and memory, beside the approach of the published loader.

python benchmarks/data_loading.py --path CORPUS

The pipeline is `open_source`, `WindowIndex` and `WindowSource`, and batches of `make_dataset`,
shuffled, at a window length of 4096. The other side is the published PyTorch loader's approach,
written anew in NumPy: every meta.json parsed into a list with a dictionary per sequence; a list
with a pair of numbers per window; and for each window, its whole sequence read by one open, seek
and read, multiplied by the deviation and moved by the mean that stand beside it, z-scored, cut and
padded; then stacked to batches. It reads in this process, as that loader does without workers.

Each measurement is a process of its own, so that neither side's memory counts for the other. Both
sides are held to one core, except for `num_threads` above 0. Points are those that the mask says
were observed; per CPU second they depend less on what else the machine does. The first epoch finds
the statistics of each sequence, later ones know them; an epoch is cut short after --seconds, which
leaves a random part of it. Memory is the resident memory that opening added, indices and all, and
the most there was meanwhile.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

LENGTH, BATCH = 4096, 32
SIDES = ("published", "ours")


class PublishedApproach:
    """Windows as the published loader makes them; see the beginning of this file."""

    def __init__(self, path: str, length: int):
        self.folders: list[tuple[Path, dict[str, Any], list[tuple[str, int]]]] = []
        for meta_path in sorted(Path(path).rglob("meta.json")):
            meta = json.loads(meta_path.read_text(encoding="utf-8"))
            files, start = [], 0
            for name in sorted(meta["files"], key=lambda name: int(name.split("-")[1])):
                files.append((name, start))
                start += meta["files"][name]
            self.folders.append((meta_path.parent, meta, files))
        self.length = length
        self.windows: list[tuple[int, int, int]] = []
        for folder, (_, meta, _) in enumerate(self.folders):
            for sequence, scale in enumerate(meta["scales"]):
                if scale["length"] >= 2:
                    self.windows.append((folder, sequence, 0))
                for start in range(length, scale["length"] - length, length):
                    self.windows.append((folder, sequence, start))

    def sequence(self, folder: int, sequence: int) -> np.ndarray:
        """A whole sequence in its own units."""
        path, meta, files = self.folders[folder]
        scale = meta["scales"][sequence]
        begin, left = scale["offset"], scale["length"]
        dtype = np.dtype(meta["dtype"])
        parts = []
        for name, start in files:
            points = meta["files"][name]
            if left and start <= begin < start + points:
                count = min(left, start + points - begin)
                with open(path / name, "rb") as stream:
                    stream.seek((begin - start) * dtype.itemsize)
                    parts.append(np.frombuffer(stream.read(count * dtype.itemsize), dtype))
                begin, left = begin + count, left - count
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values * scale["std"] + scale["mean"] if "mean" in scale else values

    def window(self, i: int) -> dict[str, np.ndarray]:
        """One window, padded on the right."""
        folder, sequence, start = self.windows[i]
        values = self.sequence(folder, sequence)
        centered = values - values.mean()
        std = values.std()
        piece = (centered / std if std > 0 else centered)[start : start + self.length + 1]
        room = self.length + 1 - len(piece)
        return {
            "values": np.pad(piece.astype(np.float32), (0, room)),
            "mask": np.pad(np.ones(len(piece), bool), (0, room)),
        }

    def epochs(self, seed: int) -> Iterator[list[dict[str, np.ndarray]]]:
        """Shuffled batches without end."""
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(len(self.windows)).tolist()
            for at in range(0, len(order) - BATCH + 1, BATCH):
                items = [self.window(i) for i in order[at : at + BATCH]]
                yield [{key: np.stack([item[key] for item in items]) for key in items[0]}]


def resident(name: str) -> float:
    """MB of memory of this process: VmRSS, now; VmHWM, at most so far."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"/proc/self/status has no {name}; this benchmark needs Linux")


def child(args: argparse.Namespace) -> None:
    """What one process measures; prints JSON."""
    if args.threads == 0:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    # Imported before memory is looked at.
    from timemoe_jax.data.formats.open import open_source
    from timemoe_jax.data.pipeline.batches import make_dataset
    from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource

    gc.collect()
    before, start = resident("VmRSS"), time.perf_counter()
    if args.child == "published":
        loader = PublishedApproach(args.path, args.length)
        num_windows = len(loader.windows)
        batches: Iterator[Any] = (batch for (batch,) in loader.epochs(seed=0))
    else:
        source = open_source(args.path)
        windows = WindowSource(source, WindowIndex(source.lengths, args.length))
        num_windows = len(windows)
        dataset = make_dataset(
            windows,
            batch_size=BATCH,
            seed=0,
            shuffle=True,
            repeat=True,
            num_threads=args.threads,
        )
        batches = iter(dataset)
    opened = time.perf_counter() - start
    gc.collect()
    memory = {"memory": resident("VmRSS") - before, "peak": resident("VmHWM") - before}
    result: dict[str, Any] = {"open": opened, **memory, "windows": num_windows}
    if not args.open_only:
        num_batches = max(1, num_windows // BATCH)
        for epoch in ("first", "later"):
            result[epoch] = rate(batches, num_batches, args.seconds)
            # A later epoch has its statistics only if the first one was whole.
            if args.child == "published" or result[epoch]["share"] < 1:
                break
    print(json.dumps(result))


def rate(batches: Iterator[Any], num_batches: int, seconds: float) -> dict[str, float]:
    """Points and windows per second of an epoch, or of what of it fits into some seconds."""
    points = taken = 0
    start, start_cpu = time.perf_counter(), time.process_time()
    spent = 0.0
    for taken in range(1, num_batches + 1):  # noqa: B007
        points += int(np.count_nonzero(next(batches)["mask"]))
        spent = time.perf_counter() - start
        if spent > seconds:
            break
    return {
        "points": points / spent,
        "points_per_cpu": points / (time.process_time() - start_cpu),
        "windows": taken * BATCH / spent,
        "share": taken / num_batches,
    }


def measure(side: str, path: Path, args: argparse.Namespace, threads: int, *flags: str) -> Any:
    """Runs a child."""
    command = [sys.executable, __file__, "--child", side, "--path", str(path)]
    command += ["--threads", str(threads), "--seconds", str(args.seconds)]
    command += ["--length", str(args.length), *flags]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def throughput(path: Path, args: argparse.Namespace, report: Any) -> None:
    """Points per second against `num_threads`, beside the published approach."""
    best: dict[tuple[str, str], dict[str, float]] = {}
    opened: dict[str, dict[str, float]] = {}
    runs = [("published", 0), *(("ours", int(t)) for t in args.num_threads.split(","))]
    for turn in range(args.rounds):
        for side, threads in runs[:: 1 if turn % 2 == 0 else -1]:
            result = measure(side, path, args, threads)
            name = side if side == "published" else f"num_threads={threads}"
            if threads == 0:
                opened[side] = result
            for epoch in {"first", "later"} & set(result):
                key = name, epoch
                if result[epoch]["points"] > best.get(key, {"points": 0})["points"]:
                    best[key] = result[epoch]
    reference = best["published", "first"]
    print(f"{'':<28}{'M points/s':>12}{'ratio':>8}{'per CPU s':>12}{'ratio':>8}{'of epoch':>10}")
    for (name, epoch), found in sorted(best.items(), key=lambda item: item[0][0] != "published"):
        label = name if name == "published" else f"{name} {epoch} epoch"
        print(f"{label:<28}", end="")
        for what, unit, title in (
            ("points", "points/s", "throughput"),
            ("points_per_cpu", "points/CPU s", "throughput of a core"),
        ):
            value, beside = found[what], reference[what]
            print(f"{value / 1e6:>12.2f}{value / beside:>8.1f}", end="")
            of = None if name == "published" else beside
            report.add(f"{label} {title}", value, unit, "published approach", of)
        print(f"{found['share']:>10.0%}")
    memory(opened, "corpus", report)


def memory(results: dict[str, dict[str, float]], name: str, report: Any) -> None:
    """Prints what opening took, and keeps the rows."""
    reference = results["published"]
    for side, found in results.items():
        print(
            f"{name}: {side:<18} open {found['open']:8.2f} s, memory {found['memory']:9.1f} MB, "
            f"peak {found['peak']:9.1f} MB"
        )
        for what, unit in (("open", "s"), ("memory", "MB"), ("peak", "MB")):
            of = None if side == "published" else reference[what]
            report.add(f"{name} {side} {what}", found[what], unit, "published approach", of)


def many_sequences(folder: Path, num_sequences: int, length: int = 64) -> None:
    """Writes a folder whose meta.json is long; its points are a hole on the disk."""
    folder.mkdir()
    name = "data-1-of-1.bin"
    with open(folder / name, "wb") as stream:
        stream.truncate(num_sequences * length * 4)
    rng = np.random.default_rng(0)
    head = {
        "num_sequences": num_sequences,
        "dtype": "float32",
        "files": {name: num_sequences * length},
    }
    with open(folder / "meta.json", "w", encoding="utf-8") as stream:
        stream.write(json.dumps(head)[:-1] + ', "scales": [')
        for i in range(num_sequences):
            mean, std = rng.random(2).tolist()
            scale = {"offset": i * length, "length": length, "mean": mean, "std": std}
            stream.write((", " if i else "") + json.dumps(scale))
        stream.write("]}")


def small_corpus(folder: Path) -> None:
    """Series of the lengths that real corpora have: most short, most points in long ones."""
    from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder

    rng = np.random.default_rng(0)
    lengths = [300] * 400 + [3000] * 60 + [60_000] * 6
    write_time_moe_folder(folder, (rng.standard_normal(n) for n in lengths))


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", help="a corpus in the Time-300B layout")
    parser.add_argument("--length", type=int, default=LENGTH, help="inputs of a window")
    parser.add_argument("--num-threads", default="0,1,2", help="of make_dataset")
    parser.add_argument("--seconds", type=float, default=30, help="at most, of an epoch")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each; the best counts")
    parser.add_argument("--sequences", type=int, default=5_000_000, help="of the long meta.json")
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--open-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.rounds, args.sequences = 1.0, 1, 20_000
    return args


def main() -> None:
    """Measures throughput at the corpus and memory at both."""
    args = parse()
    if args.child:
        child(args)
        return
    from benchmarks.measure import Report

    report = Report(args.json)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(args.path) if args.path else None
        if path is not None and path.is_dir():
            throughput(path, args, report)
        elif args.quick and path is None:
            small_corpus(Path(scratch) / "small")
            throughput(Path(scratch) / "small", args, report)
        else:
            print(f"throughput: skipped, there is no folder {path}; --path names a corpus")
        long = Path(scratch) / "long"
        many_sequences(long, args.sequences)
        results = {side: measure(side, long, args, 0, "--open-only") for side in SIDES}
        # What a first opening writes beside meta.json, a second one reads.
        results["ours, again"] = measure("ours", long, args, 0, "--open-only")
        memory(results, f"{args.sequences} sequences", report)
    report.write()


if __name__ == "__main__":
    main()
