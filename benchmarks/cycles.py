"""Forecasts of cycles of many lengths, beside seasonal naive that knows the length.

python benchmarks/cycles.py --checkpoint mini,nano

A model that knows only the days and weeks of its training sees no season of another length. Series
are a shape that recurs, and noise of a tenth of its deviation. The shapes are a sine; days, half of
each dark, with a strength of its own; and values without any order, which only a copy can say. The
error is the mean absolute one over that of the values a cycle before, or as many cycles as the
horizon needs. Below 1 is better; 0.7 is what knowing a sine but for its noise gives.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float64

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Report, describe_machine, names
from timemoe_jax.errors import TimeMoeError
from timemoe_jax.forecasting.forecaster import Forecaster

SHAPES = ("sine", "days", "disorder")
NOISE = 0.1


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", default="mini", help="folders or bundled names, with commas"
    )
    parser.add_argument("--periods", default="7,24,30,72,100,144,288", help="points of a cycle")
    parser.add_argument("--context", type=int, default=1024, help="points that a forecast reads")
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--count", type=int, default=64, help="series of each shape and period")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args(argv)
    for name in ("context", "horizon", "count"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be positive, but is {getattr(args, name)}")
    try:
        args.periods = tuple(int(period) for period in names(args.periods))
    except ValueError:
        parser.error(f"--periods must be whole numbers, but is {args.periods!r}")
    if args.quick:
        args.count, args.periods = min(args.count, 8), args.periods[:2]
    longest = args.context - args.horizon
    wrong = [p for p in args.periods if not 2 <= p <= longest]
    if wrong:
        parser.error(
            f"--periods: {wrong[0]} is not from 2 to {longest}, --context less --horizon, so that "
            "the last cycles are known"
        )
    return args


def cycles(
    rng: np.random.Generator, shape: str, period: int, count: int, length: int
) -> Float64[np.ndarray, "count length"]:
    """Series of a shape of SHAPES, each from a phase of its own."""
    t = np.arange(length) + rng.integers(period, size=(count, 1))
    wave = np.sin(2 * np.pi * t / period)
    if shape == "days":
        strength = np.abs(1 + 0.4 * rng.standard_normal((count, t.max() // period + 1)))
        wave = np.maximum(wave, 0) * np.take_along_axis(strength, t // period, axis=1)
    elif shape == "disorder":
        wave = np.take_along_axis(rng.standard_normal((count, period)), t % period, axis=1)
    return wave + NOISE * wave.std() * rng.standard_normal(wave.shape)


def last_cycle(
    contexts: Float64[np.ndarray, "N T"], period: int, horizon: int
) -> Float64[np.ndarray, "N H"]:
    """The values as many whole cycles back as the horizon has, so that all of them are known."""
    back = period * -(-horizon // period)
    return contexts[:, contexts.shape[1] - back :][:, :horizon]


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    args = parse(argv)
    report, checkpoints = Report(args.json), names(args.checkpoint)
    print(describe_machine())
    models = {name: Forecaster.from_pretrained(name) for name in checkpoints}
    print(f"\n{'shape':10}{'period':>8}" + "".join(f"{name[-12:]:>14}" for name in models))
    for shape in SHAPES:
        for period in args.periods:
            rng = np.random.default_rng(args.seed)
            series = cycles(rng, shape, period, args.count, args.context + args.horizon)
            contexts, truth = np.split(series, [args.context], axis=1)
            off = np.abs(last_cycle(contexts, period, args.horizon) - truth).mean()
            line = f"{shape:10}{period:8}"
            for name, model in models.items():
                error = np.abs(model.forecast(contexts, args.horizon).point - truth).mean()
                report.add(f"{shape} {period} {name}", error, "MAE", "seasonal naive", off)
                line += f"{error / off:14.2f}"
            print(line, flush=True)
    report.write()


if __name__ == "__main__":
    try:
        main()
    except TimeMoeError as error:
        raise SystemExit(str(error)) from None
