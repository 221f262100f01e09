"""The first minute of a user: seconds from the start of a process to its forecasts.

python benchmarks/first_forecast.py
python benchmarks/first_forecast.py --checkpoint out/mini --clock cpu

Every row but the last is the best of some processes, each started anew, and its reference is the
bare import of JAX and Flax in such a process: what the machine takes for that it takes for all that
follows, so that the ratio says more than the seconds. --clock cpu takes the processor's time of a
process in the place of the wall's, for a machine that is not idle. The goals are 2.5 for one series
without any programs on disk, and 5 for the last row, intervals beside points in one warm process.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import CLOCKS, Report, describe_machine

ROOT = Path(__file__).parents[1]
IMPORT = "import jax, flax\nfrom flax import nnx\njax.devices()\n"
LIBRARY = IMPORT + "from timemoe_jax import Forecaster\n"
# The first argument of each of these is the checkpoint.
LOAD = LIBRARY + "import sys\nforecaster = Forecaster.from_pretrained(sys.argv[1])\n"
ONE = LOAD + "import numpy as np\nforecaster.forecast(np.sin(np.arange(208.0)), 24)\n"
# 65 monthly series of 25 lengths, as an office has them.
MANY = LOAD + (
    "import numpy as np\n"
    "lengths = [60 + 14 * (i % 25) for i in range(65)]\n"
    "forecaster.forecast([np.sin(np.arange(float(n))) for n in lengths], 12)\n"
)


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", default="nano", help="a bundled model's name, or any folder of a model"
    )
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="what is timed")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each row")
    parser.add_argument("--series", type=int, default=100, help="of the intervals' row")
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.series = 1, 4
    return args


def seconds(program: str, cache: str, checkpoint: str = "nano", clock: str = "wall") -> float:
    """From the start to the end of a process that keeps its programs in a folder, or `off`.

    By a clock of CLOCKS: the processor's time is that of all threads of the process.
    """
    environment = {**os.environ, "TIMEMOE_CACHE": cache, "TIMEMOE_QUIET": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # of somebody else
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    start = time.perf_counter(), children_seconds()
    subprocess.run([sys.executable, "-c", program, checkpoint], env=environment, check=True)
    wall, processor = time.perf_counter() - start[0], children_seconds() - start[1]
    return wall if clock == "wall" else processor


def children_seconds() -> float:
    """The processor's time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def processes(rounds: int, checkpoint: str, clock: str) -> dict[str, float]:
    """The best time of each row; rows take turns, since a machine is not equally quiet always."""
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "import of JAX and Flax": (IMPORT, "off"),
            "import": (LIBRARY, "off"),
            "load": (LOAD, "off"),
            "one series": (ONE, "off"),
            "one series, programs on disk": (ONE, folder),
            "65 series of 25 lengths": (MANY, "off"),
            "65 series of 25 lengths, programs on disk": (MANY, folder),
        }
        for program, cache in rows.values():
            if cache == folder:
                seconds(program, folder, checkpoint)  # which puts the programs there
        for _ in range(rounds):
            for name, (program, cache) in rows.items():
                taken = seconds(program, cache, checkpoint, clock)
                best[name] = min(best.get(name, float("inf")), taken)
    return best


def intervals(series: int, rounds: int, checkpoint: str, clock: str) -> tuple[float, float]:
    """Seconds of points, and of points with intervals of 80%, in a process that has compiled."""
    import numpy as np

    from timemoe_jax import Forecaster

    forecaster, now = Forecaster.from_pretrained(checkpoint), getattr(time, CLOCKS[clock])
    rng = np.random.default_rng(0)
    values = np.sin(np.arange(600.0) / 4) + 0.3 * rng.standard_normal((series, 600))
    best = []
    for levels in (None, [0.1, 0.5, 0.9]):
        times = []
        for _ in range(rounds + 1):  # the first compiles
            start = now()
            forecaster.forecast(values, 24, quantile_levels=levels)
            times.append(now() - start)
        best.append(min(times[1:]))
    return best[0], best[1]


def main() -> None:
    """Measures and reports."""
    args = parse()
    report = Report(args.json)
    print(describe_machine())
    best = processes(args.rounds, args.checkpoint, args.clock)
    bare, *_ = best
    for name, value in best.items():
        of = best[bare] if name != bare else None
        report.add(name, value, "s", bare, of)
        shown = "" if of is None else f", {value / of:.1f} times the bare import"
        print(f"{name}: {value:.2f} s{shown}")
    points, both = intervals(args.series, args.rounds, args.checkpoint, args.clock)
    name = f"{args.series} series of 600 points"
    report.add(f"{name}, points", points, "s")
    report.add(f"{name}, intervals", both, "s", "points", points)
    print(f"{name}: points {points:.2f} s, with intervals {both:.2f} s, {both / points:.1f} times")
    report.write()


if __name__ == "__main__":
    main()
