"""Forecasts of chaotic systems, beside copies of the context's own past.

python benchmarks/chaos.py --checkpoint nano

Context parroting (arXiv 2505.11349) forecasts by what followed the stretch of the context that is
nearest to its end; a model that only copies can be no better. It is reported for every length in
--stretches, beside the last value (naive) and the context's mean.

The series are x of Lorenz' system (10, 28, 8/3), of Roessler's (0.2, 0.2, 5.7), and Mackey-Glass
with a delay of 17, about 30 points a turn, without noise, each from a state of its own that has
first come to the attractor. --series PATH adds series of any kind that the library reads, with a
table for each file or folder: of at most --count series of each, evenly spread, --windows windows,
evenly spread over the series and apart by at least the horizon.

MSE is in units of the context's variance; sMAPE is 200 |f - y| / (|f| + |y|), in percent; the
valid time is how many steps pass until the error first exceeds 0.4 of the context's deviation, the
horizon where it never does. Windows of a series are averaged first, and the deviation of these
averages over the square root of their number is the standard error. The median MSE is the one of
the series in the middle: where contexts hardly move and what follows does, a mean says little.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.coverage import random_forecaster
from benchmarks.measure import Report, describe_machine, names
from timemoe_jax.data.corpus.inspection import file_of
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import ConfigError, DataError, TimeMoeError
from timemoe_jax.evaluation.leaderboards.chaos_run import smape_so_far
from timemoe_jax.evaluation.leaderboards.chaos_systems import own_systems
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.forecasting.scoring.baselines import context_parroting, naive

VALID = 0.4  # of the deviation: the error up to which a forecast is valid
BATCH = 64  # windows in memory at once
ERRORS = {"MSE": "variances", "sMAPE": "%", "valid time": "steps"}

Method = Callable[[np.ndarray, int], np.ndarray]  # contexts [B, T] and a horizon, to [B, horizon]


class Windows(NamedTuple):
    """What is forecast of some series."""

    contexts: Float64[np.ndarray, "N T"]
    targets: Float64[np.ndarray, "N H"]
    series: Int64[np.ndarray, " N"]  # which one each window is of
    left_out: Mapping[str, int]  # what, and how many of it


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", action="append", default=[], help="a folder or a bundled name; again"
    )
    parser.add_argument("--series", help="a file or folder of series; several with commas")
    parser.add_argument("--no-systems", action="store_true", help="measure --series alone")
    parser.add_argument("--context", type=int, default=512, help="points that a forecast reads")
    parser.add_argument("--horizon", type=int, default=128)
    parser.add_argument("--count", type=int, default=100, help="series of each system and source")
    parser.add_argument("--windows", type=int, default=1, help="of each series of --series")
    parser.add_argument("--stretches", default="10,32", help="that parroting compares, in points")
    parser.add_argument("--seed", type=int, default=0, help="of the systems' first states")
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args(argv)
    for name in ("context", "horizon", "count", "windows"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be positive, but is {getattr(args, name)}")
    try:
        args.stretches = tuple(int(stretch) for stretch in names(args.stretches))
    except ValueError:
        parser.error(f"--stretches must be whole numbers, but is {args.stretches!r}")
    wrong = [stretch for stretch in args.stretches if not 1 <= stretch <= args.context // 2]
    if wrong:
        parser.error(f"--stretches: {wrong[0]} is not from 1 to half of --context, {args.context}")
    if args.no_systems and not args.series:
        parser.error("--no-systems leaves nothing to measure without --series")
    if args.quick:
        args.context, args.horizon = min(args.context, 128), min(args.horizon, 32)
        args.count = min(args.count, 8)
        args.stretches = tuple(s for s in args.stretches if s <= args.context // 2)
    return args


def windows_of_systems(series: Float64[np.ndarray, "N T"], context: int) -> Windows:
    """One window of each series, as long as it is."""
    return Windows(series[:, :context], series[:, context:], np.arange(len(series)), {})


def by_source(source: SequenceSource) -> dict[str, Int64[np.ndarray, " N"]]:
    """The numbers of the series of each file or folder, by as much of its path as tells them apart.

    That is the last two parts, the domain and the source of a corpus, if they differ.
    """
    found = defaultdict(list)
    for i in range(len(source)):
        found[Path(file_of(source.name(i)))].append(i)
    short = {path: "/".join(path.parts[-2:]) or "series" for path in found}
    unique = len(set(short.values())) == len(short)
    return {short[path] if unique else str(path): np.array(at) for path, at in found.items()}


def windows_of_source(
    source: SequenceSource,
    numbers: Int64[np.ndarray, " N"],
    context: int,
    horizon: int,
    count: int,
    each: int,
) -> Windows:
    """The last points of each series, and further windows before them, `horizon` apart or more.

    Args:
      source: of the series.
      numbers: which of them.
      context: points that are read.
      horizon: points that are forecast.
      count: series at most, evenly spread over those that are long enough.
      each: windows of a series at most.
    """
    left_out: Counter[str] = Counter()
    long_enough = numbers[source.lengths[numbers] >= context + horizon]
    left_out[f"series shorter than {context + horizon} points"] += len(numbers) - len(long_enough)
    spread = np.linspace(0, len(long_enough) - 1, min(count, len(long_enough))).round()
    chosen = long_enough[spread.astype(int)]
    left_out[f"series beyond --count {count}"] += len(long_enough) - len(chosen)
    pieces: list[np.ndarray] = []
    rows: list[int] = []
    for i in chosen:
        last = int(source.lengths[i]) - context - horizon
        many = min(each, last // horizon + 1)
        starts = np.linspace(last, 0, many).astype(int) if many > 1 else [last]
        found = [source.read(i, at, at + context + horizon).astype(np.float64) for at in starts]
        finite = [piece for piece in found if np.isfinite(piece).all()]
        moving = [piece for piece in finite if piece[:context].std() > 0]
        left_out["windows with missing values"] += len(found) - len(finite)
        left_out["windows of constant contexts"] += len(finite) - len(moving)
        pieces += moving
        rows += [int(i)] * len(moving)
    values = np.array(pieces).reshape(-1, context + horizon)
    dropped = {reason: number for reason, number in left_out.items() if number}
    return Windows(values[:, :context], values[:, context:], np.array(rows, int), dropped)


def errors(
    windows: Windows, forecasts: Float64[np.ndarray, "N H"]
) -> dict[str, Float64[np.ndarray, " N"]]:
    """The errors of each window, as the head of the script defines them."""
    deviation = windows.contexts.std(axis=1, keepdims=True)
    off = np.abs(forecasts - windows.targets)
    return {
        "MSE": np.square(off / deviation).mean(axis=1),
        "sMAPE": smape_so_far(windows.targets, forecasts)[:, -1],
        "valid time": first_true(off > VALID * deviation).astype(float),
    }


def first_true(flags: Bool[np.ndarray, "N H"]) -> Int64[np.ndarray, " N"]:
    """Where the first True of each row is; H where there is none."""
    return np.where(flags.any(axis=1), flags.argmax(axis=1), flags.shape[1])


def means_of_series(
    values: Float64[np.ndarray, " N"], series: Int64[np.ndarray, " N"]
) -> Float64[np.ndarray, " S"]:
    """The mean over the windows of each series."""
    _, place = np.unique(series, return_inverse=True)
    return np.bincount(place, values) / np.bincount(place)


def standard_error(means: Float64[np.ndarray, " S"]) -> float:
    """Of the mean over series; NaN of a single one."""
    if len(means) < 2:
        return float("nan")
    return float(means.std(ddof=1) / np.sqrt(len(means)))


def methods(forecasters: Mapping[str, Forecaster], args: argparse.Namespace) -> dict[str, Method]:
    """What is measured, by name.

    Raises:
      DataError: a model has no room for the context and the horizon.
    """
    found: dict[str, Method] = {}
    for name, forecaster in forecasters.items():
        length = forecaster.usable_context(args.context, args.horizon)

        def model(
            contexts: np.ndarray, horizon: int, of: Forecaster = forecaster, length: int = length
        ) -> np.ndarray:
            return of.forecast(contexts, horizon, context_length=length).point

        found[name] = model
    for stretch in args.stretches:

        def parrot(contexts: np.ndarray, horizon: int, stretch: int = stretch) -> np.ndarray:
            return context_parroting(contexts, horizon, stretch)

        found[f"parroting {stretch}"] = parrot
    found["naive"] = naive
    found["mean"] = lambda contexts, horizon: np.repeat(
        contexts.mean(axis=1, keepdims=True), horizon, axis=1
    )
    return found


def measure(title: str, windows: Windows, compared: Mapping[str, Method], report: Report) -> None:
    """Prints the table of some series and keeps its rows; the first parroting is the reference."""
    why = "".join(f"; {number} {reason} left out" for reason, number in windows.left_out.items())
    count = len(np.unique(windows.series))
    print(f"\n{title}: {count} series, {len(windows.series)} windows{why}")
    if not count:
        return
    report.add(f"{title} series", count, "series")
    header = "".join(f"{f'{name}, {unit}':>24s}" for name, unit in ERRORS.items())
    print(f"{'':20s} {header}{'median MSE':>14s}")
    horizon = windows.targets.shape[1]
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, method in compared.items():
        parts = [
            method(windows.contexts[at : at + BATCH], horizon)
            for at in range(0, len(windows.contexts), BATCH)
        ]
        off = errors(windows, np.concatenate(parts))
        scores[name] = {kind: means_of_series(each, windows.series) for kind, each in off.items()}
        cells = [f"{m.mean():14.4f} ± {standard_error(m):7.4f}" for m in scores[name].values()]
        print(f"{name:20s} {''.join(cells)}{np.median(scores[name]['MSE']):14.4f}")
    add_rows(title, scores, report)


def add_rows(
    title: str, scores: Mapping[str, Mapping[str, Float64[np.ndarray, " S"]]], report: Report
) -> None:
    """Keeps the mean of each error with its standard error, and the median MSE."""
    reference = next((name for name in scores if name.startswith("parroting")), "naive")
    for name, found in scores.items():
        rows = {
            kind: (float(m.mean()), float(scores[reference][kind].mean()))
            for kind, m in found.items()
        }
        medians = (float(np.median(of["MSE"])) for of in (found, scores[reference]))
        rows["median MSE"] = (next(medians), next(medians))
        for kind, (value, of) in rows.items():
            unit = ERRORS[kind.removeprefix("median ")]
            compare = None if name == reference else of
            report.add(f"{title} {name} {kind}", value, unit, reference, compare)
        for kind, means in found.items():
            if np.isfinite(error := standard_error(means)):
                report.add(f"{title} {name} {kind} standard error", error, ERRORS[kind])


def load(args: argparse.Namespace) -> dict[str, Forecaster]:
    """The models by the last part of their path; a random one where --quick is given none."""
    found = {Path(path).name: Forecaster.from_pretrained(path) for path in args.checkpoint}
    if len(found) < len(args.checkpoint):
        raise ConfigError(f"--checkpoint: two of {', '.join(args.checkpoint)} have one name")
    if not found and args.quick:
        return {"random": random_forecaster()}
    if not found:
        print("no --checkpoint: the baselines alone are measured")
    return found


def main(argv: list[str] | None = None) -> None:
    """Prints and writes the rows."""
    args = parse(argv)
    report = Report(args.json)
    source = open_source(args.series) if args.series else None
    print(describe_machine())
    print(f"contexts of {args.context} points, horizon {args.horizon}")
    compared = methods(load(args), args)
    if not args.no_systems:
        length = args.context + args.horizon
        for name, system in own_systems(args.count, length, args.seed).items():
            measure(name, windows_of_systems(system.series, args.context), compared, report)
            report.write()
    if source is not None:
        for name, numbers in by_source(source).items():
            windows = windows_of_source(
                source, numbers, args.context, args.horizon, args.count, args.windows
            )
            measure(name, windows, compared, report)
            report.write()
        if not any(row["unit"] == "series" for row in report.rows):
            raise DataError(f"{args.series} holds no window that can be measured")
    report.write()


if __name__ == "__main__":
    try:
        main()
    except TimeMoeError as error:
        raise SystemExit(str(error)) from None
