"""`timemoe forecast` and `timemoe plot`: files of series to forecasts, and to pictures of them."""

import argparse
import contextlib
import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from timemoe_jax.checkpoints import bundled
from timemoe_jax.cli.commands import Argument, Command, argument
from timemoe_jax.cli.data import SEPARATORS
from timemoe_jax.cli.model_pictures import draw_experts, draw_links, item_numbers
from timemoe_jax.cli.results import (
    COLUMNS,
    FORMATS,
    check_outputs,
    choose_format,
    digits_of,
    parse_coverages,
    rename_columns,
    round_table,
    write_table,
)
from timemoe_jax.data.formats.frames import columns_of, counters_of
from timemoe_jax.data.formats.table_layout import ID_NAMES, ColumnNames
from timemoe_jax.data.seasons import LEAST_HORIZON, default_horizon, season_of
from timemoe_jax.data.series import positive_int
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.files import open_frame, read_frame_file, with_times
from timemoe_jax.forecasting.frames.prepare import FrameInputs, prepare_frame

# What the library's messages say in Python, and how it is said on the command line.
_FLAGS = {
    **{"future_df": "--future", "freq=": "--freq", "date_format=": "--date-format "},
    **{"date_format": "--date-format", "past_covariates": "--past-covariate"},
    **{"id_column": "--id-column", "timestamp_column": "--timestamp-column"},
    "the timestamp column": "the timestamp column (--timestamp-column)",
    "the id column": "the id column (--id-column)",
    "the target columns": "the target columns (--target)",
    **{"context_length": "--context-length", "intervals must be": "--intervals must be one of"},
}


def names_of(args: argparse.Namespace) -> ColumnNames:
    """What the command line says of a table; of targets only to find the other columns."""
    given = vars(args)
    return ColumnNames(
        args.id_column,
        args.timestamp_column,
        tuple(args.target or ()),
        SEPARATORS.get(str(given.get("separator")), given.get("separator")),
        given.get("decimal"),
    )


def prepare_file(
    path: str,
    args: argparse.Namespace,
    future_df: Any = None,
    past_covariates: Any = (),
    as_variates: bool = False,
    left_out: Sequence[str] = (),
) -> FrameInputs:
    """Reads a file, and takes the series out of it.

    Columns that count rows are left out, and named on standard error. The rows of a table of
    nothing but numbers are numbered, unless a column is one of times. Without `args.horizon` this
    is the number of rows of the future, or two seasons, and is set.
    """
    with _said_as_flags():
        names = names_of(args)
        frame, counters = open_frame(path, names)
        if counters:
            print(f"note: row counters left out: {', '.join(map(repr, counters))}", file=sys.stderr)
        future = _without_counters(future_df, counters, names)
        frame, future = _with_ids_alike(frame, future, names)
        frame, timestamp = with_times(frame, names, path)
        options: dict[str, Any] = {n: getattr(args, n) for n in ("id_column", "target", "freq")}
        if vars(args).get("date_format"):
            options["date_format"] = args.date_format
        options |= {"future_df": future, "past_covariates": past_covariates}
        options |= {"as_variates": as_variates, "left_out": left_out}

        def prepare(horizon: int) -> FrameInputs:
            return prepare_frame(frame, horizon, where=path, timestamp_column=timestamp, **options)

        if args.horizon is None:
            args.horizon = _choose_horizon(args, future, prepare)
        return prepare(positive_int("--horizon", args.horizon))


def _without_counters(future: Any, counters: list[str], names: ColumnNames) -> Any:
    """The table of the future, if any, without columns that count rows there or in the data."""
    if future is None:
        return None
    future = columns_of(future, "--future")
    ahead = {*counters, *counters_of(future)} - {names.id, names.timestamp, *names.targets}
    return future.drop(columns=[name for name in future.columns if name in ahead])


def _with_ids_alike(frame: Any, future: Any, names: ColumnNames) -> tuple[Any, Any]:
    """Ids as text in both tables where they are in one: those of a CSV are, not all of Parquet."""
    for name in ID_NAMES if names.id is None else (names.id,):
        if future is None or name not in frame or name not in future:
            continue
        whole = [table[name].dtype.kind in "iu" for table in (frame, future)]
        if whole[0] != whole[1]:
            frame = frame.assign(**{name: frame[name].astype(str)}) if whole[0] else frame
            future = future.assign(**{name: future[name].astype(str)}) if whole[1] else future
    return frame, future


