"""`timemoe finetune`: a model fine-tuned on the series of a file."""

import argparse
import sys
from pathlib import Path
from typing import Any

from timemoe_jax.checkpoints import bundled
from timemoe_jax.cli.commands import Command, argument
from timemoe_jax.cli.forecast import DATA_ARGUMENTS, prepare_file
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.files import SUFFIXES

MODES = ("full", "heads", "no_router", "lora")
LOSSES = ("auto", "huber", "mse", "mae", "pinball")


def _source(args: argparse.Namespace) -> SequenceSource:
    """The series of a table as `timemoe forecast` reads them, or of any other file or folder."""
    from timemoe_jax.data.formats.open import open_source
    from timemoe_jax.data.pipeline.gaps import FilledSource
    from timemoe_jax.forecasting.fitting import items_of, once

    past, known = args.past_covariate, args.known_covariate
    if Path(args.data).suffix.lower() in SUFFIXES:
        prepared = prepare_file(args.data, args, None, once(past, known), True, args.covariate)
        if args.covariate:
            print(f"note: left out: {', '.join(args.covariate)}", file=sys.stderr)
        return items_of(prepared, past, known)
    if past or known:
        raise DataError("--past-covariate and --known-covariate are for a CSV or a Parquet file")
    if args.horizon is None:
        raise DataError("--horizon is needed for a file that is no table of times")
    return FilledSource(open_source(args.data))


def _finetune(args: argparse.Namespace) -> None:
    rate: Any = args.learning_rate
    if rate != "auto":
        try:
            rate = float(rate)
        except ValueError:
            raise DataError(f"--learning-rate must be a number or auto, but is {rate!r}") from None
    source = _source(args)
    # Imported here, so that a mistake in the data does not wait for JAX.
    from timemoe_jax.checkpoints.load import load_model
    from timemoe_jax.forecasting.fitting import tuning_config
    from timemoe_jax.runtime import compilation_cache
    from timemoe_jax.training.finetuning.start import Start
    from timemoe_jax.training.finetuning.tune import fine_tune

    given = {
        "mode": args.mode,
        "mixing": args.mixing,
        "loss": args.loss,
        "num_steps": args.steps,
        "batch_size": args.batch_size,
        "context_length": args.context_length,
        "validation_points": args.validation_points,
        "seed": args.seed,
        "lora_rank": args.rank,
    }
    options = {name: value for name, value in given.items() if value is not None}
    options |= getattr(source, "tuning", {})
    config = tuning_config(args.horizon, rate, options)
    compilation_cache.use_by_default()
    name = args.checkpoint or bundled.DEFAULT
    fine_tune(Start.of(load_model(name), name), source, config, args.out)


COMMAND = Command(
    "finetune",
    "fine-tune a model on your series; what forecasts held-out ends best is kept",
    _finetune,
    (
        argument(
            "data", metavar="DATA", help="a CSV or Parquet file, or a file or folder to train on"
        ),
        argument("--out", type=Path, required=True, help="the folder to write, or to go on in"),
        argument("--checkpoint", help=f"the model to begin with; {bundled.DEFAULT} by default"),
        argument(
            "--horizon", type=int, metavar="H", help="steps to forecast; by default two seasons"
        ),
        argument("--context-length", type=int, metavar="N", help="points that a forecast reads"),
        *DATA_ARGUMENTS,
        argument(
            "--covariate",
            action="append",
            default=[],
            metavar="NAME",
            help="a column that is no series, and is left out; may be repeated",
        ),
        argument(
            "--past-covariate",
            action="append",
            default=[],
            metavar="NAME",
            help="a column that a joint model with --mixing reads beside the targets",
        ),
        argument(
            "--known-covariate",
            action="append",
            default=[],
            metavar="NAME",
            help="the same of one that is known ahead, as those of forecast --future are",
        ),
        argument("--mode", choices=MODES, default="full", help="what is trained"),
        argument("--mixing", help="how the variates of a joint model read each other from now on"),
        argument("--rank", type=int, metavar="R", help="of the factors of --mode lora"),
        argument("--loss", choices=LOSSES, default="auto", help="the error of the heads"),
        argument("--learning-rate", default="auto", help="a number; auto tries a few"),
        argument("--steps", type=int, metavar="N", help="updates at most"),
        argument("--batch-size", type=int, metavar="N", help="windows of an update"),
        argument("--validation-points", type=int, metavar="N", help="held out of each series"),
        argument("--seed", type=int, metavar="N", help="of the order of windows"),
    ),
    "The last fifth of each series, at least a horizon, is held out and forecast before the first "
    "update and regularly afterwards; if no update is better there, the model stays as it is. The "
    "same command goes on where it was stopped.",
    ("timemoe finetune sales.csv --horizon 28 --out out/sales",),
)
