"""What fine-tuning brings: zero-shot beside tuned, on benchmarks and on many short series."""

import csv
import dataclasses
import functools
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float64

from timemoe_jax.checkpoints.checksums import weights_digest
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.data.formats.open import open_parts
from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.benchmarks import find_dataset, load_benchmark
from timemoe_jax.evaluation.held_out.windows import choose_sources
from timemoe_jax.evaluation.studies.config import FinetuneStudyConfig
from timemoe_jax.evaluation.tables import markdown_table, number
from timemoe_jax.files import read_rows, write_json, write_text
from timemoe_jax.forecasting.fitting import ItemSource
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.forecasting.scoring.linear_map import fit_linear_map
from timemoe_jax.models.base import create_params
from timemoe_jax.runtime import compilation_cache
from timemoe_jax.runtime.progress import say
from timemoe_jax.training.finetuning.start import Start, context_of
from timemoe_jax.training.finetuning.tune import fine_tune

COLUMNS = ("case", "run", "seed", "horizon", "mse", "mae", "cpu_seconds")  # of results.csv
LAST_HORIZONS = 5  # of a source that are forecast, at most
Result = dict[str, Any]
Forecast = Callable[[list[np.ndarray]], Float64[np.ndarray, "W H"]]


class Case(NamedTuple):
    """Data to fine-tune on, and forecasts to score."""

    name: str
    series: list[Float64[np.ndarray, " _"]]  # up to where the test begins
    validation_points: int  # their last ones; 0: as fine-tuning chooses by itself
    contexts: list[Float64[np.ndarray, " _"]]  # of the test
    targets: Float64[np.ndarray, "W H"]
    units: Float64[np.ndarray, " W"]  # errors are in these
    channels: int = 1  # so many series, contexts and targets at a time are aligned

    @property
    def horizon(self) -> int:
        """Points to forecast."""
        return self.targets.shape[1]

    def score(self, forecast: Forecast) -> dict[str, float]:
        """MSE and MAE of forecasts of all contexts, in the units of the case."""
        errors = (forecast(self.contexts) - self.targets) / self.units[:, None]
        errors = errors[np.isfinite(errors)]
        return {"mse": float(np.mean(errors**2)), "mae": float(np.mean(np.abs(errors)))}


def run_finetune_study(config: FinetuneStudyConfig, workdir: str | os.PathLike[str]) -> None:
    """Makes every run that is not there yet, and writes the table after each case.

    Its folder has a file for each run that it made, `results.csv` with the test errors of all, and
    the table, `results.md`.

    Raises:
      DataError, CheckpointError: data, the checkpoint or `config.known` cannot be read.
    """
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    compilation_cache.use_by_default()
    loaded = load_model(config.checkpoint)
    start = Start.of(loaded, config.checkpoint)
    known = read_results(config.known) if config.known else {}
    results: list[Result] = []
    text = ""
    for case in _cases(config, start):
        for name, seed, make in _runs(config, start, case):
            path = folder / f"{case.name.replace('/', '_')}_{name}_{seed}.json"
            if (case.name, name, seed) in known:
                results.append(known[case.name, name, seed])
                continue
            if not path.exists():
                say(f"\n{case.name}: {name}, seed {seed}")
                began = time.process_time()
                found = make()
                found |= {"cpu_seconds": round(time.process_time() - began, 1)}
                head = {"case": case.name, "run": name, "seed": seed}
                write_json(path, head | {"horizon": case.horizon} | found)
                jax.clear_caches()
            results.append(json.loads(path.read_text(encoding="utf-8")))
        text = table(results)
        (folder / "results.md").write_text(text, encoding="utf-8")
        write_results(folder / "results.csv", results)
    print(text)
    print(f"wrote {folder / 'results.md'}")


