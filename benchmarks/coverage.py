"""How often intervals hold the truth, how wide they are, and their pinball loss.

python benchmarks/coverage.py --data-dir data --checkpoint out/base

Series are the channels of ETTh1, ETTh2, ETTm1, ETTm2 and Weather, scaled by their train split.
Evenly spread windows of the test split are forecast, each from the points before it alone: the
point from the last --context of them (fewer where a model has no room for as many), the intervals
by each of --methods: `conformal` calibrates on rolling origins among the last --history points,
`heads` are the quantiles of a model that was trained with heads for them, and `calibrated` the
same, calibrated on those origins. Beside each model is seasonal naive, with conformal intervals,
and the reference of the pinball loss: the quantiles of its own changes over a season,
`baselines.seasonal_naive_quantiles`. The loss is the mean over the levels 0.025, 0.1, 0.2, ... 0.9,
0.975. Widths and losses are in deviations of the train split; the reference of a coverage is the
nominal one. Windows overlap in what they forecast, so chance is larger than their number says:
beside each coverage is the range over the channels.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Float64

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Report, describe_machine, names
from timemoe_jax.data.samples import sample_path
from timemoe_jax.errors import DataError, TimeMoeError
from timemoe_jax.evaluation.benchmarks import (
    Benchmark,
    BenchmarkWindows,
    benchmark_windows,
    find_dataset,
    load_benchmark,
)
from timemoe_jax.forecasting.contexts import Context
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.forecasting.intervals.conformal import conformal_offsets
from timemoe_jax.forecasting.scoring.baselines import seasonal_naive, seasonal_naive_quantiles
from timemoe_jax.forecasting.scoring.metrics import coverage, mean_width, pinball_loss
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.model import TimeMoe

DATASETS = "ETTh1,ETTh2,ETTm1,ETTm2,weather"
SAMPLE = "greensboro_hourly"  # what --quick measures without data
METHODS = "conformal,heads,calibrated"
LEVELS = (0.025, *(tenth / 10 for tenth in range(1, 10)), 0.975)
CONFIDENCES = {80: (0.1, 0.9), 95: (0.025, 0.975)}
BATCH = 64  # windows whose contexts are in memory at once
# As small as a model can be and still route: the weights are random, so that its forecasts are
# poor, and the coverage says whether intervals are honest about that.
TINY = TimeMoeConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_experts=4,
    horizon_lengths=(1, 8, 32),
    quantile_levels=(0.025, 0.5, 0.975),
)

# contexts [B, history] and a horizon, to quantiles [B, horizon, Q] of `LEVELS`.
Method = Callable[[np.ndarray, int], np.ndarray]


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="where the CSVs are, in any sub-folder")
    parser.add_argument("--datasets", default=DATASETS, help="separated by commas")
    parser.add_argument("--checkpoint", action="append", default=[], help="may be given again")
    parser.add_argument("--methods", default=METHODS, help="separated by commas")
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--context", type=int, default=512, help="points that a forecast reads")
    parser.add_argument("--history", type=int, default=4096, help="points that a window may use")
    parser.add_argument("--windows", type=int, default=210, help="of each dataset")
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    unknown = set(names(args.methods)) - set(names(METHODS))
    if unknown:
        parser.error(f"--methods {args.methods!r}: there are {METHODS}")
    if args.quick:
        args.context, args.history, args.windows = 128, 768, min(args.windows, 14)
    return args


def conformal_naive(season: int, length: int) -> Method:
    """Seasonal naive, with quantiles calibrated on its earlier errors."""

    def predict(contexts: list[Context], horizon: int) -> np.ndarray:
        points = [np.append(c.values, np.full(c.gap, np.nan)) for c in contexts]
        rows = [seasonal_naive(p[None], horizon, min(season, len(p))) for p in points]
        return np.concatenate(rows)

    def method(contexts: np.ndarray, horizon: int) -> np.ndarray:
        calibrated = conformal_offsets(list(contexts), horizon, LEVELS, predict, length)
        recent = [Context.of(context, length, "a window") for context in contexts]
        return calibrated.quantiles(predict(recent, horizon))

    return method


def model_intervals(forecaster: Forecaster, length: int, intervals: str) -> Method:
    """The quantiles of a model, from where `intervals` says."""

    def method(contexts: np.ndarray, horizon: int) -> np.ndarray:
        out = forecaster.forecast(
            contexts, horizon, context_length=length, quantile_levels=LEVELS, intervals=intervals
        )
        assert out.quantiles is not None
        return out.quantiles

    return method


def random_forecaster() -> Forecaster:
    """A tiny model that was never trained."""
    return Forecaster(TINY, nnx.state(TimeMoe(TINY, rngs=nnx.Rngs(0)), nnx.Param))


def methods_of(
    args: argparse.Namespace, forecasters: Mapping[str, Forecaster], season: int
) -> dict[str, Method]:
    """What is measured on a dataset, by name."""
    found = {}
    for name, forecaster in forecasters.items():
        length = min(args.context, forecaster.usable_context(None, args.horizon))
        if "conformal" in names(args.methods):
            found[f"{name} conformal"] = model_intervals(forecaster, length, "conformal")
        own = forecaster.config.quantile_levels
        if own and (own[0] > LEVELS[0] or own[-1] < LEVELS[-1]):
            print(f"{name} heads: skipped, they reach from {own[0]:g} to {own[-1]:g} only")
            continue
        for kind in ("heads", "calibrated") if own else ():
            if kind in names(args.methods):
                found[f"{name} {kind}"] = model_intervals(forecaster, length, kind)
    return {**found, "seasonal naive conformal": conformal_naive(season, args.context)}


def measure(
    windows: BenchmarkWindows, method: Method
) -> tuple[Float64[np.ndarray, "N H"], Float64[np.ndarray, "N H Q"], np.ndarray]:
    """The targets, the quantiles and the channel of each window."""
    targets, quantiles, channels = [], [], []
    for contexts, target, channel, _ in windows.batches(BATCH):
        quantiles.append(method(contexts, windows.horizon))
        targets.append(target)
        channels.append(channel)
    return np.concatenate(targets), np.concatenate(quantiles), np.concatenate(channels)


def add_rows(
    report: Report,
    title: str,
    scored: tuple[np.ndarray, np.ndarray, np.ndarray],
    baseline_loss: float,
) -> None:
    """Keeps and prints the coverage and width of each confidence, and the pinball loss."""
    target, quantiles, channels = scored
    texts = []
    for percent, (low, high) in CONFIDENCES.items():
        lower, upper = (quantiles[..., LEVELS.index(level)] for level in (low, high))
        share = coverage(target, lower, upper)
        width = mean_width(lower, upper)
        each = [
            coverage(target[channels == c], lower[channels == c], upper[channels == c])
            for c in np.unique(channels)
        ]
        nominal = percent / 100
        report.add(f"{title} coverage {percent}", share, "share", "nominal", nominal)
        report.add(f"{title} width {percent}", width, "deviations")
        texts.append(f"{share:7.3f} ({min(each):.2f} to {max(each):.2f}) {width:8.3f}")
    loss = pinball_loss(target, quantiles, LEVELS)
    reference = "seasonal naive quantiles"
    report.add(f"{title} pinball", loss, "deviations", reference, baseline_loss)
    print(f"{title:48s} {'  '.join(texts)} {loss:8.4f} {loss / baseline_loss:7.3f}")


def run_dataset(
    benchmark: Benchmark,
    forecasters: Mapping[str, Forecaster],
    args: argparse.Namespace,
    report: Report,
) -> None:
    """All rows of a dataset."""
    windows = benchmark_windows(benchmark, args.history, args.horizon, max_windows=args.windows)
    season = benchmark.season

    def seasonal_quantiles(contexts: np.ndarray, horizon: int) -> np.ndarray:
        return seasonal_naive_quantiles(contexts, horizon, season, LEVELS)

    scored = measure(windows, seasonal_quantiles)
    loss = pinball_loss(scored[0], scored[1], LEVELS)
    suffix = f"{benchmark.name} {args.horizon}"
    add_rows(report, f"{suffix} seasonal naive quantiles", scored, loss)
    for name, method in methods_of(args, forecasters, season).items():
        start = time.perf_counter()
        add_rows(report, f"{suffix} {name}", measure(windows, method), loss)
        print(f"  {len(windows)} windows in {time.perf_counter() - start:.1f} s", file=sys.stderr)


def find_benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    """Those that are there; a line for each that is not."""
    if args.quick and not args.data_dir:
        print(f"{args.datasets}: skipped, --data-dir is not given; in their place {SAMPLE}")
        return [load_benchmark(sample_path(SAMPLE))]
    found = []
    for name in names(args.datasets):
        try:
            found.append(load_benchmark(find_dataset(name, args.data_dir)))
        except DataError as error:
            print(f"{name}: skipped, {error}")
    return found


def main() -> None:
    """Prints and writes the rows."""
    args = parse()
    report = Report(args.json)
    print(describe_machine())
    forecasters = {Path(path).name: Forecaster.from_pretrained(path) for path in args.checkpoint}
    if not forecasters and args.quick:
        forecasters = {"random": random_forecaster()}
    if not forecasters:
        print("no --checkpoint: seasonal naive alone is measured")
    header = (
        "coverage (channels) and width at 80, and at 95; pinball, over seasonal naive quantiles"
    )
    print(f"{'':48s} {header}")
    for benchmark in find_benchmarks(args):
        run_dataset(benchmark, forecasters, args, report)
        report.write()
    report.write()


if __name__ == "__main__":
    try:
        main()
    except TimeMoeError as error:
        raise SystemExit(str(error)) from None
