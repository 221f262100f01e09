"""The `timemoe` command: forecast a CSV, score and convert models, fetch and look at data."""

import argparse
import sys
from collections.abc import Sequence

from timemoe_jax.cli import data, forecast, score
from timemoe_jax.cli.commands import Command, Parser, add_commands, argument, subcommands
from timemoe_jax.cli.config_commands import PROGRAMS
from timemoe_jax.cli.programs import report_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; `argv` is that of the process by default."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in PROGRAMS:  # these take flags of a config
        PROGRAMS[argv[0]][1](argv[1:])
        return
    args = _parser().parse_args(argv)
    report_errors(lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="timemoe", description="Forecast time series with sparse mixture-of-experts models."
    )
    commands = subcommands(parser)
    add_commands(commands, (*forecast.COMMANDS, score.COMMAND, *COMMANDS))
    for name, (text, _) in PROGRAMS.items():
        commands.add_parser(name, help=text)
    data_parser = commands.add_parser("data", help="fetch, inspect and compare data")
    add_commands(subcommands(data_parser), data.COMMANDS)
    return parser


def _convert(args: argparse.Namespace) -> None:
    from timemoe_jax.checkpoints.load import convert

    print(convert(args.source, args.dest, to_safetensors=args.to_safetensors))


def _bundle(args: argparse.Namespace) -> None:
    from timemoe_jax.checkpoints.make_bundle import make_bundle

    print(make_bundle(args.source, args.dest, average=args.average, dtype=args.dtype))


_NEW_FOLDER = "the folder to write; it must be empty or new"
COMMANDS = (
    Command(
        "convert",
        "published safetensors to an Orbax checkpoint, and back",
        _convert,
        (
            argument("source", help="the folder to read: config.json and safetensors"),
            argument("dest", help=_NEW_FOLDER),
            argument(
                "--to-safetensors",
                action="store_true",
                help="read a checkpoint, and write the published layout",
            ),
        ),
        "Every bit of the weights is kept.",
    ),
    Command(
        "bundle",
        "a small trained model as a folder of few files with checksums",
        _bundle,
        (
            argument("source", metavar="RUN", help="a run's workdir, or another checkpoint"),
            argument("dest", metavar="FOLDER", help=_NEW_FOLDER),
            argument("--average", type=int, default=1, help="mean of so many last checkpoints"),
            argument("--dtype", default="bfloat16", help="to store in: bfloat16 or float32"),
        ),
        "The files are safetensors of at most 5 MB each. Every command reads the folder as a "
        "checkpoint; in timemoe_jax/checkpoints/bundled it is loaded by its name.",
    ),
)


if __name__ == "__main__":
    main()