def _choose_horizon(
    args: argparse.Namespace, future: Any, prepare: Callable[[int], FrameInputs]
) -> int:
    """The horizon where none is given; says on standard error which it is, and why."""
    if future is not None:
        names = [args.id_column] if args.id_column else [n for n in ID_NAMES if n in future]
        rows = future.groupby(names[0], sort=False).size() if len(names) == 1 else [len(future)]
        horizon, why = int(min(rows)), "the rows of --future"
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again with the horizon
            season = vars(args).get("season") or _season(prepare(1))
        horizon = default_horizon(season)
        two = f"two seasons of {season:,} steps"
        why = two if 2 * season == horizon else "the default without a season"
    print(f"note: horizon {horizon}, {why}; give --horizon for another", file=sys.stderr)
    return horizon


def _season(prepared: FrameInputs) -> int:
    """The steps of a season: of the most frequent step's calendar, else that most series show."""
    frequency = _frequencies(prepared).most_common(1)[0][0]
    return season_of([each.values for each in prepared.timed.series], frequency).points


def _frequencies(prepared: FrameInputs) -> Counter[str]:
    return Counter(each.freq for each in prepared.timed.series)


@contextlib.contextmanager
def _said_as_flags() -> Iterator[None]:
    """Says errors and warnings of the library by the names of the options."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    except DataError as error:
        raise DataError(_as_flags(str(error))) from None
    for warning in caught:
        warnings.warn(_as_flags(str(warning.message)), warning.category, stacklevel=3)


def _as_flags(message: str) -> str:
    for name, flag in _FLAGS.items():
        if flag not in message:
            message = message.replace(name, flag)
    return message


def _forecaster(args: argparse.Namespace, levels: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and the options of its forecasts."""
    # Imported here, so that a mistake in the data does not wait for JAX.
    from timemoe_jax.forecasting.forecaster import Forecaster
    from timemoe_jax.runtime import compilation_cache

    if args.checkpoint is None:
        print(f"note: model {bundled.DEFAULT}; give --checkpoint for another", file=sys.stderr)
    compilation_cache.use_by_default()
    options = {"context_length": args.context_length, "intervals": args.intervals}
    options["quantile_levels"] = levels or None
    return Forecaster.from_pretrained(args.checkpoint or bundled.DEFAULT), options


def run_forecast(args: argparse.Namespace) -> None:
    """Forecasts, and writes what was asked for; all that can be checked is checked before."""
    levels = parse_coverages(args.levels)
    kind = choose_format(args.out, args.format)
    check_outputs(
        {"DATA": args.data, "--future": args.future}, {"--out": args.out, "--plot": args.plot}
    )
    if args.digits is not None and args.digits < 0:
        raise DataError(f"--digits must be at least 0, but is {args.digits}")
    _check_picture(args.plot)
    future = None if args.future is None else read_frame_file(args.future, names_of(args))
    prepared = prepare_file(args.data, args, future, args.past_covariate)
    if args.backtest is not None:
        _check_folds(args, prepared)
    forecaster, options = _forecaster(args, levels)
    if forecaster.joint and (future is not None or args.past_covariate):
        prepared = prepare_file(args.data, args, future, args.past_covariate, as_variates=True)
    from timemoe_jax.forecasting.frame_forecast import forecast_frame

    names = [f"{args.data}: {name}" for name in prepared.names]
    progress = sys.stderr.isatty()
    with _said_as_flags():
        forecast = forecast_frame(
            forecaster.forecast,
            prepared,
            names,
            joint=forecaster.joint,
            progress=progress,
            **options,
        )
    attributes = forecast.frame.attrs
    _report_counts(attributes)
    _report_frequency(args, attributes["freq"])
    write_table(_table(forecast, args), args.out, kind)
    if args.out:
        print(f"wrote {args.out}")
    if args.plot:
        _plot(args.plot, forecast)
    if args.backtest is not None:
        _backtest(args, forecaster, prepared)


def _table(forecast: Any, args: argparse.Namespace) -> Any:
    """The forecasts as a data frame, rounded and with the columns that were asked for."""
    timed = forecast.prepared.timed
    digits = [
        digits_of(each.values) if args.digits is None else args.digits for each in timed.series
    ]
    frame = round_table(forecast.frame, digits)
    return rename_columns(frame, args.columns, forecast.levels, len(timed.targets) > 1)


def _check_picture(path: Path | None) -> None:
    if path is not None:
        from timemoe_jax.plotting import check_picture

        check_picture(path)


