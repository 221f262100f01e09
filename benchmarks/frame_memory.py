"""The memory that a forecast of a large data frame takes, beside the frame itself.

python benchmarks/frame_memory.py

A wide frame of 1,000 hourly series and 100,000 rows (0.8 GB), some of its values missing, and the
same rows in long form with --long, are forecast by `Forecaster.predict_df` with a small model of
random weights. The most memory that the process had resident while it did so is reported over what
it had before: the frame, the parameters and the libraries. The reference is the size of the frame.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Report, describe_machine
from benchmarks.published import peak_memory, reset_peak_memory

HORIZON = 24


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--points", type=int, default=100_000, help="of each series")
    parser.add_argument("--long", action="store_true", help="a row for each value")
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    if args.quick:
        args.series, args.points = 50, 20_000
    return args


def make_frame(series: int, points: int, long: bool) -> "object":
    """Random walks with a hundredth of the values missing."""
    import pandas as pd

    rng = np.random.default_rng(0)
    times = pd.date_range("2010-01-01", periods=points, freq="h")
    values = np.empty((series, points))
    for row in values:  # one at a time: what makes the frame is not to count
        row[:] = rng.standard_normal(points).cumsum()
        row[rng.random(points) < 0.01] = np.nan
    if not long:
        frame = pd.DataFrame(values.T, columns=[f"s{i}" for i in range(series)], copy=False)
        frame.insert(0, "timestamp", times)
        return frame
    ids = pd.Categorical.from_codes(
        np.repeat(np.arange(series), points), [f"s{i}" for i in range(series)]
    )
    stamps = np.tile(times.to_numpy(), series)
    return pd.DataFrame({"unique_id": ids, "ds": stamps, "y": values.reshape(-1)}, copy=False)


def main() -> None:
    """Forecasts the frame and reports."""
    args = parse()
    report = Report(args.json)
    print(describe_machine())
    from timemoe_jax.forecasting.forecaster import Forecaster
    from timemoe_jax.models.base import create_params
    from timemoe_jax.models.time_moe.config import TimeMoeConfig

    config = TimeMoeConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        horizon_lengths=(1, 8),
        max_position_embeddings=512 + HORIZON,
    )
    forecaster = Forecaster(config, create_params(config, seed=0))
    forecaster.forecast(np.sin(np.arange(600.0)), HORIZON)  # so that the libraries are loaded
    frame = make_frame(args.series, args.points, args.long)
    size = int(frame.memory_usage(index=False, deep=False).sum()) / 1e6  # type: ignore[attr-defined]
    reset_peak_memory()
    before, start = peak_memory(), time.perf_counter()
    out = forecaster.predict_df(frame, HORIZON)
    seconds = time.perf_counter() - start
    added = (peak_memory() - before) / 1e6
    assert len(out) == args.series * HORIZON
    name = f"{args.series} x {args.points} {'long' if args.long else 'wide'}"
    report.add(f"{name} frame", size, "MB")
    report.add(f"{name} peak over it", added, "MB", "frame", size)
    report.add(f"{name} time", seconds, "s")
    print(f"{name}: frame {size:,.0f} MB, peak {added:,.0f} MB over it, {seconds:.1f} s")
    report.write()


if __name__ == "__main__":
    main()
