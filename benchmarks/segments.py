"""Whether segments pay: the studies of `configs/segments.py`, beside one another.

python benchmarks/segments.py --workdir=out/segments --data-dir=DIR --corpus=PATH_TO_CORPUS \
    --picture=segments.png

DIR holds ETTh1.csv and ETTm1.csv, as `timemoe data download ett DIR` leaves them; without it, or
without a corpus, those studies are left out with a line. Each study has a folder in the workdir;
what is finished there is not run again, and several processes may share the work, one for each of
--studies; --report runs nothing. The table has the held-out errors of every variant, in units of
each context's deviation, and by how many percent its MSE lies above that of segments, taken seed by
seed: the mean over seeds and horizons, and the deviation between seeds. --quick makes two updates
of each variant, of one seed.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import measure
from configs import segments
from timemoe_jax.config import from_mapping
from timemoe_jax.evaluation.benchmarks import find_dataset
from timemoe_jax.evaluation.studies.config import StudyConfig
from timemoe_jax.evaluation.studies.pictures import plot_differences
from timemoe_jax.evaluation.studies.reports import (
    relative_differences,
    run_study,
    spread,
    spread_of,
)
from timemoe_jax.evaluation.tables import markdown_table

STUDIES = [f"{family}-{data}" for family in segments.FAMILIES for data in segments.DATA]
Results = Sequence[dict[str, Any]]


def config_of(study: str, path: str, quick: bool) -> StudyConfig:
    """A study on the data of a path."""
    config = segments.get_config(study)
    config.base.data.path = path
    if quick:
        config.base.train.num_steps = 2
        config.base.train.eval_batches = 1
        config.base.optimizer.warmup_steps = 0
        config.ablations.seeds = (0,)
        config.score.max_windows = 8
    return from_mapping(StudyConfig, config.to_dict())


def path_of(study: str, args: argparse.Namespace) -> str | None:
    """Where the data of a study are; None if that was not said."""
    data = study.partition("-")[2]
    if data == "corpus":
        return args.corpus
    return str(find_dataset(data, args.data_dir)) if args.data_dir else None


def results_of(folder: Path) -> Results:
    """What a study has finished."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8"))["variants"] if path.exists() else []


def table(found: Mapping[str, Results]) -> str:
    """Every variant of every study, as Markdown."""
    rows = []
    for study, results in found.items():
        horizons = list(results[0]["held_out"]["average"])
        for name in dict.fromkeys(r["variant"] for r in results):
            first = next(r for r in results if r["variant"] == name)
            row = [study, "segments" if name == "full" else name]
            row += [f"{first[f'{kind}_parameters']:,}" for kind in ("activated", "total")]
            row += [str(spread(results, name, int(h))) for h in horizons]
            above = spread_of(relative_differences(results, name)).shown("{:+.1%}")
            row.append("" if name == "full" else above)
            rows.append(row)
    header = ["study", "variant", "activated", "in all"]
    header += [f"MSE at {h}" for h in horizons]
    return markdown_table(header + ["above segments"], rows)


def main() -> None:
    """Runs what is not finished, prints the table, draws the picture."""
    parser = argparse.ArgumentParser(description="Segment against token routing.")
    parser.add_argument("--workdir", type=Path, default=Path("out/segments"))
    parser.add_argument("--studies", default=",".join(STUDIES), help="some of them")
    parser.add_argument("--data-dir", help="a folder of ETTh1.csv and ETTm1.csv")
    parser.add_argument("--corpus", help="a folder in the Time-300B layout")
    parser.add_argument("--picture", type=Path, help="where to draw the differences")
    parser.add_argument("--report", action="store_true", help="run nothing, show what is finished")
    parser.add_argument("--quick", action="store_true", help="a few updates; says nothing")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    studies = measure.names(args.studies)
    if unknown := sorted(set(studies) - set(STUDIES)):
        parser.error(f"--studies may hold {', '.join(STUDIES)}, not {', '.join(unknown)}")
    found: dict[str, Results] = {}
    for study in studies:
        folder, path = args.workdir / study, path_of(study, args)
        if path and not args.report:
            run_study(config_of(study, path, args.quick), folder)
        elif not args.report:
            print(f"{study}: not run, its data were not given")
        if results := results_of(folder):
            found[study] = results
    report = measure.Report(args.json)
    for study, results in found.items():
        for name in dict.fromkeys(r["variant"] for r in results):
            difference = spread_of(relative_differences(results, name)).mean
            report.add(f"{study} {name}", 100 * difference, "% above segments")
    report.write()
    if found:
        print(table(found))
        if args.picture:
            plot_differences(args.picture, {s: differences(r) for s, r in found.items()})


def differences(results: Results) -> dict[str, list[float]]:
    """Each control's differences from segments."""
    names = [n for n in dict.fromkeys(r["variant"] for r in results) if n != "full"]
    return {name: relative_differences(results, name) for name in names}


if __name__ == "__main__":
    main()
