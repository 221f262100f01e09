"""The `timemoe data` commands."""

import argparse
import json
import sys
from pathlib import Path


def add_download(commands: argparse._SubParsersAction) -> None:
    """Adds `timemoe data download`."""
    parser = commands.add_parser(
        "download",
        help="fetch ETT or Weather",
        description="Fetch the public CSVs of a benchmark, resuming, and check their MD5.",
    )
    parser.add_argument("dataset", choices=("ett", "weather"), help="which benchmark")
    parser.add_argument("dest", help="the folder to write to")
    parser.add_argument("--base-url", help="fetch from a mirror: BASE_URL/NAME.csv")
    parser.set_defaults(run=_download)


def add_convert(commands: argparse._SubParsersAction) -> None:
    """Adds `timemoe data convert`."""
    parser = commands.add_parser(
        "convert",
        help="CSV, Parquet, Arrow, Monash or Hugging Face data to Time-300B folders",
        description=(
            "Convert files of series to Time-300B folders OUT/DOMAIN/NAME, one per file. Columns "
            "unique_id/ds/y, item_id/timestamp/target and id/timestamp/target are recognised."
        ),
    )
    parser.add_argument("source", help="a file, or a folder that is searched")
    parser.add_argument("out", help="the folder of domains; made if need be")
    parser.add_argument("--domain", help="by default the first folder that a file lies in")
    parser.add_argument("--name", help="of the source, where there is only one")
    parser.add_argument("--frequency", help="of the series, for example h; by default the file's")
    parser.add_argument("--join", action="store_true", help="make one source of all files")
    parser.add_argument("--id-column", help="the column that tells series apart")
    parser.add_argument("--timestamp-column", help="the column of times")
    parser.add_argument("--target", action="append", default=[], help="a column of values; again")
    parser.add_argument("--encoding", default="utf-8", help="of .tsf files: utf-8, cp1252, latin-1")
    parser.add_argument("--dtype", default="float32", help="float32, or float64 to keep all digits")
    parser.add_argument("--report", type=Path, help="the JSON to write; by default OUT.report.json")
    parser.set_defaults(run=_data_convert)


def add_inspect(commands: argparse._SubParsersAction) -> None:
    """Adds `timemoe data inspect`."""
    parser = commands.add_parser(
        "inspect",
        help="what a corpus holds: lengths, sources, missing values, duplicates",
        description="Read a corpus once and report what it holds; with --out, also as a picture.",
    )
    parser.add_argument("path", help="files and folders of series, separated by commas")
    parser.add_argument("--out", type=Path, help="a folder for inspection.json and series.png")
    parser.add_argument("--max-sequences", type=int, help="read so many, evenly spread")
    parser.add_argument("--seed", type=int, default=0, help="of the series in the picture")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_inspect)


def add_overlap(commands: argparse._SubParsersAction) -> None:
    """Adds `timemoe data overlap`."""
    parser = commands.add_parser(
        "overlap",
        help="find rows of benchmarks in a corpus; exit status 1 if there are any",
        description=(
            "Find stretches of benchmark CSVs in a corpus, as they are or scaled and shifted. "
            "Every shared, not trivial stretch of 2 * WINDOW - 1 points is found. The exit status "
            "is 0 where there is none and 1 where there is."
        ),
    )
    parser.add_argument("corpus", help="files and folders of series, separated by commas")
    parser.add_argument("benchmarks", nargs="+", metavar="BENCHMARK", help="a CSV, or a folder")
    parser.add_argument("--window", type=int, default=64, help="points compared at a time")
    parser.add_argument("--json", action="store_true", help="print JSON, with every overlap")
    parser.set_defaults(run=_overlap)


def add_synthesize(commands: argparse._SubParsersAction) -> None:
    """Adds `timemoe data synthesize`."""
    parser = commands.add_parser(
        "synthesize",
        help="write a corpus of generated series",
        description="Write generated series in the Time-300B layout: OUT/synthetic/FAMILY.",
    )
    parser.add_argument("out", help="the folder to write; it must be empty or new")
    parser.add_argument("--points", type=int, required=True, help="at least so many in all")
    parser.add_argument("--families", default="", help="arima,chaos:2: names and weights; or all")
    parser.add_argument("--length", type=int, default=2048, help="points of each series")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes; by default as many as cores")
    parser.add_argument("--real", help="the series that the family tsmixup mixes")
    parser.set_defaults(run=_synthesize)


def add_clean(commands: argparse._SubParsersAction) -> None:
    """Adds `timemoe data clean`."""
    parser = commands.add_parser(
        "clean",
        help="cut gaps, zeros and repetitions out of a corpus",
        description=(
            "Clean series as the paper does (arXiv 2409.16040, Algorithm 2), each file or folder "
            "into a Time-300B folder at the same place below OUT. The same command goes on where "
            "one was killed."
        ),
    )
    parser.add_argument("path", metavar="IN", help="files and folders of series, with commas")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--processes", type=int, help="by default one for each core")
    parser.add_argument("--report", type=Path, help="the JSON to write; by default OUT.report.json")
    parser.set_defaults(run=_clean)


def _download(args: argparse.Namespace) -> None:
    from timemoe_jax.evaluation.download import download

    for path in download(args.dataset, args.dest, base_url=args.base_url):
        print(path)


def _data_convert(args: argparse.Namespace) -> None:
    from timemoe_jax.data.corpus.convert import convert
    from timemoe_jax.data.formats.table_layout import ColumnNames

    report = convert(
        args.source,
        args.out,
        domain=args.domain,
        name=args.name,
        frequency=args.frequency,
        join=args.join,
        names=ColumnNames(args.id_column, args.timestamp_column, tuple(args.target)),
        encoding=args.encoding,
        dtype=args.dtype,
        report_path=args.report,
    )
    print(report.to_text())


def _inspect(args: argparse.Namespace) -> None:
    from timemoe_jax.data.corpus.inspection import downsample, file_of, inspect_source
    from timemoe_jax.data.formats.open import open_source

    source = open_source(args.path)
    found = inspect_source(
        source, args.path, max_sequences=args.max_sequences, seed=args.seed, num_examples=24
    )
    encoded = json.dumps(found.as_dict(), indent=2)
    print(encoded if args.json else found.to_text())
    if args.out:
        from timemoe_jax.plotting import Thumbnail, plot_sheet

        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "inspection.json").write_text(encoded + "\n")
        thumbnails = [
            Thumbnail(
                f"{'/'.join(Path(file_of(source.name(i))).parts[-2:])}: {source.lengths[i]:,}",
                *downsample(source, i),
            )
            for i in found.examples
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
