"""The `timemoe score` command: a model on held-out series, source by source."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from timemoe_jax.data.formats.open import open_parts
from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.held_out import CLIP, score
from timemoe_jax.evaluation.held_out_windows import choose_sources, choose_windows
from timemoe_jax.forecasting.forecaster import Forecaster


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; `argv` is that of the process by default."""
    from timemoe_jax.cli.programs import report_errors

    parser = argparse.ArgumentParser(
        prog="python -m timemoe_jax.evaluation.held_out",
        description="Score a checkpoint on held-out series, beside the last value and the mean.",
    )
    parser.add_argument(
        "--checkpoint", help="a bundled model's name, a run or a checkpoint; or none"
    )
    parser.add_argument("--path", required=True, help="files and folders of series, with commas")
    parser.add_argument("--sources", default="", help="of these only domain/source, with commas")
    parser.add_argument("--horizons", default="96,336,720", help="points to forecast")
    parser.add_argument("--context", type=int, default=512, help="points of a context")
    parser.add_argument("--read", type=int, help="only so many of its last, in the same windows")
    parser.add_argument("--max-windows", type=int, default=500, help="of each source")
    parser.add_argument("--clip", type=float, default=CLIP, help="in deviations of the context")
    parser.add_argument("--json", type=Path, help="also write everything there")
    args = parser.parse_args(argv)
    report_errors(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    try:
        horizons = [int(part) for part in args.horizons.split(",")]
    except ValueError:
        raise DataError(f"--horizons must be whole numbers, but is {args.horizons!r}") from None
    source, parts = open_parts(args.path)
    if args.sources:
        source, parts = choose_sources(source, parts, args.sources)
    held_out = choose_windows(source, parts, args.context, horizons, args.max_windows)
    forecaster = Forecaster.from_pretrained(args.checkpoint) if args.checkpoint else None
    found = score(forecaster, held_out, clip=args.clip, num_read=args.read, progress=True)
    print(found.to_markdown())
    if args.json:
        about = {
            "checkpoint": args.checkpoint,
            "digest": forecaster.digest if forecaster else None,
            "path": args.path,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(about | found.as_dict(), indent=2) + "\n")
