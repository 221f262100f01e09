"""The `timemoe` command: forecast a CSV, convert weights, fetch benchmark data."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from timemoe_jax.data.tables import Table, read_csv
from timemoe_jax.entry import fail, report_errors


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other mistake: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with the message."""
        fail(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; `argv` is that of the process by default."""
    args = _parser().parse_args(argv)
    report_errors(lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="timemoe", description="Forecast time series with sparse mixture-of-experts models."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_forecast(commands)
    _add_convert(commands)
    data = commands.add_parser("data", help="fetch benchmark data")
    _add_download(data.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser))
    return parser


def _add_forecast(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "forecast",
        help="forecast every numeric column of a CSV",
        description="Forecast every numeric column of a CSV, from its last points.",
    )
    parser.add_argument("data", help="a CSV; its first column may hold dates")
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a run's workdir, an Orbax checkpoint or a published safetensors folder",
    )
    parser.add_argument("--horizon", type=int, required=True, help="points to forecast")
    parser.add_argument(
        "--context-length",
        type=int,
        help="read at most so many last points; by default as many as the model holds",
    )
    parser.add_argument("--out", type=Path, help="the CSV to write; by default standard output")
    parser.add_argument("--plot", type=Path, help="a PNG to write: context and forecast")
    parser.set_defaults(run=_forecast)


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="published safetensors to an Orbax checkpoint, and back",
        description=(
            "Convert a published Time-MoE folder (config.json and safetensors) to an Orbax "
            "checkpoint, bit by bit; with --to-safetensors, a checkpoint to such a folder."
        ),
    )
    parser.add_argument("source", help="the folder to read")
    parser.add_argument("dest", help="the folder to write; it must be empty or new")
    parser.add_argument(
        "--to-safetensors", action="store_true", help="write the published layout instead"
    )
    parser.set_defaults(run=_convert)


def _add_download(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "download",
        help="fetch ETT or Weather",
        description="Fetch the public CSVs of a benchmark, resuming, and check their MD5.",
    )
    parser.add_argument("dataset", choices=("ett", "weather"), help="which benchmark")
    parser.add_argument("dest", help="the folder to write to")
    parser.add_argument("--base-url", help="fetch from a mirror: BASE_URL/NAME.csv")
    parser.set_defaults(run=_download)


def _forecast(args: argparse.Namespace) -> None:
    # Imported here, so that --help and data commands do not wait for JAX.
    from timemoe_jax.forecast import Forecaster

    table = read_csv(args.data)
    forecaster = Forecaster.from_pretrained(args.checkpoint)
    out = forecaster.forecast(
        list(table.values.T),
        args.horizon,
        context_length=args.context_length,
        names=[f"{table.path.name}: column {column!r}" for column in table.columns],
    )
    lines = _csv_lines(table, out.point)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(lines)
        print(f"wrote {args.out}")
    else:
        print(lines, end="")
    if args.plot:
        from timemoe_jax.plotting import Panel, plot_forecasts

        panels = [
            Panel(column, values[-out.context_length :], point)
            for column, values, point in zip(table.columns, table.values.T, out.point, strict=True)
        ]
        print(f"wrote {plot_forecasts(args.plot, panels)}")


def _csv_lines(table: Table, point: np.ndarray) -> str:
    """The forecasts as CSV: one row per step, dated where the dates of the input are regular."""
    import pandas as pd

    horizon = point.shape[1]
    frame = pd.DataFrame(point.T, columns=list(table.columns))
    index_name, index = "step", pd.RangeIndex(1, horizon + 1)
    if table.timestamps is not None and len(table.timestamps) > 2:
        freq = pd.infer_freq(pd.DatetimeIndex(table.timestamps))
        if freq is not None:
            index_name = table.timestamp_name or "date"
            index = pd.date_range(table.timestamps[-1], periods=horizon + 1, freq=freq)[1:]
    frame.insert(0, index_name, index)
    return frame.to_csv(index=False, lineterminator="\n")


def _convert(args: argparse.Namespace) -> None:
    from timemoe_jax import checkpoint

    print(checkpoint.convert(args.source, args.dest, to_safetensors=args.to_safetensors))


def _download(args: argparse.Namespace) -> None:
    from timemoe_jax.data.download import download

    for path in download(args.dataset, args.dest, base_url=args.base_url):
        print(path)


if __name__ == "__main__":
    main()
