"""`timemoe forecast` and `timemoe plot`: files of series to forecasts, and to pictures of them."""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

from timemoe_jax.cli.commands import Argument, Command, argument
from timemoe_jax.data.formats.table_layout import TIME_NAMES, ColumnNames
from timemoe_jax.data.series import positive_int
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.files import STEP, read_frame_file, with_steps
from timemoe_jax.forecasting.frames.prepare import FrameInputs, prepare_frame


def parse_coverages(text: str) -> tuple[float, ...]:
    """The quantile levels of intervals given in percent, such as "80,95"."""
    levels: set[float] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        try:
            coverage = float(part)
        except ValueError:
            coverage = 0.0
        if not 0 < coverage < 100:
            raise DataError(f"--levels {text!r}: {part!r} must be above 0 and below 100")
        # Of so many digits that 80 gives 0.1 and 0.9.
        levels |= {round((100 - sign * coverage) / 200, 10) for sign in (-1, 1)}
    return tuple(sorted(levels))


def prepare_file(path: str, args: argparse.Namespace, **covariates: Any) -> FrameInputs:
    """Reads a file, and takes the series out of it.

    The rows of a table of nothing but numbers are numbered, unless a column is one of times.
    """
    names = ColumnNames(args.id_column, args.timestamp_column)
    frame, timestamp = read_frame_file(path, names), args.timestamp_column
    columns = {name: getattr(args, name) for name in ("id_column", "target", "freq")}
    if timestamp is None and not {*TIME_NAMES} & {*frame.columns}:
        frame = with_steps(frame)
        timestamp = STEP if STEP in frame.columns else None
    horizon = positive_int("--horizon", args.horizon)
    return prepare_frame(
        frame, horizon, where=path, timestamp_column=timestamp, **columns, **covariates
    )