def write_results(path: Path, results: Sequence[Result]) -> None:
    """One row for each run that has a test: what it was, its errors and its CPU seconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for r in results:
        if r["test"] is not None:
            errors = (f"{r['test'][name]:.6g}" for name in ("mse", "mae"))
            writer.writerow([*(r[n] for n in COLUMNS[:4]), *errors, r["cpu_seconds"]])
    write_text(path, out.getvalue())


def read_results(path: str | os.PathLike[str]) -> dict[tuple[str, str, int], Result]:
    """What `write_results` wrote, by case, run and seed.

    Raises:
      DataError: the file cannot be read, or is another one.
    """
    found = {}
    for line, row in enumerate(read_rows(path, COLUMNS), 2):
        try:
            test = {name: float(row[name]) for name in ("mse", "mae")}
            more = {"horizon": int(row["horizon"]), "cpu_seconds": float(row["cpu_seconds"])}
            key = (row["case"], row["run"], int(row["seed"]))
        except (TypeError, ValueError):
            raise DataError(f"{path}: line {line} says {row}, of which a number is none") from None
        found[key] = dict(zip(("case", "run", "seed"), key, strict=True)) | more | {"test": test}
    return found


def _runs(
    config: FinetuneStudyConfig, start: Start, case: Case
) -> Iterator[tuple[str, int, Callable[[], Result]]]:
    """The runs of a case: their names, their seeds, and what makes them."""
    context = context_of(start.config, dataclasses.replace(config.finetune, horizon=case.horizon))

    def forecasts(forecaster: Forecaster) -> Forecast:
        def forecast(contexts: list[np.ndarray]) -> np.ndarray:
            together: Any = contexts
            if forecaster.joint:
                together = np.stack(contexts).reshape(-1, case.channels, len(contexts[0]))
            point = forecaster.forecast(together, case.horizon, context).point
            return np.asarray(point).reshape(-1, case.horizon)

        return forecast

    def zero_shot() -> Result:
        return {"test": case.score(forecasts(Forecaster(start.config, start.params)))}

    def linear() -> Result:
        after = case.validation_points or case.horizon
        heads = [len(values) - after for values in case.series]
        length = min([context, *(len(c) for c in case.contexts)])
        found = fit_linear_map(case.series, heads, length, case.horizon)
        if found is None:
            return {"test": None}

        def forecast(contexts: list[np.ndarray]) -> np.ndarray:
            return found.forecast(np.stack([c[-length:] for c in contexts]), case.horizon)

        return {"test": case.score(forecast)}

    def tuned(begin: Start, mode: str, seed: int) -> Result:
        options = dataclasses.replace(
            config.finetune,
            horizon=case.horizon,
            mode=mode.partition("+")[0],
            mixing=mode.partition("+")[2],
            seed=seed,
            validation_points=case.validation_points,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of short series, once for each
            names = [str(i) for i in range(len(case.series))]
            items = [i // case.channels for i in range(len(case.series))]
            out = fine_tune(begin, ItemSource(case.series, names, items), options)
            if out.report.ended.startswith("SIG"):
                raise SystemExit(f"stopped by {out.report.ended}; this run begins again next time")
            forecaster = Forecaster(out.config, out.params)
            return {"test": case.score(forecasts(forecaster)), "tuning": out.report.as_dict()}

    def from_scratch(seed: int) -> Result:
        params = create_params(start.config, seed)
        new = start._replace(params=params, digest=weights_digest(params), source="scratch")
        return tuned(new, "full", seed)

    yield "zero_shot", 0, zero_shot
    if config.linear:
        yield "linear", 0, linear
    for seed in config.seeds:
        for mode in config.modes:
            yield mode, seed, functools.partial(tuned, start, mode, seed)
        if config.scratch:
            yield "scratch", seed, functools.partial(from_scratch, seed)


def _cases(config: FinetuneStudyConfig, start: Start) -> Iterator[Case]:
    for name in config.datasets:
        for horizon in config.horizons:
            yield _of_benchmark(name, horizon, config, start)
    if config.sources:
        source, parts = open_parts(config.corpus)
        for text in config.sources:
            name, _, ahead = text.rpartition(":")
            chosen, _ = choose_sources(source, parts, name)
            yield _of_source(name, int(ahead), list(chosen), config.max_windows)


def _of_benchmark(name: str, horizon: int, config: FinetuneStudyConfig, start: Start) -> Case:
    """All channels at evenly spaced origins of the test split, on the scale of the train split."""
    benchmark = load_benchmark(find_dataset(name, config.data_dir or None))
    context = context_of(start.config, dataclasses.replace(config.finetune, horizon=horizon))
    train, until, end = benchmark.borders
    values = np.ascontiguousarray(benchmark.scaled.T)
    channels, origins = len(values), end - until - horizon + 1
    count = min(origins, max(1, config.max_windows // channels))
    chosen = until + (2 * np.arange(count) + 1) * origins // (2 * count)
    contexts = [row[t - context : t] for t in chosen for row in values]
    targets = np.stack([row[t : t + horizon] for t in chosen for row in values])
    series, case = list(values[:, :until]), f"{benchmark.name}_{horizon}"
    ones = np.ones(len(targets))
    return Case(case, series, until - train, contexts, targets, ones, channels)


def _of_source(name: str, horizon: int, series: Sequence[np.ndarray], most: int) -> Case:
    """The last horizons of the series with two more before them, in deviations of what is before.

    There are so many of a series as leave ten times as much of it, from one to `LAST_HORIZONS`: to
    all series alike something may have happened in a single one.
    """
    kept = [np.asarray(s, np.float64) for s in series if len(s) >= 3 * horizon + 1]
    counts = [min(max(1, len(s) // (11 * horizon)), LAST_HORIZONS) for s in kept]
    heads = [s[: len(s) - n * horizon] for s, n in zip(kept, counts, strict=True)]
    units = np.array([np.nanstd(head) for head in heads])
    evenly = np.linspace(0, len(kept) - 1, min(most, len(kept))).round().astype(int)
    scored = [i for i in evenly.tolist() if units[i] > 0]
    cuts = [(i, len(heads[i]) + k * horizon) for i in scored for k in range(counts[i])]
    contexts = [kept[i][:cut] for i, cut in cuts]
    targets = np.stack([kept[i][cut : cut + horizon] for i, cut in cuts])
    return Case(name, heads, 0, contexts, targets, units[[i for i, _ in cuts]])


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Test errors of each case: zero-shot, then the change of each other run over its seeds."""
    cases = list(dict.fromkeys(r["case"] for r in results))
    runs = [r for r in dict.fromkeys(r["run"] for r in results) if r != "zero_shot"]
    rows = []
    for case in cases:
        of_case = [r for r in results if r["case"] == case and r["test"] is not None]
        start = next(r["test"] for r in of_case if r["run"] == "zero_shot")
        row = [case, number(start["mse"]), number(start["mae"])]
        for run in runs:
            tests = [r["test"] for r in of_case if r["run"] == run]
            row.append(_changes([t["mse"] / start["mse"] - 1 for t in tests]))
            row.append(_changes([t["mae"] / start["mae"] - 1 for t in tests]))
        rows.append(row)
    header = ["case", "zero-shot MSE", "MAE"]
    header += [f"{run} {metric}" for run in runs for metric in ("MSE", "MAE")]
    notes = (
        "\nChanges of the test errors beside zero-shot, the mean over seeds and ± their sample "
        "deviation. Benchmarks are on the scale of the train split; other sources in deviations of "
        "what comes before.\n"
    )
    return markdown_table(header, rows) + notes


def _changes(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.1%}" if len(values) > 1 else ""
    return f"{np.mean(values):+.1%}{spread}"