def _check_folds(args: argparse.Namespace, prepared: FrameInputs) -> None:
    from timemoe_jax.forecasting.scoring.backtest import check_folds

    positive_int("--backtest", args.backtest)
    values = [each.values for each in prepared.timed.series]
    names = [f"{args.data}: {name}" for name in prepared.names]
    season = _season_to_repeat(args, prepared)
    check_folds(values, args.horizon, args.backtest, season, names)


def _season_to_repeat(args: argparse.Namespace, prepared: FrameInputs) -> int | None:
    """The season of seasonal naive: the given one, or that of the calendar where all share it.

    None lets it be found in each series, as where a series does not hold a season of the calendar.
    """
    frequencies = _frequencies(prepared)
    if args.season is not None or len(frequencies) > 1:
        return args.season
    season = season_of(freq=next(iter(frequencies))).points
    shortest = min(len(each.values) for each in prepared.timed.series)
    return season if 1 < season <= shortest - args.backtest * args.horizon else None


def _report_frequency(args: argparse.Namespace, freq: str | dict[str, str]) -> None:
    """Says which frequency was found, unless it was given or the times are step numbers."""
    found = Counter([freq] if isinstance(freq, str) else freq.values())
    if args.freq is None and not all(each.isdigit() for each in found):
        shown = [f"{each} ({count:,} series)" for each, count in found.most_common(8)]
        said = ", ".join(shown) if len(found) > 1 else next(iter(found))
        print(f"note: frequency {said}", file=sys.stderr)


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
    """Scores the model on the series as they are, with what a joint model reads beside them."""
    values: Any = [each.values for each in prepared.timed.series]
    scores = forecaster.backtest(
        prepared.joint() if forecaster.joint else values,
        args.horizon,
        folds=args.backtest,
        season=_season_to_repeat(args, prepared),
        context_length=args.context_length,
        names=prepared.names,
    )
    print(scores.summary(), file=sys.stdout if args.out else sys.stderr)


def run_plot(args: argparse.Namespace) -> None:
    """Draws what was asked for."""
    levels = parse_coverages(args.levels)
    pictures = {"--out": args.out, "--experts": args.experts, "--graph": args.graph}
    if not any(pictures.values()):
        raise DataError("there is nothing to draw; give --out, --experts or --graph")
    check_outputs({f"DATA {path}": path for path in args.data}, pictures)
    for picture in pictures.values():
        _check_picture(picture)
    files = [prepare_file(path, args) for path in args.data]
    forecaster, options = _forecaster(args, levels)
    if args.out is not None:
        from timemoe_jax.forecasting.pictures import plot_series
        from timemoe_jax.plotting import MAX_PANELS

        every = [series for prepared in files for series in prepared.timed.series]
        titles = [
            f"{Path(path).stem} {name}" if len(files) > 1 else name
            for path, prepared in zip(args.data, files, strict=True)
            for name in prepared.names
        ]
        drawn = every[:MAX_PANELS]
        written = plot_series(
            args.out,
            functools.partial(forecaster.forecast, horizon=args.horizon, **options),
            [each.values for each in drawn],
            titles[:MAX_PANELS],
            holdout=args.horizon,
            times=[each.timestamps for each in drawn],
            items=item_numbers(files) if forecaster.joint else None,
        )
        print(f"wrote {written}{_of_more(len(every))}")
    if args.experts is not None:
        draw_experts(args.experts, args, forecaster, files)
    if args.graph is not None:
        draw_links(args.graph, args, forecaster, files)


_MODEL, _DATA, _INTERVALS = "model and horizon", "how to read DATA", "prediction intervals"
_OUTPUT = "output"


def _data_arguments() -> tuple[Argument, ...]:
    """How a table is read."""
    layout = "how dates are written, such as %%d/%%m/%%Y; by default it is found"
    between = "what separates cells of a CSV; by default found: a comma, ; tab or |"
    mark = "what is before decimals in a CSV: . or ,; by default it is found"
    read = {"group": _DATA, "metavar": "NAME"}
    return (
        argument("--target", action="append", help="target column; may be repeated", **read),
        argument("--id-column", help="the column that tells series apart", **read),
        argument("--timestamp-column", help="the column of times", **read),
        argument("--freq", help="the step between times, such as h or MS", group=_DATA),
        argument("--date-format", metavar="FORMAT", help=layout, group=_DATA),
        argument("--separator", metavar="MARK", help=between, group=_DATA),
        argument("--decimal", metavar="MARK", help=mark, group=_DATA),
    )


