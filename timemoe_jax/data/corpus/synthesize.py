"""Writes a corpus of generated series in the Time-300B layout, on all cores."""

import json
import math
import os
from collections import deque
from collections.abc import Generator as Yields
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from timemoe_jax.data.corpus.staging import staged
from timemoe_jax.data.corpus.workers import cores, worker_pool
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.data.generators.generated_source import draw_block
from timemoe_jax.data.generators.generator import Generator
from timemoe_jax.data.generators.registry import make_generator, parse_families
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError
from timemoe_jax.files import write_json

MANIFEST = "manifest.json"
DOMAIN = "synthetic"

# Series of a family that are drawn at once. Another number would give other series.
BLOCK = 64
# Blocks that wait for each worker: they keep it busy while others are written.
_AHEAD = 4


class _Plan(NamedTuple):
    """What to draw; each worker gets it when it starts."""

    generators: dict[str, Generator]
    sequences: dict[str, int]
    length: int
    seed: int


_Block = tuple[np.ndarray, int]  # its series, and how many of them were drawn again


def synthesize(
    out: str | os.PathLike[str],
    points: int,
    *,
    families: str = "",
    length: int = 2048,
    seed: int = 0,
    workers: int | None = None,
    real: SequenceSource | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes generated series to OUT/synthetic/FAMILY, and returns what OUT/manifest.json says.

    Series i of a family depends on the family, length, seed and `real` alone, and not on `points`,
    the other families or the workers. The folder appears when it is complete.

    Args:
      out: the folder to write; it must be new or empty.
      points: the least number of points to write, over all families.
      families: names with weights, `arima:2,chaos`; all families, equally, if empty.
      length: points of each series, at least 2.
      seed: a whole number from 0.
      workers: processes that draw; by default as many as cores.
      real: the series that the family tsmixup mixes.
      progress: whether to show a progress bar.

    Raises:
      DataError: an argument is out of its range, `out` is not empty, or a worker was ended.
    """
    workers = cores() if workers is None else workers
    if points < 1 or workers < 1:
        raise DataError(f"points {points} and workers {workers} must both be at least 1")
    weights = parse_families(families)
    plan = _make_plan(weights, points, length, seed, real)
    with staged(Path(out)) as scratch:
        redrawn = _write(scratch, plan, workers, progress)
        write_json(scratch / MANIFEST, _manifest(plan, weights, redrawn))
    return json.loads((Path(out) / MANIFEST).read_text(encoding="utf-8"))


def _make_plan(
    weights: dict[str, float], points: int, length: int, seed: int, real: SequenceSource | None
) -> _Plan:
    if length < 2 or seed < 0:
        raise DataError(f"length {length} must be at least 2, and seed {seed} at least 0")
    total = sum(weights.values())
    generators = {name: make_generator(name, real) for name in weights}
    points_of = {name: points * (weight / total) for name, weight in weights.items()}
    sequences = {name: math.ceil(share / length) for name, share in points_of.items()}
    return _Plan(generators, sequences, length, seed)


def _write(folder: Path, plan: _Plan, workers: int, progress: bool) -> dict[str, int]:
    """Writes every family; returns how many series of each were drawn again."""
    tasks = [
        (name, number)
        for name, count in plan.sequences.items()
        for number in range(-(-count // BLOCK))
    ]
    redrawn = dict.fromkeys(plan.sequences, 0)
    workers = min(workers, len(tasks))
    total = sum(plan.sequences.values()) * plan.length
    blocks = _drawn(plan, tasks, workers)
    with tqdm(total=total, unit="point", unit_scale=True, disable=not progress) as bar:

        def series(name: str, count: int) -> Iterator[np.ndarray]:
            while count > 0:
                values, again = next(blocks)
                redrawn[name] += again
                taken = values[:count]
                yield from taken
                count -= len(taken)
                bar.update(taken.size)

        try:
            for name, count in plan.sequences.items():
                bar.set_postfix_str(name, refresh=False)
                write_time_moe_folder(folder / DOMAIN / name, series(name, count))
        finally:
            blocks.close()
    return redrawn


def _drawn(
    plan: _Plan, tasks: Iterable[tuple[str, int]], workers: int
) -> Yields[_Block, None, None]:
    """Draws blocks in order, some ahead of what is asked for."""
    if workers == 1:
        yield from (_draw(plan, *task) for task in tasks)
        return
    pending: deque[Future[_Block]] = deque()
    with worker_pool(workers, plan, "nothing was written") as submit:
        for task in tasks:
            pending.append(submit(_draw, *task))
            if len(pending) >= _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _draw(plan: _Plan, name: str, number: int) -> _Block:
    return draw_block(name, plan.generators[name], plan.seed, number, BLOCK, plan.length)


def _manifest(plan: _Plan, weights: dict[str, float], redrawn: dict[str, int]) -> dict[str, Any]:
    families = {
        name: {
            "folder": f"{DOMAIN}/{name}",
            "weight": weights[name],
            "sequences": plan.sequences[name],
            "points": plan.sequences[name] * plan.length,
            "redrawn": redrawn[name],
            "citation": generator.citation,
            "parameters": generator.parameters(),
        }
        for name, generator in plan.generators.items()
    }
    sequences = sum(plan.sequences.values())
    return {
        "made_by": f"timemoe_jax {version('timemoe_jax')}, numpy {np.__version__}",
        "seed": plan.seed,
        "length": plan.length,
        "block": BLOCK,
        "sequences": sequences,
        "points": sequences * plan.length,
        "families": families,
    }
