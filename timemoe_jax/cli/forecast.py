"""`timemoe forecast` and `timemoe plot`: files of series to forecasts, and to pictures of them."""

import argparse
import sys
from pathlib import Path
from typing import Any

from timemoe_jax.data.formats.table_layout import TIME_NAMES, ColumnNames
from timemoe_jax.data.series import positive_int
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.files import STEP, read_frame_file, with_steps
from timemoe_jax.forecasting.frames.prepare import FrameInputs, prepare_frame


def add_forecast(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser(
        "forecast",
        help="forecast the series of a CSV or Parquet file",
        description=(
            "Forecast the series of a CSV or Parquet file. In a long table the columns "
            "unique_id/ds/y, item_id/timestamp/target and id/timestamp/target are recognised; in "
            "any other every numeric column is a series."
        ),
    )
    parser.add_argument("data", help="a CSV or Parquet file")
    add_model(parser)
    add_columns(parser)
    parser.add_argument("--levels", default="", help="intervals in percent, such as 80,95")
    parser.add_argument(
        "--intervals",
        default="auto",
        help="where they come from: heads of the model, calibrated heads, conformal, or auto",
    )
    parser.add_argument("--future", help="a file of covariates at the times to forecast")
    parser.add_argument(
        "--past-covariate", action="append", default=[], help="a column of DATA; may come again"
    )
    parser.add_argument("--out", type=Path, help="the CSV to write; by default standard output")
    parser.add_argument("--plot", type=Path, help="a PNG to write: context, forecast, intervals")
    parser.add_argument(
        "--backtest", type=int, metavar="K", help="score K earlier horizons beside seasonal naive"
    )
    parser.add_argument("--season", type=int, help="steps of a season; by default it is found")
    parser.set_defaults(run=run_forecast)


def add_plot(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser(
        "plot",
        help="draw the forecast of the last horizon beside what came, or which experts work",
        description=(
            "Forecast the last HORIZON points of each series from what is before them, and draw "
            "both, with intervals; with --experts, also which experts each layer of the model "
            "uses, a panel for each file."
        ),
    )
    parser.add_argument("data", nargs="+", help="CSV or Parquet files")
    add_model(parser)
    add_columns(parser)
    parser.add_argument("--levels", default="80", help="intervals in percent, such as 80,95")
    parser.add_argument("--intervals", default="auto", help="heads, calibrated, conformal or auto")
    parser.add_argument("--out", type=Path, help="the picture of the forecasts")
    parser.add_argument("--experts", type=Path, help="the picture of the experts")
    parser.set_defaults(run=run_plot)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds what says which model forecasts how much."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a bundled model's name, a run's workdir, a checkpoint or a published folder",
    )
    parser.add_argument("--horizon", type=int, required=True, help="points to forecast")
    parser.add_argument(
        "--context-length",
        type=int,
        help="read at most so many last points; by default as many as the model holds",
    )


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Adds what says which columns are which."""
    parser.add_argument("--id-column", help="the column that tells series apart")
    parser.add_argument("--timestamp-column", help="the column of times")
    parser.add_argument("--target", action="append", help="a column of values; may come again")
    parser.add_argument("--freq", help="the step between times, such as h or MS")


def columns_of(args: argparse.Namespace) -> dict[str, Any]:
    """The same as arguments of `Forecaster.predict_df`."""
    return {
        "id_column": args.id_column,
        "timestamp_column": args.timestamp_column,
        "target": args.target,
        "freq": args.freq,
    }


def parse_coverages(text: str) -> tuple[float, ...]:
    """The quantile levels of intervals given as "80,95".

    Raises:
      DataError: a coverage is not a number above 0 and below 100.
    """
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


def load_frame(path: str, args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Reads a data frame, and says which of its columns are which.

    The rows of a table of nothing but numbers are numbered, unless a column is one of times.
    """
    columns = columns_of(args)
    frame = read_frame_file(path, ColumnNames(args.id_column, args.timestamp_column))
    if args.timestamp_column is None and not {*TIME_NAMES} & {*frame.columns}:
        frame = with_steps(frame)
        columns["timestamp_column"] = STEP if STEP in frame.columns else None
    return frame, columns


def run_forecast(args: argparse.Namespace) -> None:
    """Forecasts, and writes what was asked for."""
    levels = parse_coverages(args.levels)
    frame, columns = load_frame(args.data, args)
    names = ColumnNames(args.id_column, args.timestamp_column)
    future = None if args.future is None else read_frame_file(args.future, names)
    given = prepare_frame(
        frame,
        positive_int("--horizon", args.horizon),
        future_df=future,
        past_covariates=args.past_covariate,
        where=args.data,
        **columns,
    )
    titles = [f"{args.data}: {name}" for name in given.names]
    # Imported here, so that a mistake above does not wait for JAX.
    from timemoe_jax.forecasting.forecaster import Forecaster
    from timemoe_jax.runtime import compilation_cache

    compilation_cache.use()
    forecaster = Forecaster.from_pretrained(args.checkpoint)
    out = forecaster.forecast(
        given.series,
        args.horizon,
        quantile_levels=levels or None,
        context_length=args.context_length,
        intervals=args.intervals,
        names=titles,
        progress=sys.stderr.isatty(),
    )
    point = given.complete(out.point)
    quantiles = None if out.quantiles is None else given.complete(out.quantiles)
    result = given.to_frame(point, quantiles, levels)
    _report_counts(result.attrs)
    text = result.to_csv(index=False, lineterminator="\n")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        print(f"wrote {args.out}")
    else:
        print(text, end="")
    if args.plot:
        _plot(args.plot, given, point, quantiles, levels)
    if args.backtest is not None:
        _backtest(args, forecaster, given)


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


def _plot(path: Path, given: FrameInputs, point: Any, quantiles: Any, levels: Any) -> None:
    from timemoe_jax.forecasting.frames.frames import future_index
    from timemoe_jax.forecasting.pictures import draw_forecasts
    from timemoe_jax.plotting import MAX_PANELS

    series = given.timed.series
    written = draw_forecasts(
        path,
        given.names,
        [each.values for each in series],
        point,
        quantiles,
        levels,
        times=[(each.timestamps, future_index(each, given.horizon)) for each in series],
    )
    more = f" (the first {MAX_PANELS} of {len(series)})" if len(series) > MAX_PANELS else ""
    print(f"wrote {written}{more}", file=sys.stderr)


def _backtest(args: argparse.Namespace, forecaster: Any, given: FrameInputs) -> None:
    """Of the series as they are: covariates take no part, and the summary is of the model alone."""
    found = forecaster.backtest(
        [each.values for each in given.timed.series],
        args.horizon,
        folds=args.backtest,
        season=args.season,
        context_length=args.context_length,
        names=given.names,
    )
    print(found.summary(), file=sys.stdout if args.out else sys.stderr)


def run_plot(args: argparse.Namespace) -> None:
    """Draws what was asked for."""
    levels, horizon = parse_coverages(args.levels), positive_int("--horizon", args.horizon)
    if args.out is None and args.experts is None:
        raise DataError("there is nothing to draw; give --out, --experts or both")
    files = []
    for path in args.data:
        frame, columns = load_frame(path, args)
        files.append(prepare_frame(frame, horizon, where=path, **columns))
    from timemoe_jax.forecasting.forecaster import Forecaster
    from timemoe_jax.runtime import compilation_cache

    compilation_cache.use()
    forecaster = Forecaster.from_pretrained(args.checkpoint)
    if args.out is not None:
        _plot_holdout(args, forecaster, files, levels)
    if args.experts is not None:
        from timemoe_jax.evaluation.expert_pictures import plot_expert_usage
        from timemoe_jax.evaluation.expert_usage import expert_usage

        shares = {
            Path(path).stem: expert_usage(
                forecaster, given.series, args.context_length, names=given.names
            )
            for path, given in zip(args.data, files, strict=True)
        }
        print(f"wrote {plot_expert_usage(args.experts, shares)}")


def _plot_holdout(
    args: argparse.Namespace, forecaster: Any, files: list[FrameInputs], levels: Any
) -> None:
    from timemoe_jax.forecasting.pictures import draw_forecasts, hold_out
    from timemoe_jax.plotting import MAX_PANELS

    every = [series for given in files for series in given.timed.series]
    series = every[:MAX_PANELS]
    names = [each.name for each in series]
    contexts, truths = hold_out([each.values for each in series], args.horizon, names)
    out = forecaster.forecast(
        contexts,
        args.horizon,
        quantile_levels=levels or None,
        context_length=args.context_length,
        intervals=args.intervals,
        names=names,
    )
    times = [(s.timestamps[: -args.horizon], s.timestamps[-args.horizon :]) for s in series]
    written = draw_forecasts(
        args.out, names, contexts, out.point, out.quantiles, levels, truths, times
    )
    more = f" (the first {MAX_PANELS} of {len(every)})" if len(every) > MAX_PANELS else ""
    print(f"wrote {written}{more}")
