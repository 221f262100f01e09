"""The `timemoe data` commands."""

import argparse
import json
import sys
from pathlib import Path

from timemoe_jax.cli.commands import Command, argument
from timemoe_jax.files import write_text


def _download(args: argparse.Namespace) -> None:
    from timemoe_jax.evaluation.download import download

    for path in download(args.dataset, args.dest, base_url=args.base_url):
        print(path)


def _convert(args: argparse.Namespace) -> None:
    from timemoe_jax.data.corpus.convert import convert
    from timemoe_jax.data.formats.table_layout import ColumnNames

    report = convert(
        args.source,
        args.out,
        domain=args.domain,
        name=args.name,
        frequency=args.frequency,
        join=args.join,
        names=ColumnNames(
            args.id_column,
            args.timestamp_column,
            tuple(args.target),
            SEPARATORS.get(args.separator, args.separator),
            args.decimal,
        ),
        encoding=args.encoding,
        dtype=args.dtype,
        report_path=args.report,
    )
    print(report.to_text())


def _inspect(args: argparse.Namespace) -> None:
    from timemoe_jax.data.corpus.inspection import downsample, file_of, inspect_source
    from timemoe_jax.data.formats.open import open_source

    source = open_source(args.path)
    inspection = inspect_source(
        source, args.path, max_sequences=args.max_sequences, seed=args.seed, num_examples=24
    )
    encoded = json.dumps(inspection.as_dict(), indent=2)
    print(encoded if args.json else inspection.to_text())
    if args.out:
        from timemoe_jax.plotting import Thumbnail, plot_sheet

        write_text(args.out / "inspection.json", encoded + "\n")
        thumbnails = [
            Thumbnail(
                f"{'/'.join(Path(file_of(source.name(i))).parts[-2:])}: {source.lengths[i]:,}",
                *downsample(source, i),
            )
            for i in inspection.examples
        ]
        title = f"{len(thumbnails)} of {len(source):,} series of {args.path}, with their lengths"
        picture = plot_sheet(args.out / "series.png", thumbnails, title=title)
        print(f"wrote {args.out / 'inspection.json'}, {picture}", file=sys.stderr)


def _overlap(args: argparse.Namespace) -> None:
    from timemoe_jax.data.corpus.overlap import find_overlaps
    from timemoe_jax.data.formats.open import open_source

    benchmarks: list[Path] = []
    for path in map(Path, args.benchmarks):
        benchmarks += sorted(path.rglob("*.csv")) if path.is_dir() else [path]
    report = find_overlaps(open_source(args.corpus), benchmarks, args.window)
    print(json.dumps(report.as_dict(), indent=2) if args.json else report.to_text())
    if report.overlaps:
        raise SystemExit(1)


def _synthesize(args: argparse.Namespace) -> None:
    from timemoe_jax.data.corpus.synthesize import synthesize
    from timemoe_jax.data.formats.open import open_source

    manifest = synthesize(
        args.out,
        args.points,
        families=args.families,
        length=args.length,
        seed=args.seed,
        workers=args.workers,
        real=open_source(args.real) if args.real else None,
    )
    counts = f"{manifest['sequences']:,} series of {manifest['points']:,} points"
    print(f"wrote {counts} to {args.out}/synthetic")


def _clean(args: argparse.Namespace) -> None:
    from timemoe_jax.data.corpus.clean import clean_folder

    report = clean_folder(args.path, args.out, report=args.report, num_processes=args.processes)
    print(report.to_text())


