"""How fast forecasts are, and what memory they take, beside the published implementation.

python benchmarks/forecast.py
python benchmarks/forecast.py --contexts 512 --horizons 96 --batches 8 --dtypes float32 \
    --published-python PYTHON --published-code CHECKOUT
taskset -c 0 python benchmarks/forecast.py --contexts 512 --horizons 96 --batches 64 \
    --dtypes float32 --checkpoint nano --clock cpu \
    --peer chronos-bolt-tiny --peer-python PYTHON --peer-code CHECKOUT

Ours is `Forecaster.forecast` with normalize="none", the published one `generate` of its
`TimeMoeForPrediction`, in inference mode, with its own (eager) attention and its own cache. Both
take arrays and return arrays, use every core, load the same folder of random parameters and see
the same contexts. Ours chooses how many series run together; the published one gets all at once,
or, where the scores of its attention would take more than half of the memory, the largest power of
two that fits, one part after the other, and a line says so. The first forecasts are compared, and
a line says so if they differ.

Rows are named by the shape, context + horizon x series, and the dtype: `512+96 x8 float32` is ms
per call, and its ratio is our time over the published one: below 1, ours is faster. Then the size
unless it is base. The table's ratio is the published time over ours. Further rows: series and
points forecast per second, peak memory (of the process, or of the GPU since the start), the seconds
of the first call, of which ours compiles (no other row counts it), by how much the two forecasts
differ relative to the largest value, and the share of the machine's peak,

    (2 * A * S + 2 * L * D * S * (S + 1) + 2 * D * P) * B / time / peak.

S is the number of tokens read, of a point or a patch: the context, and what is forecast and fed
back, which is all but the last block. A is the number of activated parameters without heads; each
costs 2 per token read. Attention has two products of 2 * D for every token and each one up to it,
in L layers. A head of p outputs, which are points and their quantiles, is read once per block, so P
is the sum over all blocks. This is the work of the model as
it is published, whatever either side leaves out or does twice. The peak is the rate of one large
matrix product of the same dtype in the same rounds.

A model that comes with the library is a size as well, by its name, and --checkpoint takes the
folder of any other Time-MoE; neither has a published side.

--peer puts the model of others in the place of the published one, at any size: see `peers.py`.
Both then forecast as their users call them: ours with normalize="instance" and the quantiles that
it has heads of, the peer with its nine. Its rows have its name as their reference; with
--peer-feedback median, which spares it most of what it does beyond its first 64 points, that word
too. The two forecasts are of different models, and not compared.

Everything on 2 cores takes hours: leave out what is not asked for, or give a --limit. On a machine
that is not idle the published side's threads wait for each other at every operation, and a line
says that the times are not to be trusted. There `taskset -c 0` gives both sides one thread, and
--clock cpu counts the processor's time of the process in the place of the wall's, but for the first
call.
"""

import argparse
import functools
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float64

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import measure
from benchmarks.peers import FEEDBACKS, GEOMETRIES
from benchmarks.published import forecast_values, reset_peak_memory
from benchmarks.train_step import SIZES, TINY, peak_bytes
from timemoe_jax.checkpoints import bundled
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.checkpoints.published import write_published
from timemoe_jax.config import DTYPES, from_mapping
from timemoe_jax.errors import CheckpointError
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import count_parameters, create_params
from timemoe_jax.models.decoding import horizon_plan
from timemoe_jax.models.time_moe.config import TimeMoeConfig

IDLE_LOAD = 0.25  # per core; of what is called idle
MEMORY_SHARE = 0.5  # of what there is, for the published attention's scores
SCORE_BYTES = 8  # of one score: eager attention holds two arrays of them at once
MADE = (*SIZES, "tiny")  # sizes whose parameters are random; any other is loaded


class Work(NamedTuple):
    """What is forecast from what."""

    size: str  # of MADE, or what `load_model` takes
    context: int
    horizon: int
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        """Of its rows."""
        shape = f"{self.context}+{self.horizon} x{self.batch} {self.dtype}"
        return shape if self.size == "base" else f"{shape} {Path(self.size).name}"

    @property
    def flops(self) -> float:
        """Of one call."""
        return forecast_flops(model_of(self.size), self.batch, self.context, self.horizon)

    @property
    def part(self) -> int:
        """Series that the published side forecasts at once."""
        heads = model_of(self.size).num_attention_heads
        most = MEMORY_SHARE * measure.device_memory()
        fitting = max(1, int(most / (SCORE_BYTES * heads * self.context**2)))
        return min(self.batch, 1 << (fitting.bit_length() - 1))


