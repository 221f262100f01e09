"""What reading variates together gains where they are coupled, and costs where they are not.

python benchmarks/mixing.py

Two synthetic tables of six variates. In "coupled" there are two processes, each of which three
variates show: the first at once, the next ones 8 and 16 points later, under noise; what comes in a
later one was there before. In "independent" all six are processes of their own. On each a small
Time Tracker is trained apart, and fine-tuned from there three times with `Forecaster.fit`: apart,
by the graph, and with all variates linked. All forecast the last fifth of the table, which nothing
was trained or chosen by, 8 points at a time.

Rows: the mean squared error, in deviations of the variates, of each model that mixes, with that
of the one apart as the reference, for each table and seed, which takes some minutes of a core.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import known_ahead, measure
from timemoe_jax import Forecaster
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig

POINTS, HELD_OUT = known_ahead.ROWS, known_ahead.HELD_OUT
CONTEXT, HORIZON = known_ahead.CONTEXT, known_ahead.HORIZON
LAG, NOISE = 8, 0.2
TABLES = ("coupled", "independent")


def process(rng: np.random.Generator, period: float, count: int) -> Float64[np.ndarray, " count"]:
    """An autoregressive process of order two that swings with a period, of deviation 1."""
    radius = 0.9
    first, second = 2 * radius * np.cos(2 * np.pi / period), -(radius**2)
    values = np.zeros(count + 200)
    noise = rng.normal(size=len(values))
    for t in range(2, len(values)):
        values[t] = first * values[t - 1] + second * values[t - 2] + noise[t]
    kept = values[200:]
    return kept / kept.std()


def table(name: str, seed: int) -> Float64[np.ndarray, "6 T"]:
    """Six variates."""
    rng = np.random.default_rng(seed)
    if name == "independent":
        return np.stack([process(rng, p, POINTS) for p in (40, 40, 20, 12, 7, 7)])
    rows = []
    for period in (40, 7):
        source = process(rng, period, POINTS + 2 * LAG)
        for lag in (0, LAG, 2 * LAG):
            late = source[2 * LAG - lag : len(source) - lag]
            rows.append(late + NOISE * rng.normal(size=POINTS))
    return np.stack(rows)


def first_stage(path: Path, steps: int, seed: int) -> RunConfig:
    """A Time Tracker of patches of 8 points, on variates apart."""
    run = known_ahead.first_stage(path, steps, seed)
    model: Any = run.model
    return dataclasses.replace(
        run,
        model=dataclasses.replace(model, graph_points=48),
        train=dataclasses.replace(run.train, batch_size=64),
    )


def error(forecaster: Forecaster, values: Float64[np.ndarray, "6 T"]) -> float:
    """The mean squared error over the end of a table, 8 points at a time."""
    begins = range(POINTS - HELD_OUT, POINTS - HORIZON + 1, HORIZON)
    point = forecaster.forecast(np.stack([values[:, t - CONTEXT : t] for t in begins]), HORIZON)
    truth = np.stack([values[:, t : t + HORIZON] for t in begins])
    return float(np.mean((point.point - truth) ** 2))


def compare(name: str, seed: int, steps: int) -> dict[str, float]:
    """The errors after the second stage, by how variates read each other in it."""
    values = table(name, seed)
    values /= values[:, :-HELD_OUT].std(axis=1, keepdims=True)
    past = values[:, :-HELD_OUT]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        header = ",".join("abcdef")
        np.savetxt(path, past.T, delimiter=",", header=header, comments="")
        train.run(first_stage(path, steps, seed), Path(folder) / "first")
        start = Forecaster.from_pretrained(Path(folder) / "first", disk_cache=False)
    found = {}
    for mixing in ("none", "graph", "all"):
        tuned = start.fit(
            past[None],
            HORIZON,
            mixing=mixing,
            context_length=CONTEXT,
            learning_rate=2e-3,
            num_steps=2 * steps,
            progress=False,
            seed=seed,
        )
        print(f"{name}, seed {seed}, {mixing}:\n{tuned.tuning}", flush=True)
        found[mixing] = error(tuned, values)
    return found


def main() -> None:
    """Runs the comparison from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed and few updates")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--steps", type=int, default=400, help="of the first stage (default 400)")
    args = parser.parse_args()
    report = measure.Report(args.json)
    steps, seeds = (20, 1) if args.quick else (args.steps, args.seeds)
    for name in TABLES[:1] if args.quick else TABLES:
        for seed in range(seeds):
            errors = compare(name, seed, steps)
            for mixing in ("graph", "all"):
                row = f"{name}, seed {seed}, {mixing}"
                report.add(row, errors[mixing], "MSE", "apart", errors["none"])
                print(f"{row}: {errors[mixing]:.4f}, apart {errors['none']:.4f}", flush=True)
    report.write()


if __name__ == "__main__":
    main()
