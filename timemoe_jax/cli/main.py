"""The `timemoe` command: forecast a CSV, convert weights, fetch and look at data."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from timemoe_jax.cli.data import (
    add_clean,
    add_convert,
    add_download,
    add_inspect,
    add_overlap,
    add_synthesize,
)
from timemoe_jax.cli.forecast import add_forecast, add_plot
from timemoe_jax.cli.programs import fail, report_errors


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
    add_forecast(commands)
    add_plot(commands)
    _add_convert(commands)
    _add_bundle(commands)
    data = commands.add_parser("data", help="fetch, inspect and compare data")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    add_download(data_commands)
    add_convert(data_commands)
    add_inspect(data_commands)
    add_overlap(data_commands)
    add_synthesize(data_commands)
    add_clean(data_commands)
    return parser


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


def _add_bundle(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bundle",
        help="a small trained model as a folder of few files with checksums",
        description=(
            "Write the newest checkpoint of a run, or the mean of its last ones, as a folder of "
            "safetensors of at most 5 MB each with their checksums. Every command reads it as a "
            "checkpoint; in timemoe_jax/bundled it is loaded by its name."
        ),
    )
    parser.add_argument("source", metavar="RUN", help="a run's workdir, or another checkpoint")
    parser.add_argument(
        "dest", metavar="FOLDER", help="the folder to write; it must be empty or new"
    )
    parser.add_argument("--average", type=int, default=1, help="mean of so many last checkpoints")
    parser.add_argument("--dtype", default="bfloat16", help="to store in: bfloat16 or float32")
    parser.set_defaults(run=_bundle)


def _convert(args: argparse.Namespace) -> None:
    from timemoe_jax.checkpoints.load import convert

    print(convert(args.source, args.dest, to_safetensors=args.to_safetensors))


def _bundle(args: argparse.Namespace) -> None:
    from timemoe_jax.checkpoints.make_bundle import make_bundle

    print(make_bundle(args.source, args.dest, average=args.average, dtype=args.dtype))


if __name__ == "__main__":
    main()