@functools.cache
def model_of(size: str) -> Any:
    """The architecture of a size."""
    if size not in MADE:
        return load_model(size).config
    if size == "tiny":
        return from_mapping(TimeMoeConfig, TINY)
    return from_mapping(TimeMoeConfig, SIZES[size].get_config().model.to_dict())


def forecast_flops(model: TimeMoeConfig, batch: int, context: int, horizon: int) -> float:
    """Operations that a forecast stands for: see the module's docstring."""
    plan = horizon_plan(horizon, model.horizon_lengths, model.forecast_plan)
    _, active = count_parameters(model)
    outputs = model.hidden_size * (model.point_heads + len(model.quantile_levels))  # of a point
    active -= outputs * sum(model.horizon_lengths)
    read = -(-context // model.patch_size) + sum(plan[:-1]) // model.patch_size
    attention = model.num_hidden_layers * model.hidden_size * read * (read + 1)
    return 2.0 * batch * (active * read + attention + outputs * sum(plan))


class First(NamedTuple):
    """The first call, which compiles and is not timed with the others."""

    point: Float[np.ndarray, "B H"]
    seconds: float


class Ours:
    """Our side of one work.

    Args:
      work: what it is.
      folder: of the model.
      peer: whether it stands beside a peer, not beside the published one.
    """

    def __init__(self, work: Work, folder: str | Path, peer: bool = False):
        self._work = work
        self._values = forecast_values(work.batch, work.context)
        self._forecaster = Forecaster.from_pretrained(folder, work.dtype)
        levels = model_of(work.size).quantile_levels or None
        self._options: dict[str, Any] = {"normalize": "none"}
        if peer:
            self._options = {"normalize": "instance", "quantile_levels": levels}

    def __call__(self) -> Float64[np.ndarray, "B H"]:
        """One call."""
        work = self._work
        forecast = self._forecaster.forecast
        return forecast(self._values, work.horizon, work.context, **self._options).point

    def first(self) -> First:
        """The first call."""
        start = time.perf_counter()
        return First(self(), time.perf_counter() - start)


def model_folder(parent: str, size: str) -> str | Path:
    """A folder that both sides load, made where it is not there: float32 parameters.

    What is not of MADE is read as it is, by ours alone.
    """
    if size not in MADE:
        return size
    path = Path(parent) / size
    if not path.exists():
        model = model_of(size)
        write_published(path, model, create_params(model, seed=0))
    return path


def start_theirs(
    work: Work,
    folder: str | Path,
    args: argparse.Namespace,
    theirs: measure.PublishedProcess | None,
) -> First | None:
    """Builds the forecast of the published side, or of the peer; returns its first call."""
    if theirs is None or not (args.peer or work.size in MADE):
        return None
    asked = work._asdict()
    del asked["size"]
    if args.peer:
        asked |= {"model": args.peer, "feedback": args.peer_feedback}
    else:
        asked |= {"folder": str(folder), "part": work.part}
        if work.part < work.batch:
            print(f"pytorch {work.name}: {work.part} series at a time, for the memory it takes")
    try:
        theirs.ask("clear")
        answer = theirs.ask("forecast", **asked)
    except measure.PublishedError as error:
        print(f"{theirs.name} {work.name}: skipped, {error}")
        return None
    return First(np.array(answer["forecast"]), answer["seconds"])


def difference(work: Work, ours: First, theirs: First) -> float:
    """Of the forecasts, relative to the largest value; a line says so if that is too much."""
    worst = float(np.abs(ours.point - theirs.point).max() / np.abs(theirs.point).max())
    exact = work.dtype == "float32" and jax.default_backend() == "cpu"
    bound = 1e-4 if exact else 5e-2
    if not worst <= bound:
        print(f"{work.name}: its forecasts are {worst:.1e} off those of pytorch")
    return worst


def run(
    work: Work,
    folder: str | Path,
    args: argparse.Namespace,
    peak: measure.MatrixPeak,
    theirs: measure.PublishedProcess | None,
    report: measure.Report,
) -> None:
    """Measures one work, and reports it."""
    their_first = start_theirs(work, folder, args, theirs)
    ours = Ours(work, folder, bool(args.peer))
    reset_peak_memory()  # loading is no part of a forecast
    first = ours.first()
    sides = {"ours": measure.timed(ours, args.clock), "peak": peak.side}
    seconds = {"ours": first.seconds}
    if theirs is not None and their_first is not None:
        if not args.peer:
            worst = difference(work, first, their_first)
            report.add(f"{work.name} difference", worst, "of the largest value")
        sides[theirs.name] = theirs.side("forecast", args.clock)
        seconds[theirs.name] = their_first.seconds
    timings = measure.interleave(sides, args.rounds)
    peak.see(timings.pop("peak"))
    memory = {"ours": peak_bytes() / 1e6}
    if theirs is not None and theirs.name in timings:
        memory[theirs.name] = theirs.ask("memory")["bytes"] / 1e6
    add_rows(work, timings, memory, seconds, peak, report)
    print_line(work, timings, memory, seconds, peak)


def add_rows(
    work: Work,
    timings: dict[str, measure.Timing],
    memory: dict[str, float],  # MB
    first: dict[str, float],  # seconds
    peak: measure.MatrixPeak,
    report: measure.Report,
) -> None:
    """The rows of one work."""
    name, points = work.name, work.batch * work.horizon
    best = {who: timing.best for who, timing in timings.items()}
    ours, who = best["ours"], other(timings)
    theirs = best.get(who)

    def add(what: str, value: float, unit: str, of: float | None) -> None:
        report.add(f"{name}{what}", value, unit, who, of)

    add("", ours * 1e3, "ms/call", theirs and theirs * 1e3)
    add(" series", work.batch / ours, "series/s", theirs and work.batch / theirs)
    add(" throughput", points / ours, "points/s", theirs and points / theirs)
    add(" peak memory", memory["ours"], "MB", memory.get(who))
    add(" first call", first["ours"], "s", first.get(who))
    rate = work.flops / ours
    report.add(f"{name} utilisation", rate / 1e9, "GFLOP/s", "matrix product", peak.rate / 1e9)
    if theirs:
        report.add(f"{who} {name}", theirs * 1e3, "ms/call")
        report.add(f"{who} {name} peak memory", memory[who], "MB")
        report.add(f"{who} {name} first call", first[who], "s")


def other(timings: dict[str, measure.Timing]) -> str:
    """Who is timed beside ours; "" if nobody is."""
    return next((who for who in timings if who != "ours"), "")


def heading(who: str) -> str:
    """The table's, with the other side's name."""
    return (
        f"{'':28} {'ours, spread':>19} {who + ', spread':>19} {'/ours':>6} {'of peak':>7}"
        f" {'series/s':>9} {'points/s':>9} {'MB':>6} {'/ours':>6} {'first s':>8}"
    )


def print_line(
    work: Work,
    timings: dict[str, measure.Timing],
    memory: dict[str, float],
    first: dict[str, float],
    peak: measure.MatrixPeak,
) -> None:
    """The line of one work in the table, under `heading`."""
    ours, theirs = timings["ours"], timings.get(other(timings))
    cells = [f"{work.name:28}", f"{ours.best * 1e3:10.1f} ms +{ours.spread:4.0%}"]
    if theirs:
        cells.append(f"{theirs.best * 1e3:10.1f} ms +{theirs.spread:4.0%}")
        cells.append(f"{theirs.best / ours.best:6.2f}")
        more_memory = f"{memory[other(timings)] / memory['ours']:6.2f}"
    else:
        cells.append(" " * 26)
        more_memory = " " * 6
    cells.append(f"{work.flops / ours.best / peak.rate:7.0%}")
    cells.append(f"{work.batch / ours.best:9.2f} {work.batch * work.horizon / ours.best:9.0f}")
    cells.append(f"{memory['ours']:6.0f} {more_memory} {first['ours']:8.1f}")
    print(*cells, flush=True)


def parse() -> tuple[argparse.Namespace, list[Work]]:
    """The command line, and the works it asks for."""
    parser = argparse.ArgumentParser(
        description="Speed and memory of forecasts.", conflict_handler="resolve"
    )
    measure.add_flags(parser)
    known = (*MADE, *bundled.NAMES)
    parser.add_argument("--sizes", help=f"of {','.join(known)}; default base, tiny if quick")
    parser.add_argument("--checkpoint", help="in the place of --sizes: the folder of any Time-MoE")
    parser.add_argument("--peer", choices=GEOMETRIES, help="in the place of the published one")
    parser.add_argument(
        "--peer-feedback",
        default="quantiles",
        choices=FEEDBACKS,
        help="what its later passes go on from; its own way is the default",
    )
    measure.add_program_flags(parser, "peer", "the peer")
    parser.add_argument("--clock", default="wall", choices=measure.CLOCKS, help="what is timed")
    parser.add_argument("--contexts", help="points read; default 512,3072; 512 if quick")
    parser.add_argument("--horizons", help="points forecast; default 96,720")
    parser.add_argument("--batches", help="series in a call; default 1,8,64; 8 if quick")
    # Instead of the flag of one dtype that the others take.
    parser.add_argument(
        "--dtype", "--dtypes", dest="dtypes", help="default float32,bfloat16; float32 if quick"
    )
    parser.add_argument(
        "--limit", type=float, help="skip what takes longer even at the peak, in seconds per call"
    )
    args = parser.parse_args()
    quick = args.quick
    args.rounds = args.rounds or (2 if quick else 5)
    sizes = measure.names(args.sizes or ("tiny" if quick else "base"))
    if args.checkpoint:
        sizes, known = [args.checkpoint], (*known, args.checkpoint)
    args.dtypes = measure.names(args.dtypes or ("float32" if quick else ",".join(DTYPES)))
    for flag, given, allowed in (("sizes", sizes, known), ("dtypes", args.dtypes, DTYPES)):
        unknown = set(given) - set(allowed)
        if unknown:
            parser.error(f"--{flag} may hold {', '.join(allowed)}, not {', '.join(unknown)}")
    contexts = numbers(parser, "contexts", args.contexts or ("512" if quick else "512,3072"))
    horizons = numbers(parser, "horizons", args.horizons or "96,720")
    batches = numbers(parser, "batches", args.batches or ("8" if quick else "1,8,64"))
    try:
        models = [model_of(size) for size in sizes]
    except CheckpointError as error:
        parser.error(f"--checkpoint: {error}")
    if not all(isinstance(model, TimeMoeConfig) for model in models):
        parser.error(
            f"--checkpoint must hold a Time-MoE, but {args.checkpoint} holds another model"
        )
    most = min(model.max_position_embeddings for model in models)
    if max(contexts) + max(horizons) > most:
        parser.error(f"a context and a horizon may have {most} points together, not more")
    shapes = itertools.product(sizes, args.dtypes, contexts, horizons, batches)
    return args, [Work(s, context, h, batch, dtype) for s, dtype, context, h, batch in shapes]


def numbers(parser: argparse.ArgumentParser, flag: str, text: str) -> list[int]:
    """A flag's comma-separated positive numbers."""
    each = measure.names(text)
    wrong = [name for name in each if not name.isdigit() or int(name) < 1]
    if wrong:
        parser.error(f"--{flag} holds positive numbers, not {', '.join(wrong)}")
    return [int(name) for name in each]


def tell_load() -> None:
    """Says so if other programs run, where the system knows."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > IDLE_LOAD * cores:
        print(f"load: {load:.1f} on {cores} cores before the start, so times are not to be trusted")


def main() -> None:
    """Prints the table, and writes the rows as JSON if asked to."""
    args, works = parse()
    measure.prepare()
    print(f"{measure.describe_machine()}, {', '.join(args.dtypes)}")
    args.dtype = "float32"  # the published side forecasts in every dtype, also on a CPU
    tell_load()
    name = " ".join(filter(None, (args.peer, args.peer_feedback.removeprefix("quantiles"))))
    others = ("peer", name) if args.peer else ("published", "pytorch")
    theirs = measure.start_published(args, *others)
    report = measure.Report(args.json)
    peaks = {dtype: measure.MatrixPeak(dtype, args.quick, args.clock) for dtype in args.dtypes}
    print(heading(others[-1]), flush=True)
    try:
        with tempfile.TemporaryDirectory() as parent:
            for work in works:
                peak = peaks[work.dtype]
                seconds = work.flops / peak.rate
                if args.limit and seconds > args.limit:
                    print(
                        f"{work.name}: skipped, a call takes {seconds:.0f} s at the peak (--limit)"
                    )
                    continue
                folder = model_folder(parent, work.size)
                run(work, folder, args, peak, theirs, report)
    finally:  # a run given up still leaves its rows
        for dtype, peak in peaks.items():
            report.add(f"matrix product {dtype}", peak.rate / 1e9, "GFLOP/s")
            print(f"{'matrix product ' + dtype:28} {peak.rate / 1e9:.1f} GFLOP/s")
        report.write()
        if theirs:
            theirs.close()


if __name__ == "__main__":
    main()
