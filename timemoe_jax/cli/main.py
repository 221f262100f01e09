"""The `timemoe` command: forecast a CSV, score and convert models, fetch and look at data."""

import argparse
import sys
from collections.abc import Sequence

import timemoe_jax
from timemoe_jax.cli import compare, data, finetune, forecast, score
from timemoe_jax.cli.commands import Command, Parser, add_commands, argument, subcommands
from timemoe_jax.cli.config_commands import PROGRAMS
from timemoe_jax.cli.programs import INTERRUPTED, report_errors

START = """\
Forecast time series with sparse mixture-of-experts models.

  timemoe forecast DATA.csv               forecast every series of a CSV or Parquet file
  timemoe forecast DATA.csv --backtest 3  score the model beside seasonal naive on your data
  timemoe finetune DATA.csv --out DIR     fine-tune the model on your series
  timemoe plot DATA.csv --out PLOT.png    plot forecasts of the last points against the truth

The model that comes along is used unless --checkpoint names another. See timemoe --help for all
commands, and timemoe forecast --help for the options of one.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; `argv` is that of the process by default."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(START, end="")
        return
    if argv[0] in PROGRAMS:  # these take flags of a config
        PROGRAMS[argv[0]][1](argv[1:])
        return
    try:
        args = _parser().parse_args(argv)
        report_errors(lambda: args.run(args))
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="timemoe", description="Forecast time series with sparse mixture-of-experts models."
    )
    parser.add_argument("--version", action="version", version=timemoe_jax.__version__)
    commands = subcommands(parser)
    named = (*forecast.COMMANDS, finetune.COMMAND, score.COMMAND, compare.COMMAND, *COMMANDS)
    add_commands(commands, named)
    for name, (text, _) in PROGRAMS.items():
        commands.add_parser(name, help=text)
    data_parser = commands.add_parser("data", help="download, inspect, clean and convert data")
    add_commands(subcommands(data_parser), data.COMMANDS)
    return parser


def _convert(args: argparse.Namespace) -> None:
    from timemoe_jax.checkpoints.load import convert

    print(convert(args.source, args.dest, to_safetensors=args.to_safetensors))


def _bundle(args: argparse.Namespace) -> None:
    from timemoe_jax.checkpoints.make_bundle import make_bundle

    print(make_bundle(args.source, args.dest, average=args.average, dtype=args.dtype))


def _download(args: argparse.Namespace) -> None:
    from timemoe_jax.checkpoints import hub

    print(hub.download(args.name))


_NEW_FOLDER = "the folder to write; it must be empty or new"
COMMANDS = (
    Command(
        "download",
        "fetch a published model from the Hugging Face hub, and check it",
        _download,
        (argument("name", help="of the model, for example Maple728/TimeMoE-50M"),),
        "It is loaded by its name from then on, without a network. This needs the package "
        "huggingface_hub.",
        ("timemoe download Maple728/TimeMoE-50M",),
    ),
    Command(
        "convert",
        "convert published safetensors to an Orbax checkpoint, and back",
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
        (
            "timemoe convert TimeMoE-50M base",
            "timemoe convert base base_safetensors --to-safetensors",
        ),
    ),
    Command(
        "bundle",
        "write a small trained model as a folder of few files with checksums",
        _bundle,
        (
            argument(
                "source",
                metavar="RUN",
                help="a run's workdir, or another checkpoint; several with commas: their mean",
            ),
            argument("dest", metavar="FOLDER", help=_NEW_FOLDER),
            argument(
                "--average", type=int, default=1, metavar="N", help="of the last N checkpoints"
            ),
            argument("--dtype", default="bfloat16", help="to store in: bfloat16 or float32"),
        ),
        "The files are safetensors of at most 5 MB each. Every command reads the folder as a "
        "checkpoint; in timemoe_jax/checkpoints/bundled it is loaded by its name.",
        ("timemoe bundle out/nano bundled/nano --average 3",),
    ),
)


if __name__ == "__main__":
    main()
