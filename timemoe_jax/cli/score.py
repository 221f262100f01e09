"""The `timemoe score` command: a model on held-out series, source by source."""

import argparse
from pathlib import Path
from typing import Any

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
    from timemoe_jax.evaluation.held_out import selection
    from timemoe_jax.forecasting.forecaster import Forecaster

    entries = selection.read_selection(args.selection)
    source, parts = open_parts(args.path)
    make = selection.last_horizon_task if args.methods else selection.selection_task
    tasks = [make(entry, source, parts, args.windows) for entry in entries]
    forecaster = Forecaster.from_pretrained(args.checkpoint) if args.checkpoint else None
    if forecaster is None:
        made = [selection.seasonal_naive_forecast(task) for task in tasks]
    else:
        made = selection.model_forecasts(forecaster, tasks)
    result = selection.rate(entries, tasks, made)
    print(result.to_markdown())
    record = {
        "checkpoint": args.checkpoint,
        "digest": forecaster.digest if forecaster else None,
        "selection": args.selection,
        **result.as_dict(),
    }
    if args.methods:
        record["methods"] = _beside(args, entries, tasks, result)
    if args.json:
        write_json(args.json, record)


def _beside(args: argparse.Namespace, entries: Any, tasks: Any, of_model: Any) -> dict[str, Any]:
    """Runs other methods on the tasks and prints the table; returns all results by name."""
    from timemoe_jax.evaluation.held_out import beside, selection

    made = beside.method_forecasts(args.methods, tasks, progress=True)
    results = {args.checkpoint or "seasonal_naive": of_model}
    results |= {name: selection.rate(entries, tasks, each) for name, each in made.items()}
    failures = {name: sum(len(f.failures) for f in each) for name, each in made.items()}
    print(beside.beside_markdown(results, failures))
    return {name: {"failures": failures[name], **results[name].as_dict()} for name in made}


_MODEL = (
    "a bundled model's name, a run's workdir or a checkpoint; without it only the naive forecasts "
    "are scored"
)
_SELECTION = (
    "a table of sources with their seasons and horizons, such as configs/mini_selection.csv: MASE "
    "and weighted quantile loss over seasonal naive's, by frequency, in place of the other options"
)
_METHODS = (
    "with --selection: forecast the last horizon of each series from all before it, beside these "
    "methods, with commas, such as ets,theta,arima; ets+theta is the mean of two"
)
COMMAND = Command(
    "score",
    "score a model on held-out series beside naive forecasts: the last value and the mean",
    _score,
    (
        argument("--checkpoint", help=_MODEL),
        argument("--path", required=True, help="files and folders of series, with commas"),
        argument("--selection", default="", help=_SELECTION),
        argument("--methods", default="", help=_METHODS),
        argument(
            "--windows", type=int, default=48, help="most windows of each source, with --selection"
        ),
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
