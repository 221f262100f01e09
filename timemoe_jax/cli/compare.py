"""The `timemoe compare` command: two evaluations, window by window."""

import argparse
import json
from pathlib import Path

from timemoe_jax.cli.commands import Command, argument
from timemoe_jax.cli.results import check_outputs
from timemoe_jax.errors import DataError
from timemoe_jax.files import write_text

# As in `evaluation.comparisons.runs.METRICS`, which takes a second to import.
_METRICS = "mase, sql, mae, mse or quantile_loss"
_FLAGS = {"method_a": "--method-a", "method_b": "--method-b", "metric must": "--metric must"}


def _compare(args: argparse.Namespace) -> None:
    from timemoe_jax.evaluation.comparisons.runs import compare_runs
    from timemoe_jax.forecasting.scoring.metrics import without_nan
    from timemoe_jax.plotting import check_picture

    check_outputs({}, {"--plot": args.plot, "--json": args.json})
    if args.plot:
        check_picture(args.plot)
    try:
        found = compare_runs(
            args.run_a, args.run_b, args.metric, args.method_a, args.method_b, args.seed
        )
    except DataError as error:
        message = str(error)
        for name, flag in _FLAGS.items():
            message = message.replace(name, flag)
        raise DataError(message) from None
    print(found.to_markdown())
    if args.plot:
        print(f"wrote {found.plot(args.plot)}")
    if args.json:
        write_text(args.json, json.dumps(without_nan(found.as_dict()), indent=2) + "\n")


_RUN = "the output folder of an evaluation with per_window, or its file of windows"
_METHOD = "by default the model, or the only method there is"
COMMAND = Command(
    "compare",
    "compare two evaluations window by window: differences, intervals, wins",
    _compare,
    (
        argument("run_a", metavar="RUN_A", help=_RUN),
        argument("run_b", metavar="RUN_B", help="the same; it may be the same run"),
        argument("--metric", default="mase", help=_METRICS),
        argument("--method-a", metavar="NAME", help=f"the method of RUN_A; {_METHOD}"),
        argument("--method-b", metavar="NAME", help=f"the method of RUN_B; {_METHOD}"),
        argument("--plot", type=Path, help="a picture: ratio and interval of each task"),
        argument("--json", type=Path, help="a file for everything that was measured"),
        argument("--seed", type=int, default=0, help="of the bootstrap"),
    ),
    "Windows are paired by benchmark, task, series, origin and horizon; those that only one run "
    "has are counted. Intervals are bootstrapped over series.",
    (
        "timemoe compare out/eval_nano out/eval_mine --plot compare.png",
        "timemoe compare out/eval_frame out/eval_frame --method-b seasonal_naive",
    ),
)
