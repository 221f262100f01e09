"""A linear map from context to future, fitted to what a model trains on, beside that model.

python benchmarks/linear_map.py --path PATH_TO_CORPUS --checkpoint nano

One matrix, fitted by least squares with a ridge to windows of the config's own training mixture,
forecasts its held-out sources; `timemoe_jax.evaluation.held_out.scoring` scores it and the
checkpoint on the same windows. Simple linear maps are hard to beat at long horizons
(arXiv 2205.13504), and the fit takes seconds: a model that has read as many windows and forecasts
worse has not been trained well.

Contexts and futures are z-scored by the context and cut at 10 deviations; a window counts
1 / (1 + the mean square of its future), so that those that leave their context far behind do not
decide the map; flat contexts and windows with missing points are left out, and counted. The ridge
is in units of the mean square of a context's points.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from jaxtyping import Float64

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Report, describe_machine, names
from timemoe_jax.cli.config_files import load_config
from timemoe_jax.config import from_mapping
from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.pipeline import batches as pipeline
from timemoe_jax.data.pipeline.training_data import open_training_data
from timemoe_jax.errors import DataError, TimeMoeError
from timemoe_jax.evaluation.held_out.scoring import HeldOutScores, score
from timemoe_jax.evaluation.held_out.windows import choose_windows, open_held_out
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.forecasting.scoring.linear_map import LinearMap, Products, usable
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.training.config import RunConfig

BATCH = 64
UNITS = {"mse": "variances", "mae": "deviations"}  # of each context


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/time_moe_nano.py", help="whose data")
    parser.add_argument("--path", help="series to train on, instead of the config's data.path")
    parser.add_argument("--checkpoint", help="a folder or a bundled name to compare with")
    parser.add_argument("--context", type=int, default=512, help="points that a forecast reads")
    parser.add_argument("--horizons", default="96,336,720", help="points to forecast")
    parser.add_argument("--windows", type=int, default=4000, help="to fit the map to")
    parser.add_argument("--ridge", type=float, default=1.0)
    parser.add_argument("--max-windows", type=int, default=60, help="to score, of each source")
    parser.add_argument("--quick", action="store_true", help="generated series; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args(argv)
    try:
        args.horizons = tuple(sorted(int(part) for part in names(args.horizons)))
    except ValueError:
        parser.error(f"--horizons must be whole numbers, but is {args.horizons!r}")
    if args.quick:
        args.config, args.path, args.checkpoint = "configs/smoke.py", None, None
        args.context, args.horizons, args.windows = 128, (24, 48), 500
    for name, value in (*vars(args).items(), *(("horizons", h) for h in args.horizons)):
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, but is {value}")
    return args


class LinearForecaster:
    """Forecasts by one map; has of `Forecaster` what `held_out.score` asks for."""

    def __init__(self, matrix: Float64[np.ndarray, "T H"]):
        self.map, self.matrix = LinearMap(matrix), matrix
        longest = (self.matrix.shape[1],)
        self.config = TimeMoeConfig(horizon_lengths=longest, forecast_plan="covering")

    def usable_context(self, context_length: int, horizon: int) -> int:
        """The context's length: others are refused."""
        if context_length != len(self.matrix) or horizon > self.matrix.shape[1]:
            raise DataError(
                f"the map is of {len(self.matrix)} points to {self.matrix.shape[1]}, not of "
                f"{context_length} to {horizon}"
            )
        return context_length

    def forecast(
        self, context: Float64[np.ndarray, "B T"], horizon: int, **_: Any
    ) -> SimpleNamespace:
        """The next points in `point` [B, horizon]."""
        return SimpleNamespace(point=self.map.forecast(context, horizon))


def fit(
    data: DataConfig, seed: int, context: int, horizon: int, count: int, ridge: float
) -> tuple[LinearForecaster, int]:
    """The map fitted to `count` windows of a training mixture, and how many were left out."""
    data = dataclasses.replace(
        data, length=context, future=horizon, context_min=min(data.context_min, context)
    )
    opened = open_training_data(data, seed=seed, num_steps=-(-count // BATCH), batch_size=BATCH)
    batches = pipeline.make_dataset(
        opened.train,
        batch_size=BATCH,
        mixture=opened.mixture,
        seed=seed,
        shuffle=True,
        repeat=True,
        num_threads=0,
    )
    products = Products(context, horizon)
    left_out = 0
    for batch in batches:
        values = np.where(batch["mask"], batch["values"], np.nan).astype(np.float64)
        whole = usable(values[:, : context + horizon], context)
        left_out += len(values) - len(whole)
        products.add(whole[: count - products.count])
        if products.count >= count:
            break
        if left_out > 20 * count:
            raise DataError(
                f"{left_out:,} windows are flat or incomplete, {products.count:,} are not"
            )
    return LinearForecaster(products.solve(ridge).matrix), left_out


def show(found: dict[str, HeldOutScores], horizons: tuple[int, ...], report: Report) -> None:
    """A line for each method and horizon; the map's errors are the reference."""
    print(f"\n{'':24s}" + "".join(f"{f'MSE / MAE at {h}':>22s}" for h in horizons))
    linear = found["linear map"].as_dict()["average"]
    for name, scores in found.items():
        average = scores.as_dict()["average"]
        rows = {name: "model"}
        if name == "linear map":
            rows |= {"last value": "naive", "context's mean": "context_mean"}
        for title, method in rows.items():
            cells = [average[str(h)][method] for h in horizons]
            print(f"{title:24s}" + "".join(f"{c['mse']:13.4f} / {c['mae']:.4f}" for c in cells))
            for h, cell in zip(horizons, cells, strict=True):
                for kind, unit in UNITS.items():
                    of = None if title == "linear map" else linear[str(h)]["model"][kind]
                    row = f"{title} {kind.upper()} at {h}"
                    report.add(row, cell[kind], unit, "linear map", of)


def main(argv: list[str] | None = None) -> None:
    """Prints and writes the rows."""
    args = parse(argv)
    report = Report(args.json)
    print(describe_machine())
    config = load_config(args.config)
    if args.path:
        config.data.path = args.path
    run = from_mapping(RunConfig, config)
    source, parts = open_held_out(run.data, run.seed)
    held_out = choose_windows(source, parts, args.context, args.horizons, args.max_windows)
    linear, left_out = fit(
        run.data, run.seed, args.context, args.horizons[-1], args.windows, args.ridge
    )
    print(
        f"a map of {args.context} to {args.horizons[-1]} points fitted to {args.windows:,} windows "
        f"of {args.config}; {left_out:,} flat or incomplete left out"
    )
    found = {"linear map": score(cast(Forecaster, linear), held_out)}
    if args.checkpoint:
        forecaster = Forecaster.from_pretrained(args.checkpoint)
        found[Path(args.checkpoint).name] = score(forecaster, held_out, progress=True)
    show(found, args.horizons, report)
    report.write()


if __name__ == "__main__":
    try:
        main()
    except (TimeMoeError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