def _forecaster(args: argparse.Namespace, levels: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and the options of its forecasts."""
    # Imported here, so that a mistake in the data does not wait for JAX.
    from timemoe_jax.forecasting.forecaster import Forecaster
    from timemoe_jax.runtime import compilation_cache

    compilation_cache.use_by_default()
    options = {"context_length": args.context_length, "intervals": args.intervals}
    options["quantile_levels"] = levels or None
    return Forecaster.from_pretrained(args.checkpoint), options


def run_forecast(args: argparse.Namespace) -> None:
    """Forecasts, and writes what was asked for."""
    levels = parse_coverages(args.levels)
    future = None
    if args.future is not None:
        future = read_frame_file(args.future, ColumnNames(args.id_column, args.timestamp_column))
    prepared = prepare_file(args.data, args, future_df=future, past_covariates=args.past_covariate)
    forecaster, options = _forecaster(args, levels)
    from timemoe_jax.forecasting.frame_forecast import forecast_frame

    names = [f"{args.data}: {name}" for name in prepared.names]
    progress = sys.stderr.isatty()
    forecast = forecast_frame(forecaster.forecast, prepared, names, progress=progress, **options)
    result = forecast.frame
    _report_counts(result.attrs)
    text = result.to_csv(index=False, lineterminator="\n")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        print(f"wrote {args.out}")
    else:
        print(text, end="")
    if args.plot:
        _plot(args.plot, forecast)
    if args.backtest is not None:
        _backtest(args, forecaster, prepared)


def _report_counts(counts: dict[str, Any]) -> None:
    """Says on standard error what of the data was not as regular as it might be."""
    said = [
        f"{counts['filled']:,} times without a row" if counts["filled"] else "",
        f"{counts['missing']:,} rows without a value" if counts["missing"] else "",
        f"{counts['reordered']:,} rows out of order" if counts["reordered"] else "",
    ]
    if any(said):
        print(f"note: {', '.join(filter(None, said))}", file=sys.stderr)
    if counts["ignored_columns"]:
        print(f"note: not used: {', '.join(counts['ignored_columns'])}", file=sys.stderr)


def _plot(path: Path, forecast: Any) -> None:
    from timemoe_jax.forecasting.pictures import draw_forecasts

    names, series = forecast.prepared.names, forecast.prepared.timed.series
    values = [each.values for each in series]
    point, quantiles, levels = forecast.point, forecast.quantiles, forecast.levels
    times = forecast.times
    written = draw_forecasts(path, names, values, point, quantiles, levels, times=times)
    print(f"wrote {written}{_of_more(len(series))}", file=sys.stderr)


def _of_more(count: int) -> str:
    from timemoe_jax.plotting import MAX_PANELS

    return f" (the first {MAX_PANELS} of {count})" if count > MAX_PANELS else ""


def _backtest(args: argparse.Namespace, forecaster: Any, prepared: FrameInputs) -> None:
    """Scores the model on the series as they are, without covariates."""
    scores = forecaster.backtest(
        [each.values for each in prepared.timed.series],
        args.horizon,
        folds=args.backtest,
        season=args.season,
        context_length=args.context_length,
        names=prepared.names,
    )
    print(scores.summary(), file=sys.stdout if args.out else sys.stderr)


def run_plot(args: argparse.Namespace) -> None:
    """Draws what was asked for."""
    levels = parse_coverages(args.levels)
    positive_int("--horizon", args.horizon)
    if args.out is None and args.experts is None:
        raise DataError("there is nothing to draw; give --out, --experts or both")
    files = [prepare_file(path, args) for path in args.data]
    forecaster, options = _forecaster(args, levels)
    if args.out is not None:
        from timemoe_jax.forecasting.pictures import plot_series
        from timemoe_jax.plotting import MAX_PANELS

        every = [series for prepared in files for series in prepared.timed.series]
        drawn = every[:MAX_PANELS]
        written = plot_series(
            args.out,
            functools.partial(forecaster.forecast, horizon=args.horizon, **options),
            [each.values for each in drawn],
            [each.name for each in drawn],
            holdout=args.horizon,
            times=[each.timestamps for each in drawn],
        )
        print(f"wrote {written}{_of_more(len(every))}")
    if args.experts is not None:
        from timemoe_jax.evaluation.expert_pictures import plot_expert_usage
        from timemoe_jax.evaluation.expert_usage import expert_usage

        shares = {
            Path(path).stem: expert_usage(
                forecaster, prepared.series, args.context_length, names=prepared.names
            )
            for path, prepared in zip(args.data, files, strict=True)
        }
        print(f"wrote {plot_expert_usage(args.experts, shares)}")


def _shared(levels: str) -> tuple[Argument, ...]:
    """What both commands take: which model forecasts how much, of which columns."""
    model = "a bundled model's name, a run's workdir, a checkpoint or a published folder"
    length = "read at most so many last points; by default as many as the model holds"
    source = "where they come from: heads of the model, calibrated heads, conformal, or auto"
    return (
        argument("--checkpoint", required=True, help=model),
        argument("--horizon", type=int, required=True, help="points to forecast"),
        argument("--context-length", type=int, help=length),
        argument("--id-column", help="the column that tells series apart"),
        argument("--timestamp-column", help="the column of times"),
        argument("--target", action="append", help="a column of values; may come again"),
        argument("--freq", help="the step between times, such as h or MS"),
        argument("--levels", default=levels, help="intervals in percent, such as 80,95"),
        argument("--intervals", default="auto", help=source),
    )


_SCORED = "score K earlier horizons beside seasonal naive"
COMMANDS = (
    Command(
        "forecast",
        "forecast the series of a CSV or Parquet file",
        run_forecast,
        (
            argument("data", help="a CSV or Parquet file"),
            *_shared(levels=""),
            argument("--future", help="a file of covariates at the times to forecast"),
            argument(
                "--past-covariate",
                action="append",
                default=[],
                help="a column of DATA; may come again",
            ),
            argument("--out", type=Path, help="the CSV to write; by default standard output"),
            argument("--plot", type=Path, help="a PNG to write: context, forecast, intervals"),
            argument("--backtest", type=int, metavar="K", help=_SCORED),
            argument("--season", type=int, help="steps of a season; by default it is found"),
        ),
        "In a long table the columns unique_id/ds/y, item_id/timestamp/target and "
        "id/timestamp/target are recognized; in any other every numeric column is a series.",
    ),
    Command(
        "plot",
        "draw the forecast of the last horizon beside what came, or which experts work",
        run_plot,
        (
            argument("data", nargs="+", help="CSV or Parquet files"),
            *_shared(levels="80"),
            argument("--out", type=Path, help="the picture of the forecasts"),
            argument("--experts", type=Path, help="the picture of the experts"),
        ),
        "The last HORIZON points of each series are forecast from what is before them, and drawn "
        "with intervals; --experts draws which experts each layer of the model uses, a panel for "
        "each file.",
    ),
)
