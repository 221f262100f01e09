"""The `timemoe score` command: a model on held-out series, source by source."""

import argparse
from pathlib import Path

from timemoe_jax.cli.commands import Command, argument
from timemoe_jax.errors import DataError
from timemoe_jax.files import write_json


def _score(args: argparse.Namespace) -> None:
    if args.selection:
        _select(args)
        return
    from timemoe_jax.data.formats.open import open_parts
    from timemoe_jax.evaluation.held_out.windows import choose_sources, choose_windows

    try:
        horizons = [int(part) for part in args.horizons.split(",")]
    except ValueError:
        raise DataError(f"--horizons must be whole numbers, but is {args.horizons!r}") from None
    source, parts = open_parts(args.path)
    if args.sources:
        source, parts = choose_sources(source, parts, args.sources)
    held_out = choose_windows(source, parts, args.context, horizons, args.max_windows)
    # Imported here, so that a mistake above does not wait for JAX.
    from timemoe_jax.evaluation.held_out.scoring import CLIP, score
    from timemoe_jax.forecasting.forecaster import Forecaster

    clip = CLIP if args.clip is None else args.clip
    forecaster = Forecaster.from_pretrained(args.checkpoint) if args.checkpoint else None
    scores = score(forecaster, held_out, clip=clip, num_read=args.read, progress=True)
    print(scores.to_markdown())
    if args.json:
        about = {
            "checkpoint": args.checkpoint,
            "digest": forecaster.digest if forecaster else None,
            "path": args.path,
        }
        write_json(args.json, about | scores.as_dict())


def _select(args: argparse.Namespace) -> None:
    from timemoe_jax.data.formats.open import open_parts
    from timemoe_jax.evaluation.held_out.selection import (
        model_forecasts,
        read_selection,
        seasonal_naive_forecast,
        select,
    )
    from timemoe_jax.forecasting.forecaster import Forecaster

    entries = read_selection(args.selection)
    source, parts = open_parts(args.path)
    forecaster = Forecaster.from_pretrained(args.checkpoint) if args.checkpoint else None
    result = select(
        entries,
        source,
        parts,
        lambda tasks: (
            [seasonal_naive_forecast(task) for task in tasks]
            if forecaster is None
            else model_forecasts(forecaster, tasks)
        ),
    )
    print(result.to_markdown())
    if args.json:
        about = {"checkpoint": args.checkpoint, "digest": forecaster.digest if forecaster else None}
        write_json(args.json, about | {"selection": args.selection} | result.as_dict())


_MODEL = (
    "a bundled model's name, a run's workdir or a checkpoint; without it only the naive forecasts "
    "are scored"
)
_SELECTION = (
    "a table of sources with their seasons and horizons, such as configs/mini_selection.csv: MASE "
    "and weighted quantile loss over seasonal naive's, by frequency, in place of the other options"
)
COMMAND = Command(
    "score",
    "score a model on held-out series beside naive forecasts: the last value and the mean",
    _score,
    (
        argument("--checkpoint", help=_MODEL),
        argument("--path", required=True, help="files and folders of series, with commas"),
        argument("--selection", default="", help=_SELECTION),
        argument("--sources", default="", help="only these: domain/source, with commas"),
        argument("--horizons", default="96,336,720", help="points to forecast"),
        argument("--context", type=int, default=512, help="points of a context"),
        argument("--read", type=int, help="read only so many last points of the context"),
        argument("--max-windows", type=int, default=500, help="most windows of each source"),
        argument("--clip", type=float, help="in deviations of the context; by default 10"),
        argument("--json", type=Path, help="a file for everything that was measured"),
    ),
    "Every model is scored on the same windows, in units of each context's deviation.",
    ("timemoe score --checkpoint nano --path corpus --horizons 96",),
)