DATA_ARGUMENTS = _data_arguments()


def _shared(levels: str) -> tuple[Argument, ...]:
    """What both commands take: which model forecasts how much, of which columns."""
    model = (
        "a bundled model's name, a run's workdir, a checkpoint or a published folder; "
        f"{bundled.DEFAULT} by default"
    )
    horizon = f"steps to forecast; by default two seasons, at least {LEAST_HORIZON}"
    length = "read at most the last N points; by default as many as the model holds"
    source = "where they come from: heads of the model, calibrated heads, conformal, or auto"
    return (
        argument("--checkpoint", help=model, group=_MODEL),
        argument("--horizon", type=int, metavar="H", help=horizon, group=_MODEL),
        argument("--context-length", type=int, metavar="N", help=length, group=_MODEL),
        *DATA_ARGUMENTS,
        argument("--levels", default=levels, help="in percent, such as 80,95", group=_INTERVALS),
        argument("--intervals", default="auto", help=source, group=_INTERVALS),
    )


_WIDE_OR_LONG = (
    "In a long table the columns unique_id/ds/y, item_id/timestamp/target and id/timestamp/target "
    "are recognized; in any other every numeric column is a series. Columns that only count rows "
    "are left out."
)
_FORMAT = "of the table; by default that of the suffix of --out, else csv"
_COLUMNS = (
    "names of the columns: quantiles (predictions, 0.1, 0.9), levels (predictions, lo-80, hi-80) "
    "or nixtla (TimeMoE, TimeMoE-lo-80)"
)
COMMANDS = (
    Command(
        "forecast",
        "forecast the series of a CSV or Parquet file",
        run_forecast,
        (
            argument("data", metavar="DATA", help="a CSV or Parquet file"),
            *_shared(levels=""),
            argument(
                "--future", help="a file of covariates at the steps to forecast", group="covariates"
            ),
            argument(
                "--past-covariate",
                action="append",
                default=[],
                metavar="NAME",
                help="a column of DATA that is known up to now; may be repeated",
                group="covariates",
            ),
            argument(
                "--out",
                type=Path,
                help="the file to write: .csv, .parquet or .json; by default standard output",
                group=_OUTPUT,
            ),
            argument("--format", choices=FORMATS, help=_FORMAT, group=_OUTPUT),
            argument(
                "--columns", choices=COLUMNS, default="quantiles", help=_COLUMNS, group=_OUTPUT
            ),
            argument(
                "--digits",
                type=int,
                metavar="N",
                help="decimals of the table; by default one more than the values of DATA have",
                group=_OUTPUT,
            ),
            argument(
                "--plot",
                type=Path,
                help="a picture to write: context, forecast, intervals",
                group=_OUTPUT,
            ),
            argument(
                "--backtest",
                type=int,
                metavar="K",
                help="score the forecasts of the last K horizons beside seasonal naive",
                group="backtest",
            ),
            argument(
                "--season",
                type=int,
                metavar="S",
                help="steps of a season; by default the calendar's, else found in each series",
                group="backtest",
            ),
        ),
        _WIDE_OR_LONG,
        (
            "timemoe forecast sales.csv",
            "timemoe forecast sales.csv --horizon 48 --levels 80,95 --out forecast.csv "
            "--plot forecast.png",
            "timemoe forecast sales_eu.csv --separator ';' --decimal ',' --date-format %d.%m.%Y",
        ),
    ),
    Command(
        "plot",
        "plot forecasts of the held-out last horizon, the use of experts, or the links of series",
        run_plot,
        (
            argument("data", nargs="+", metavar="DATA", help="CSV or Parquet files"),
            *_shared(levels="80"),
            argument("--out", type=Path, help="the picture of the forecasts", group=_OUTPUT),
            argument("--experts", type=Path, help="the picture of the experts", group=_OUTPUT),
            argument(
                "--graph",
                type=Path,
                help="the picture of which series a joint model links",
                group=_OUTPUT,
            ),
        ),
        "The last HORIZON points of each series are held out, forecast from the points before "
        "them, and plotted with prediction intervals. --experts plots which experts each layer of "
        "the model uses, a panel for each file, or for each series of a joint model; --graph which "
        "series a joint model links.",
        (
            "timemoe plot sales.csv --horizon 48 --out held_out.png",
            "timemoe plot sales.csv --checkpoint nano --experts experts.png",
        ),
    ),
)