SEPARATORS = {"\\t": "\t", "tab": "\t"}  # how a tab is written on the command line
_CORPUS = "files and folders of series, separated by commas"
_REPORT = "the JSON to write; by default OUT.report.json"
COMMANDS = (
    Command(
        "download",
        "download the CSVs of ETT or Weather, resuming, and check their MD5",
        _download,
        (
            argument("dataset", choices=("ett", "weather"), help="which data sets"),
            argument("dest", help="the folder to write to"),
            argument("--base-url", help="a mirror: BASE_URL/NAME.csv"),
        ),
        "",
        ("timemoe data download ett data",),
    ),
    Command(
        "convert",
        "convert CSV, Parquet, Arrow, Monash or Hugging Face data to Time-300B folders",
        _convert,
        (
            argument("source", help="a file, or a folder that is searched"),
            argument("out", help="the folder of domains; made if need be"),
            argument("--domain", help="by default the first folder that a file lies in"),
            argument("--name", help="of the source, where there is only one"),
            argument("--frequency", help="of the series, for example h; by default the file's"),
            argument("--join", action="store_true", help="make one source of all files"),
            argument("--id-column", help="the column that tells series apart"),
            argument("--timestamp-column", help="the column of times"),
            argument(
                "--target", action="append", default=[], help="target column; may be repeated"
            ),
            argument("--separator", metavar="MARK", help="of cells of a CSV; by default found"),
            argument("--decimal", metavar="MARK", help="of decimals of a CSV; by default found"),
            argument("--encoding", default="utf-8", help="of .tsf files: utf-8, cp1252, latin-1"),
            argument("--dtype", default="float32", help="float32, or float64 to keep all digits"),
            argument("--report", type=Path, help=_REPORT),
        ),
        "Each file becomes a folder OUT/DOMAIN/NAME. Columns unique_id/ds/y, "
        "item_id/timestamp/target and id/timestamp/target are recognized.",
        (
            "timemoe data convert files corpus",
            "timemoe data convert shops.csv corpus --id-column shop --timestamp-column day "
            "--target sold",
        ),
    ),
    Command(
        "inspect",
        "count what a corpus holds: lengths, sources, missing values, duplicates",
        _inspect,
        (
            argument("path", help=_CORPUS),
            argument("--out", type=Path, help="a folder for inspection.json and series.png"),
            argument("--max-sequences", type=int, metavar="N", help="read N, evenly spread"),
            argument("--seed", type=int, default=0, help="of the choice of series to plot"),
            argument("--json", action="store_true", help="print JSON"),
        ),
        "",
        ("timemoe data inspect corpus --out report",),
    ),
    Command(
        "overlap",
        "find stretches of benchmarks in a corpus; exit status 1 if there are any",
        _overlap,
        (
            argument("corpus", help=_CORPUS),
            argument("benchmarks", nargs="+", metavar="BENCHMARK", help="a CSV, or a folder"),
            argument("--window", type=int, default=64, help="points compared at a time"),
            argument("--json", action="store_true", help="print JSON, with every overlap"),
        ),
        "Stretches are compared as they are, and scaled and shifted. Every shared, not trivial "
        "stretch of 2 * WINDOW - 1 points is found.",
        ("timemoe data overlap corpus data/ETT-small",),
    ),
    Command(
        "synthesize",
        "write a corpus of generated series in the Time-300B layout: OUT/synthetic/FAMILY",
        _synthesize,
        (
            argument("out", help="the folder to write; it must be empty or new"),
            argument("--points", type=int, required=True, help="at least so many in all"),
            argument("--families", default="", help="arima,chaos:2: names and weights; or all"),
            argument("--length", type=int, default=2048, help="points of each series"),
            argument("--seed", type=int, default=0),
            argument("--workers", type=int, help="processes; by default as many as cores"),
            argument("--real", help="the series that the family tsmixup mixes"),
        ),
        "",
        ("timemoe data synthesize made --points 1000000 --families arima:2,chaos",),
    ),
    Command(
        "clean",
        "remove gaps, runs of zeros and flat stretches of a corpus (arXiv 2409.16040, Algorithm 2)",
        _clean,
        (
            argument("path", metavar="IN", help=_CORPUS),
            argument("out", metavar="OUT", help="the folder to write"),
            argument("--processes", type=int, help="by default one for each core"),
            argument("--report", type=Path, help=_REPORT),
        ),
        "Each file or folder becomes a Time-300B folder at the same place below OUT. Run the same "
        "command again to resume.",
        ("timemoe data clean corpus cleaned",),
    ),
)
